"""The explorable: one edited model at a time, and everything about it on one screen.

`show` computes it for a State, `picture` draws it, `Explorer` puts sliders beside it. Neighbours are always on the
screen, so that over-erasure cannot be missed.
"""

import base64
import html
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import wraps
from io import BytesIO
from weakref import WeakKeyDictionary

import ipywidgets as widgets
import numpy as np
import PIL.Image
import torch
import traitlets
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

import rece
from rece import certificate, course, layers, solver, texts
from rece.course import Asked, Lab
from rece.emoji import world as worlds
from rece.images import generate
from rece.study import config, figures

METHODS = {"original": (), "UCE": ("log_lamb",), "RECE": ("rounds", "log_lamb"), "anchored": ("rounds", "log_lamb")}
METHODS |= {"guarded": ()}  # by name the numbers that it reads; the guarded eraser chooses its own
ATTACKS = ("plain", "synonym", "held-out word", "c′", "nearest reachable")
ROUNDS, LOG_LAMB = (0, 8), (-1.0, 5.0)  # the least and the most
N, NEIGHBOURS = 5, 2  # pictures in a row; neighbours
STEPS = 10  # of drawing
DERIVE = 0.1  # the ridge of c′
LEAST = 0.001  # of the singular values that are drawn
KEPT = 64  # results of each function that are kept
_KNOWN = WeakKeyDictionary()  # of a pipeline, by function: what it returned, by its arguments


@dataclass(frozen=True)
class State:
    """What is shown. concept: an object of the world. method: one of METHODS. rounds: of RECE. log_lamb: log10 of λ,
    of the start and of each round. attack: one of ATTACKS. seed: of the first picture's noise; the others follow.

    Raises ValueError naming the field if it is out of range.
    """

    concept: str = "church"
    method: str = "UCE"
    rounds: int = 3
    log_lamb: float = 2.5
    attack: str = "plain"
    seed: int = 0

    def __post_init__(self):
        for name, among in {"method": METHODS, "attack": ATTACKS}.items():
            if getattr(self, name) not in among:
                raise ValueError(f"{name} must be one of {', '.join(among)}, not {getattr(self, name)!r}")
        for name, (least, most) in {"rounds": ROUNDS, "log_lamb": LOG_LAMB, "seed": (0, 10**9)}.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}, not {getattr(self, name)!r}")
        object.__setattr__(self, "log_lamb", round(self.log_lamb, 3))  # a slider's 2.7500000000000004 is 2.75

    @property
    def lamb(self) -> float:
        """λ, rounded to three digits, so that the line of Python gives the very same."""
        return float(f"{10**self.log_lamb:.3g}")


@dataclass(frozen=True)
class Result:
    """What `show` computes. original, edited: pictures of the concept, the same prompts where the attack is a prompt.
    neighbours: by name pictures of plain prompts, by the original and by the edit. sizes: singular values of M - I,
    the largest first, (d,). certified, any_embedding, plain, other: shares of the distance from the concept to the
    empty prompt: the least of any prompt's token, the least of any embedding, that of the concept's own token in the
    edited model, and that of the nearest other concept in the original, which is `nearest`. code: the eraser in
    Python.
    """

    state: State
    original: Asked
    edited: Asked
    neighbours: dict[str, tuple[Asked, Asked]]
    sizes: np.ndarray
    certified: float
    any_embedding: float
    plain: float
    other: float
    nearest: str
    code: str

    @property
    def says(self) -> str:
        """What the picture shows, in words."""
        name, (low, high) = self.state.concept, self.edited.interval
        kept = [f"{one} {after.k} of {N}, before {before.k}" for one, (before, after) in self.neighbours.items()]
        return (
            f"{self.state.method}, {self.state.attack}: the judge sees {name} in {self.edited.k} of {N} pictures "
            f"(95 %: {low:.2f} to {high:.2f}), and in {self.original.k} of the original's. "
            f"Neighbours: {'; '.join(kept)}. No prompt's token comes nearer to {name} than {self.certified:.2f}, no "
            f"embedding than {self.any_embedding:.2f}; its plain word is at {self.plain:.2f}, and {self.nearest} was "
            f"at {self.other:.2f} in the original."
        )


