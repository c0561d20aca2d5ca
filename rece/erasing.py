"""Erasure: the UCE start and the rounds of RECE, published or anchored, for a pipeline and its concepts."""

import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from rece import families, layers, solver, texts
from rece.certificate import MAX_ROUNDS, until_certified
from rece.edits import check_unedited
from rece.eraser import Eraser, origin

MOST_ROUNDS = 1000  # far beyond those after which nothing is left to erase
MANY, LARGE = 20, 1e6  # rounds and lambdas beyond which `erase` says what they do


def _check_numbers(numbers, name: str, positive: tuple[str, ...]) -> None:
    for number in positive:
        solver.positive(getattr(numbers, number), f"{name}.{number}")
    solver.positive(numbers.preserve_scale, f"{name}.preserve_scale", or_zero=True)
    if numbers.preserve is not None:
        object.__setattr__(numbers, "preserve", tuple(texts.listed(numbers.preserve, f"{name}.preserve")))


@dataclass(frozen=True)
class Start:
    """The numbers of the UCE start; the defaults are the paper's.

    lamb: ridge towards the original weights, in the unit of a squared token norm. erase_scale, preserve_scale: weights
    of the erased and of the preserved tokens. (UCE's script lowers preserve_scale to max(0.1, 1 / n) where n texts are
    preserved. Here it is what you give.)
    tokens: which tokens are edited and preserved. "rest": those from the last word on, trimmed to the target's length.
    "last": the last word's token alone, of concept, target and preserved texts alike. That is the form of UCE's code
    of 2025, which has target "" and preserves no text by default (preserve=[]).
    preserve: the texts to keep in the start. By default "" and those that `erase` is asked to preserve.
    Raises ValueError or TypeError naming the number.
    """

    lamb: float = 0.5
    erase_scale: float = 1.0
    preserve_scale: float = 1.0
    tokens: str = "rest"
    preserve: tuple[str, ...] | None = None

    def __post_init__(self):
        _check_numbers(self, "start", ("lamb", "erase_scale"))
        if self.tokens not in ("rest", "last"):
            raise ValueError(f'start.tokens must be "rest" or "last", not {self.tokens!r}')


@dataclass(frozen=True)
class Round:
    """The numbers of one round of RECE; the defaults are the paper's.

    lamb, erase_scale, preserve_scale: of the round's edit, as in `Start`. derive_lamb, reg: of the derived embedding,
    see `solver.derive`; derive_lamb has the unit of a squared weight; reg="target" pulls towards the concept's target.
    preserve: the texts to keep in the rounds. By default " " once per concept; or "" and the texts that `erase` is
    asked to preserve, if there are any. The official scripts do the same.
    Raises ValueError or TypeError naming the number.
    """

    lamb: float = 0.1
    erase_scale: float = 1.0
    preserve_scale: float = 0.1
    derive_lamb: float = 0.1
    reg: str = "zero"
    preserve: tuple[str, ...] | None = None

    def __post_init__(self):
        _check_numbers(self, "each", ("lamb", "erase_scale", "derive_lamb"))
        if self.reg not in solver.REGULARISERS:
            raise ValueError(f"each.reg must be one of {', '.join(solver.REGULARISERS)}, not {self.reg!r}")


@dataclass(frozen=True)
class Tokens:
    """What an edit reads of texts: K, T, (n, d), the tokens to erase and their targets; PP, (d, d), P^T P of the
    preserved tokens P, or None. All float64."""

    K: Tensor
    T: Tensor
    PP: Tensor | None = None