def remembered(compute: Callable) -> Callable:
    """A function of a lab and hashable arguments that keeps its last results, with the lab's pipeline."""

    @wraps(compute)
    def known(lab: Lab, *key):
        there = _KNOWN.setdefault(lab.pipe, {}).setdefault(compute.__name__, {})
        if key not in there:
            there[key] = compute(lab, *key)
            if len(there) > KEPT:
                del there[next(iter(there))]
        return there[key]

    return known


def show(lab: Lab, state: State) -> Result:
    """Edit, attack, draw, judge and certify. What one state has in common with others before it is not computed again.

    Raises ValueError if the concept is no object of the world or has no word for the attack, if the pipeline carries
    an eraser, or if the edit's system is ill-conditioned.
    """
    if state.concept not in lab.world.objects:
        raise ValueError(f"concept must be one of the world's objects, such as church or dog, not {state.concept!r}")
    if layers.fused(lab.pipe) is not None:
        raise ValueError("the lab's pipeline carries an eraser: remove it first")
    unread = {"rounds", "log_lamb"} - {*METHODS[state.method]}
    shared = replace(state, **{one.name: one.default for one in fields(State) if one.name in unread})
    return replace(_shown(lab, shared), state=state)


@remembered
def _shown(lab: Lab, state: State) -> Result:
    M, code = _edit(lab, replace(state, attack=State.attack, seed=State.seed))
    at = _place(lab, state.concept)
    around, seed = tuple(at.order[:NEIGHBOURS]), state.seed
    prompts = tuple(_prompts(lab, state.concept, state.attack))
    plain = [prompt for name in around for prompt in lab.prompts(lab.world.words[name][0], N)]
    names = [name for name in around for _ in range(N)]
    before = _drawn(lab, (*[state.concept] * N,), prompts, seed), _drawn(lab, (*names,), (*plain,), seed)
    embeds = torch.cat([_attacked(lab, M, state.attack, prompts), _encoded(lab, (*plain,))])
    with nullcontext() if state.method == "original" else rece.Eraser(M).on(lab.pipe):
        after = _draw(lab, [state.concept] * N + names, embeds, seed)
    parts = [_joined(name, after[n * N : n * N + N]) for n, name in enumerate((state.concept, *around))]
    old = [_joined(name, before[1][n * N : n * N + N]) for n, name in enumerate(around)]
    Q, G, gamma, beta = _model(lab)
    least, _ = certificate.bound(M, G, at.token[None], gamma, beta)
    return Result(
        state=state,
        original=_joined(state.concept, before[0]),
        edited=parts[0],
        neighbours=dict(zip(around, zip(old, parts[1:], strict=True), strict=True)),
        sizes=torch.linalg.svdvals(M - torch.eye(len(M)).to(M)).numpy(force=True),
        certified=least.item() / at.unit,
        any_embedding=certificate.any_embedding(Q @ M, (at.token @ Q.T)[None]).item() / at.unit,
        plain=certificate.norm(M @ at.token - at.token, G).item() / at.unit,
        other=at.other,
        nearest=at.order[0],
        code=code,
    )


@dataclass(frozen=True)
class _Place:
    """Where a concept lies: its token (d,), the distance to the empty prompt's, other objects from the nearest on, and
    the distance of the nearest, as a share of the former."""

    token: Tensor
    unit: float
    order: list[str]
    other: float


@remembered
def _place(lab: Lab, concept: str) -> _Place:
    Q, names = _model(lab)[0], lab.world.objects
    tokens, empty = _names(lab)
    c = tokens[names.index(concept)]
    away = ((tokens - c) @ Q.T).norm(dim=1)
    order = [n for n in np.argsort(away.numpy(force=True), kind="stable") if names[n] != concept]
    unit = ((c - empty) @ Q.T).norm().item()
    return _Place(c, unit, [names[n] for n in order], away[order[0]].item() / unit)