def maps(
    G: Tensor, first: Tokens, later: Tokens, start: Start = Start(), each: Round = Round(), anchored: bool = False
) -> Iterator[Tensor]:
    """The map after the UCE start, then the map after each round of RECE, without end: (d, d) float64 each.

    A round derives the embeddings that bring the concept back, and erases them too. Published rounds edit the edited
    weights. Anchored rounds (ours) are solved again from the original weights, with all rows so far.

    G: Gram matrix of the layers, (d, d). first: the tokens of the start. later: those that the rounds derive from.
    Raises ValueError if a system is ill-conditioned. Source: RECE (arXiv 2407.12383) through one map (ours).
    """
    scales = {"erase_scale": start.erase_scale, "preserve_scale": start.preserve_scale}
    M = solver.edit_map(first.K, first.T, first.PP, lamb=start.lamb, **scales)
    yield M
    K, T = first.K, first.T
    scales = {"erase_scale": each.erase_scale, "preserve_scale": each.preserve_scale}
    while True:
        derived = solver.derive(M, G, later.K, lamb=each.derive_lamb, reg=each.reg, target=later.T)
        if anchored:
            K, T = torch.cat([K, derived]), torch.cat([T, later.T])
            M = solver.edit_map(K, T, later.PP, lamb=each.lamb, **scales)
        else:
            M = M @ solver.edit_map(derived, later.T, later.PP, lamb=each.lamb, **scales)
        yield M


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    rounds: int | str = 3,
    start: Start | dict = Start(),
    each: Round | dict = Round(),
    anchored: bool = False,
    others: list[str] | None = None,
    relative: bool = False,
    pooled: bool = True,
    progress: bool = True,
) -> Eraser:
    """Compute the eraser of one or more concepts. The pipeline is read, not changed.

    The defaults are the paper's nudity setting. The UCE start matches, for each concept, the tokens from its last
    word on with those of its target. Each round then derives, for every token row of every concept, the embedding
    that brings the concept back, and maps all of them jointly to all rows of the targets.

    concept: one text or several, erased jointly. target: one text for all of them, or one each.
    preserve: texts to keep, in the start and in the rounds.
    rounds: 0 is plain UCE. "auto" stops by certificate and asks for no label and no prompt. It stops after the first
        step at which no prompt's token can come as close to any concept's word token as the nearest of `others`
        already is, or when further rounds no longer help, see `certificate.until_certified`.
    start, each: the numbers of the UCE start and of each round, see `Start` and `Round`. A dict holds some of them.
    anchored: solve every round again from the original weights, see `maps`.
    others: innocent concepts that rounds="auto" compares with. They do not enter the edit (`preserve` does).
    relative: give every lambda relative to the text space, so that numbers carry from one model to another. Let s be
        |token|^2 / 768, averaged over the tokens of "" (about 1 for SD 1.x). Then each lamb is multiplied by s, and
        derive_lamb, which has the unit of a squared weight, is divided by it.
    pooled: edit the pooled prompt embedding too, where the model reads one (SDXL, SD3, FLUX): by the same formulas and
        numbers, with one row per text. UCE's code does so for FLUX and not for SDXL.
    progress: show a bar if it takes more than a second.

    Returns an Eraser; its history holds the map after the UCE start and after each round. Computed in float64 on the
    device of the pipeline (CPU for MPS), from the pipeline's original weights. The embeddings have the text encoder's
    precision. Of many concepts (more than ROW_LIMIT * d token rows: 20 or more in SD 1.x) the rows are compressed, so
    that memory and rounds do not grow with them; apart from rounding it is the same edit.
    Warns beyond MANY rounds or a lamb of LARGE. rounds="auto" needs Stable Diffusion 1.x or 2.x, and raises TypeError
    for others.
    Raises TypeError or ValueError naming the parameter on an empty concept, target counts that do not match, numbers
    out of range, a pipeline that carries an eraser, an unsupported or broken model, or ill-conditioned systems.
    Source: RECE (arXiv 2407.12383), UCE (arXiv 2308.14761) and RECE's official code; solved through one map (ours).
    """
    concepts = texts.concepts_of(concept)
    targets = texts.targets_of(target, concepts)
    preserve = None if preserve is None else texts.listed(preserve, "preserve")
    start, each = _numbers(start, Start, "start"), _numbers(each, Round, "each")
    own = {"preserve": preserve, "start.preserve": start.preserve, "each.preserve": each.preserve}
    if start.preserve is None:
        start = replace(start, preserve=("", *(preserve or [])))
    if each.preserve is None:
        each = replace(each, preserve=(" ",) * len(concepts) if preserve is None else ("", *preserve))
    auto = rounds == "auto"
    if isinstance(rounds, str) and not auto:
        raise ValueError(f'rounds must be a whole number or "auto", not {solver.shown(rounds)}')
    if not auto:
        solver.whole(least=0, most=MOST_ROUNDS, rounds=rounds)
    solver.flags(anchored=anchored, relative=relative, pooled=pooled, progress=progress)
    if others is not None and not auto:
        raise ValueError('others is read by rounds="auto" alone: leave it out, or set rounds')
    others = None if others is None else texts.listed(others, "others")
    check_unedited(pipe)

    texts.check_erased(pipe, concepts, targets, preserve)
    texts.check(pipe, others=others or [], **{name: some or [] for name, some in own.items()})
    erased = [texts.ids(pipe, text) for text in concepts] if others else []
    innocent = [text for text in others or [] if texts.ids(pipe, text) not in erased]

    history = {}
    paths = families.paths(pipe) if pooled else ("tokens",)
    total = (3 + (MAX_ROUNDS if auto else rounds)) * len(paths)
    with tqdm(total=total, desc="erase", delay=1, leave=False, disable=not progress) as bar:
        for path in paths:
            G, scale = layers.gram(pipe, path), texts.token_scale(pipe, path) if relative else 1.0
            bar.update()
            pairs = list(zip(concepts, targets, strict=True))
            last = start.tokens == "last"
            first, later, words = texts.erased_tokens(pipe, path, pairs, G.device, last=last, progress=progress)
            kept = {}
            for preserved, alone in ((start.preserve, last), (each.preserve, False)):
                if preserved and (preserved, alone) not in kept:
                    PP = texts.encode_gram(pipe, list(preserved), path=path, last=alone, progress=progress)
                    kept[preserved, alone] = PP
            first = Tokens(*first, kept.get((start.preserve, last)))
            later = Tokens(*later, kept.get((each.preserve, False)))
            bar.update()
            scaled = replace(start, lamb=start.lamb * scale)
            scaled_each = replace(each, lamb=each.lamb * scale, derive_lamb=each.derive_lamb / scale)
            steps = _told(maps(G, first, later, scaled, scaled_each, anchored), bar)
            if auto:
                history[path] = until_certified(pipe, steps, G, words, innocent, progress)
            else:
                history[path] = list(islice(steps, rounds + 1))
            if path == "tokens":
                token_scale = scale
    provenance = {**origin(pipe), "concepts": concepts, "target": targets, "preserve": preserve, "rounds": rounds}
    for name, numbers in {"start": start, "each": each}.items():
        provenance[name] = asdict(numbers) | {"preserve": list(numbers.preserve)}
    provenance |= {"anchored": anchored, "others": others}
    provenance |= {"relative": relative, "pooled": pooled, "rounds_run": len(history["tokens"]) - 1}
    provenance["token_scale"] = token_scale
    last = history["pooled"][-1] if "pooled" in history else None
    eraser = Eraser(history["tokens"][-1], provenance, history["tokens"], last)
    eraser._pipe = weakref.ref(pipe)
    if MANY < provenance["rounds_run"] or max(start.lamb, each.lamb) > LARGE:
        found = eraser.report(pipe)
        left, drift = max(found["left"].values()), found["drift"]
        warnings.warn(
            f"rounds, lamb: {left:.2f} of a concept's answer is left (1 is untouched), and other texts move by "
            f"{drift:.2f} of their distance to ' ': lower rounds or lamb if that is too much",
            stacklevel=2,
        )
    return eraser


def _told(steps: Iterable[Tensor], bar: tqdm) -> Iterator[Tensor]:
    """The maps, one by one, with a bar, and with the solver's advice in the words of `erase`."""
    name = "start.lamb"
    try:
        for M in steps:
            bar.update()
            yield M
            name = "each.lamb"
    except ValueError as error:
        name = "each.derive_lamb" if "derived" in str(error) else name
        raise ValueError(str(error).replace("raise lamb", f"raise {name}")) from None


def _numbers(given: Start | Round | dict, kind: type, name: str) -> Start | Round:
    if not isinstance(given, dict | kind):
        raise TypeError(f"{name} must be a {kind.__name__} or a dict of its numbers, not {solver.shown(given)}")
    if isinstance(given, kind):
        return given
    known = [field.name for field in fields(kind)]
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ValueError(f"{name} has no number {unknown[0]!r}: it has {', '.join(known)}")
    return kind(**given)