@remembered
def _names(lab: Lab) -> tuple[Tensor, Tensor]:
    """The last tokens of all objects' names, and that of the empty prompt."""
    words = [lab.world.words[name][0] for name in lab.world.objects]
    found = texts.last_tokens(lab.pipe, [*words, " "]).to(_model(lab)[0])
    return found[:-1], found[-1]


@remembered
def _model(lab: Lab) -> tuple[Tensor, ...]:
    """Q, see `layers.answers`; G = Q^T Q; and the final LayerNorm's gamma and beta."""
    Q, _ = layers.answers(lab.pipe)
    return Q, Q.T @ Q, *(part.to(Q) for part in texts.final_norm(lab.pipe))


@remembered
def _edit(lab: Lab, state: State) -> tuple[Tensor, str]:
    """The map M of a state, on the device of the Gram matrix, and the line of Python that gives its eraser."""
    Q, word = _model(lab)[0], lab.world.words[state.concept][0]
    if state.method == "original":
        return torch.eye(Q.shape[1]).to(Q), "None  # nothing is edited"
    name, given = "guard", {}
    if state.method != "guarded":
        name, given = "erase", {"rounds": state.rounds if "rounds" in METHODS[state.method] else 0}
        given |= {"start": {"lamb": state.lamb}}
        if given["rounds"]:
            given |= {"each": {"lamb": state.lamb, "preserve_scale": 1.0}}
        given |= {"anchored": True} if state.method == "anchored" else {}
        given |= {"relative": True}
    eraser = getattr(rece, name)(lab.pipe, word, **given, progress=False)
    told = "".join(f", {key}={value!r}" for key, value in given.items())
    return eraser.map.to(Q), f"rece.{name}(lab.pipe, {word!r}{told})"


def _prompts(lab: Lab, concept: str, attack: str) -> list[str]:
    """N prompts of an attack, in the world's styles by turns; of attacks by embeddings the plain ones."""
    words, styles = lab.world.words[concept], lab.world.styles
    some = {"synonym": words[1:], "held-out word": lab.world.held_out[concept]}.get(attack, words[:1])
    if not some:
        raise ValueError(f"{concept} has no {attack}: choose another attack")
    return [worlds.prompt(some[n % len(some)], styles[n % len(styles)]) for n in range(N)]


@remembered
def _encoded(lab: Lab, prompts: tuple[str, ...]) -> Tensor:
    return texts.encode(lab.pipe, list(prompts)).to(_model(lab)[0])


def _attacked(lab: Lab, M: Tensor, attack: str, prompts: tuple[str, ...]) -> Tensor:
    """The embeddings of an attack, (N, positions, d)."""
    C, (_, G, gamma, beta) = _encoded(lab, prompts), _model(lab)
    if attack == "c′":
        return solver.derive(M, G, C.flatten(0, 1), lamb=DERIVE).view_as(C)
    if attack == "nearest reachable":  # the first token is the same in every prompt
        _, found = certificate.bound(M, G, C[:, 1:].flatten(0, 1), gamma, beta)
        return torch.cat([C[:, :1], found.view_as(C[:, 1:])], 1)
    return C


@remembered
def _drawn(lab: Lab, names: tuple[str, ...], prompts: tuple[str, ...], seed: int) -> list[tuple]:
    return _draw(lab, names, _encoded(lab, prompts), seed)


def _draw(lab: Lab, names, embeds: Tensor, seed: int) -> list[tuple]:
    """What the pipeline draws of embeddings, a row of N seeds each: an (image, p, hit) per embedding, in one batch."""
    seeds = [seed + n % N for n in range(len(embeds))]
    even = len(embeds) + len(embeds) % 2
    images = generate(lab.pipe, seeds=seeds, embeds=embeds.float(), **_settings(lab) | {"batch_size": even})
    return list(zip(images, *lab.judged(images, names), strict=True))


@remembered
def _settings(lab: Lab) -> dict:
    return config.params()["generate"] | {"steps": STEPS, "progress": False}


def _joined(name: str, drawn: list[tuple]) -> Asked:
    return Asked(name, *(np.stack(part) for part in zip(*drawn, strict=True)))


def picture(result: Result) -> bytes:
    """A PNG of a result: the rows of pictures, the singular values of M - I, and the certificate."""
    fig = Figure(figsize=(10, 6.2), dpi=96, facecolor="white")
    canvas = FigureCanvasAgg(fig)
    state, (low, high) = result.state, result.edited.interval
    rows = {f"{state.concept}\noriginal": result.original}
    rows[f"{state.concept}\n{state.method}\n{state.attack}"] = result.edited
    for name, (before, after) in result.neighbours.items():
        rows |= {f"{name}\noriginal": before, f"{name}\n{state.method}": after}
    _pictures(fig.add_axes((0.12, 0.01, 0.5, 0.98)), rows)
    success = f"{state.attack}: {result.edited.k} of {N} show {state.concept}\n95 %: {low:.2f} to {high:.2f}"
    fig.text(0.72, 0.97, success, va="top", weight="bold")
    _singular_values(fig.add_axes((0.72, 0.55, 0.26, 0.26)), result.sizes)
    _certificate(fig.add_axes((0.72, 0.09, 0.26, 0.28)), result)
    canvas.draw()
    whole, file = PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), BytesIO()
    whole.quantize(256, PIL.Image.Quantize.FASTOCTREE).save(file, "PNG")
    return file.getvalue()


def _pictures(ax, rows: dict[str, Asked]) -> None:
    """Rows of pictures as one image. A frame and a tick: the judge sees what was asked for."""
    size = next(iter(rows.values())).images.shape[1]
    frame = max(1, size // 24)
    side, orange = size + 4 * frame, np.array(to_rgb(figures.PALETTE[3])) * 255
    whole = np.full((len(rows) * side, N * side, 3), 255, np.uint8)
    for line, (label, one) in enumerate(rows.items()):
        for n, (image, hit) in enumerate(zip(one.images, one.hits, strict=True)):
            y, x = line * side + frame, n * side + frame
            if hit:
                whole[y : y + size + 2 * frame, x : x + size + 2 * frame] = orange
                ax.text(x + size, y + 2 * frame, "✓", color=figures.PALETTE[3], ha="right", va="top", weight="bold")
            whole[y + frame : y + frame + size, x + frame : x + frame + size] = image
        text = f"{label}\n{one.k} of {one.n}"
        ax.text(-2 * frame, (line + 0.5) * side, text, ha="right", va="center", fontsize=9)
    ax.imshow(whole, interpolation="bilinear")
    ax.axis("off")


def _singular_values(ax, sizes: np.ndarray) -> None:
    there = sizes[sizes > LEAST]
    ax.set_title(f"singular values of M − I\n{len(there)} of {len(sizes)} are above {LEAST}", fontsize=9)
    ax.semilogy(range(1, len(there) + 1), there, "o", ms=4, color=figures.PALETTE[0])
    ax.yaxis.set_minor_locator(NullLocator())  # ticks take time
    ax.set(ylim=(LEAST, max(10, there.max(initial=0) * 2)), xlim=(0, max(32, len(there) + 2)))
    _plain(ax)


def _certificate(ax, result: Result) -> None:
    title = f"distance to {result.state.concept}, 1: the empty prompt\nnothing reaches into a bar"
    ax.set_title(title, fontsize=9)
    bars = {"any\nprompt": result.certified, "any em-\nbedding": result.any_embedding}
    ax.barh([0, 1], list(bars.values()), height=0.5, color=figures.PALETTE[0], alpha=0.7)
    for y, value in enumerate(bars.values()):
        ax.text(0.03, y, f"{value:.2f}", va="center", fontsize=8)
    ax.plot([result.plain] * 2, [-0.75, 0.35], color="black", lw=2.5)
    ax.axvline(result.other, color="0.35", ls=":")
    right = max(1.4, result.plain + 0.2)
    for y, at, text in ((-0.6, result.plain, "plain word"), (1.6, result.other, f"{result.nearest}, original")):
        side = "left" if at < 0.6 * right else "right"
        ax.text(at, y, f" {text} ", fontsize=8, ha=side, va="center")
    ax.set_yticks([0, 1], list(bars))
    ax.set(xlim=(0, right), ylim=(1.9, -0.9))
    _plain(ax)


def _plain(ax) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


class Described(widgets.Image):
    """An image whose tooltip is its text for those who cannot see it: `widgets.Image` has no alt text.

    description: empty; a browser shows a tooltip of widgets with a description alone.
    """

    description = traitlets.Unicode("").tag(sync=True)


class Explorer(widgets.VBox):
    """Sliders for a State and the picture of its Result, for a notebook's last line. Without a kernel a still picture.

    controls: the widgets by field of State. result: what is shown. lab: by default `course.open()`.
    """

    def __init__(self, lab: Lab | None = None, state: State = State()):
        self.lab, self.result = lab or course.open(), None
        wide = {"continuous_update": False, "style": {"description_width": "6em"}}
        chosen = {"style": wide["style"], "layout": {"width": "18em"}}
        self.controls = {
            "concept": widgets.Dropdown(options=self.lab.world.objects, description="concept", **chosen),
            "method": widgets.Dropdown(options=list(METHODS), description="method", **chosen),
            "attack": widgets.Dropdown(options=ATTACKS, description="attack", **chosen),
            "rounds": widgets.IntSlider(min=ROUNDS[0], max=ROUNDS[1], description="rounds", **wide),
            "log_lamb": widgets.FloatSlider(
                min=LOG_LAMB[0], max=LOG_LAMB[1], step=0.25, description="log₁₀ λ", **wide
            ),
            "seed": widgets.IntSlider(min=0, max=95, step=N, description="seed", **wide),
        }
        for name, control in self.controls.items():
            control.value = getattr(state, name)
            control.observe(self._update, "value")
        self.image = Described(format="png")
        self.text, self.code = widgets.HTML(), widgets.HTML()
        some = list(self.controls.values())
        boxes = [widgets.VBox(some[:3]), widgets.VBox(some[3:])]
        super().__init__([widgets.HBox(boxes), self.image, self.text, self.code])
        self._update()

    def _update(self, _=None) -> None:
        state = State(**{name: control.value for name, control in self.controls.items()})
        for name in ("rounds", "log_lamb"):
            self.controls[name].disabled = name not in METHODS[state.method]
        self.text.value = '<p role="status">drawing …</p>'
        try:
            self.result = show(self.lab, state)
        except ValueError as error:
            self.text.value = f'<p role="status">not possible: {html.escape(str(error))}</p>'
            self.image.value, self.code.value = b"", ""
            return
        self.image.value, self.image.tooltip = picture(self.result), self.result.says
        self.text.value = f'<p role="status">{html.escape(self.result.says)}</p>'
        self.code.value = f"<pre>{html.escape(self._lines())}</pre>"

    def _lines(self) -> str:
        return f"eraser = {self.result.code}\nshow(lab, {self.result.state})"

    def _repr_mimebundle_(self, **kwargs) -> dict:
        """The widget, and beside it what can be read without a kernel: the picture as it is now, with its words."""
        source = base64.b64encode(self.image.value).decode()
        still = f'<img alt="{html.escape(self.image.tooltip or "")}" src="data:image/png;base64,{source}">'
        return super()._repr_mimebundle_(**kwargs) | {"text/html": f"{still}\n{self.code.value}"}
