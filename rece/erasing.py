"""Erasure: the UCE start and the rounds of RECE, published or anchored, for a pipeline and its concepts."""

import platform
import weakref
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from rece import certificate, families, layers, solver
from rece.eraser import Eraser

SD_TOKEN = 768.0  # squared norm of a Stable Diffusion 1.x token, the scale that the paper's lambdas belong to
MAX_ROUNDS = 20  # of rounds="auto"
LEAST_RISE = 0.03  # of the certified distance, relative, that counts as one for rounds="auto": the knee of its curve
PATIENCE = 2  # rounds without such a rise that end rounds="auto"
BY_ROWS = 2  # widths d: up to so many token rows are no more work and memory than sums over them, see `_tokens`


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    rounds: int | str = 3,
    anchored: bool = False,
    lamb: float = 0.1,
    erase_scale: float = 1.0,
    preserve_scale: float = 0.1,
    derive_lamb: float = 0.1,
    reg: str = "zero",
    uce_lamb: float = 0.5,
    uce_erase_scale: float = 1.0,
    uce_preserve_scale: float = 1.0,
    preserve_uce: list[str] | None = None,
    preserve_rounds: list[str] | None = None,
    others: list[str] | None = None,
    relative: bool = False,
    uce_tokens: str = "rest",
    pooled: bool = True,
    progress: bool = True,
) -> Eraser:
    """Compute the eraser of one or more concepts; the pipeline is read, not changed.

    The defaults are the paper's nudity setting. The UCE start matches, for each concept, the tokens from its last
    word on with those of its target, trimmed to equal length. Each round then derives, for every token row of every
    concept, the embedding that brings the concept back, and maps all of them jointly to all rows of the targets.
    Published rounds edit the edited weights.

    concept: one text or several, erased jointly. target: one text for all of them, or one each.
    preserve: texts to keep. They are added to [""] in the UCE start and, in the rounds, replace [" "] once per
        concept by ["", *preserve], as the official scripts do. preserve_uce and preserve_rounds set either list
        outright.
    rounds: 0 is plain UCE. "auto" stops by certificate, asking no label and no prompt: after the first step at which
        no prompt's token can come as close to any concept's word token as the nearest of `others` already is, or else
        with the last round that raised the least certified distance by LEAST_RISE before PATIENCE rounds in a row did
        not, or after MAX_ROUNDS.
    anchored: solve every round again from the original weights, with the UCE start's rows and all derived rows so far,
        where the published form edits the edited weights and constrains the newest rows only (ours).
    others: innocent concepts that rounds="auto" compares with; they do not enter the edit (`preserve` does).
    lamb, erase_scale, preserve_scale: of each round's edit. uce_lamb, uce_erase_scale, uce_preserve_scale: of the UCE
        start (its script lowers uce_preserve_scale to max(0.1, 1 / n) where n texts are preserved; here it is what
        you give).
    derive_lamb, reg: of the derived embedding, see `solver.derive`; reg="target" pulls towards the concept's target.
    uce_tokens: which tokens the UCE start edits and preserves. "rest" is the form above. "last" is the form of UCE's
        code of 2025: the last word's token alone, of concept, target and preserved texts alike (there target "" and
        no preserved text by default: preserve_uce=[]).
    pooled: where the model reads a pooled prompt embedding beside the tokens (SDXL, SD3, FLUX), edit that path too,
        by the same formulas and numbers with one row per text. UCE's code does so for FLUX and not for SDXL.
    relative: give every lambda relative to the text space: with s = |token|^2 / 768, averaged over the tokens of ""
        and about 1 for SD 1.x, lamb and uce_lamb are multiplied by s and derive_lamb, which has the unit of a squared
        weight, is divided by it. Then the result does not depend on the unit in which a model measures its embeddings.
    progress: show a bar if it takes more than a second.

    Returns an Eraser; its history holds the map after the UCE start and after each round. Computed in float64 on the
    device of the pipeline (CPU for MPS), from the pipeline's original weights. The embeddings have the text encoder's
    precision. Many concepts (more than BY_ROWS * d token rows: 20 or more in SD 1.x) are encoded a few at a time and
    enter as (d, d) sums over their tokens, so that memory and the rounds do not grow with them; rounding apart it is
    the same edit.
    Raises TypeError or ValueError naming the parameter on an empty concept, target counts that do not match, numbers
    out of range, a pipeline that carries an eraser, an unsupported or broken model, or ill-conditioned systems.
    Source: RECE (arXiv 2407.12383), UCE (arXiv 2308.14761) and RECE's official code; solved through one map (ours).
    """
    settings = {name: value for name, value in locals().items() if name not in ("pipe", "concept", "progress")}
    concepts = layers.concepts_of(_texts(concept, "concept"))
    targets = [target] * len(concepts) if isinstance(target, str) else _texts(target, "target")
    if len(targets) != len(concepts):
        raise ValueError(
            f"target must be one text or one per concept: {len(targets)} targets for {len(concepts)} concepts"
        )
    preserve = None if preserve is None else _texts(preserve, "preserve")
    for_start = ["", *(preserve or [])] if preserve_uce is None else _texts(preserve_uce, "preserve_uce")
    for_rounds = [" "] * len(concepts) if preserve is None else ["", *preserve]
    if preserve_rounds is not None:
        for_rounds = _texts(preserve_rounds, "preserve_rounds")
    auto = rounds == "auto"
    if not auto and (isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0):
        raise ValueError(f'rounds must be a whole number, 0 or more, or "auto", not {rounds!r}')
    if others is not None:
        others = _texts(others, "others")
        if not auto:
            raise ValueError('others is read by rounds="auto" alone: leave it out, or set rounds')
    if uce_tokens not in ("rest", "last"):
        raise ValueError(f'uce_tokens must be "rest" or "last", not {uce_tokens!r}')
    if reg not in solver.REGULARISERS:
        raise ValueError(f"reg must be one of {', '.join(solver.REGULARISERS)}, not {reg!r}")
    for name in ("lamb", "erase_scale", "derive_lamb", "uce_lamb", "uce_erase_scale"):
        solver.positive(settings[name], name)
    for name in ("preserve_scale", "uce_preserve_scale"):
        solver.positive(settings[name], name, or_zero=True)
    if layers.fused(pipe) is not None:
        raise ValueError("the pipeline carries an eraser: remove it before computing another one")

    settings |= {"target": targets, "preserve_uce": for_start, "preserve_rounds": for_rounds}
    paths = families.paths(pipe) if pooled else ("tokens",)
    limit = MAX_ROUNDS if auto else rounds
    with tqdm(total=(3 + limit) * len(paths), desc="erase", delay=1, leave=False, disable=not progress) as steps:
        solved = {path: _solve(pipe, path, concepts, settings, steps) for path in paths}
    history, scale = solved["tokens"]
    provenance = {
        **origin(pipe),
        "concepts": concepts,
        **settings,
        "rounds_run": len(history) - 1,
        "token_scale": scale,
    }
    eraser = Eraser(history[-1], provenance, history, solved["pooled"][0][-1] if "pooled" in solved else None)
    eraser._pipe = weakref.ref(pipe)
    return eraser


def _solve(
    pipe: DiffusionPipeline, path: str, concepts: list[str], settings: dict, steps: tqdm
) -> tuple[list[Tensor], float]:
    """The maps of one path after the UCE start and after each round, and the path's token scale.

    settings: the keywords of `erase`, with one target per concept and both preserve lists.
    """
    lamb, uce_lamb, derive_lamb = (settings[name] for name in ("lamb", "uce_lamb", "derive_lamb"))
    anchored, auto = settings["anchored"], settings["rounds"] == "auto"
    norm, limit = (layers.final_norm(pipe), MAX_ROUNDS) if auto else (None, settings["rounds"])
    G = layers.gram(pipe, path)
    steps.update()
    pairs = list(zip(concepts, settings["target"], strict=True))
    erased, tokens, words = _tokens(pipe, path, pairs, settings, G.device, not steps.disable)
    PP_start, PP_rounds = _preserved(pipe, path, settings, not steps.disable)
    scale = _token_scale(layers.encode(pipe, [""], path=path)) if settings["relative"] else 1.0
    steps.update()

    scales = {name: settings[f"uce_{name}"] for name in ("erase_scale", "preserve_scale")}
    with _remedy("uce_lamb"):
        M = solver.edit_map_of_sums(erased.KK, erased.KR, PP_start, lamb=uce_lamb * scale, **scales)
    history = [M]
    steps.update()
    if auto:
        others = [text for text in settings["others"] or [] if text not in concepts]
        enough = _nearest(pipe, G, words, others, not steps.disable)
        (reached, done), best = _certified(M, G, words, norm, enough), 0
        most = reached
    scales = {name: settings[name] for name in ("erase_scale", "preserve_scale")}
    while len(history) <= limit and not (auto and done):
        with _remedy("derive_lamb"):
            derived = tokens.derive(M, G, lamb=derive_lamb / scale, reg=settings["reg"])
        erased = erased + derived if anchored else derived
        edit = solver.edit_map_of_sums(erased.KK, erased.KR, PP_rounds, lamb=lamb * scale, **scales)
        M = edit if anchored else M @ edit
        history.append(M)
        steps.update()
        if auto:
            before, (reached, done) = reached, _certified(M, G, words, norm, enough)
            if done or reached >= max(most, before * (1 + LEAST_RISE)):
                most, best = reached, len(history) - 1
            elif len(history) - 1 >= best + PATIENCE:
                break
    return history[: best + 1] if auto else history, scale


def _tokens(
    pipe: DiffusionPipeline,
    path: str,
    pairs: list[tuple[str, str]],
    settings: dict,
    device: torch.device,
    progress: bool,
) -> tuple[solver.Rows | solver.Sums, solver.Rows | solver.Sums, Tensor]:
    """The tokens that the UCE start maps, those that the rounds derive from, and the last word tokens (concepts, d).

    The first two are rows where all positions of all concepts are at most BY_ROWS * d, and otherwise sums, which are
    made of batches of that size, so that memory does not grow with the number of concepts. Counted: with n rows,
    R rounds cost 4 n d^2 (2 R + 1) operations by rows, and 8 n d^2 + 10 R d^3 by sums: the same at n = 2.5 d for one
    round, 1.5 d for three and 1.25 d for many.
    """
    size = max(1, BY_ROWS * layers.width(pipe, path) // layers.positions(pipe, path))
    few = len(pairs) <= size
    if not few:
        pairs = sorted(pairs, key=lambda pair: pair[1])  # so that a target of many concepts is encoded once
    embeds, sums, words = {}, None, []
    for some in layers.batches(pairs, size, progress):
        texts = list(dict.fromkeys(text for side in zip(*some, strict=True) for text in side))
        new = [text for text in texts if text not in embeds]
        embeds = {text: embeds[text] for text in texts if text in embeds}
        if new:
            embeds |= zip(new, layers.encode(pipe, new, path=path, progress=progress).to(device), strict=True)
        start, rounds, word = _rows(pipe, path, some, embeds, settings["uce_tokens"] == "last")
        if few:
            return start, rounds, word
        one = start.sums(), rounds.sums(settings["reg"])
        sums = one if sums is None else (sums[0] + one[0], sums[1] + one[1])
        words.append(word)
    return *sums, torch.cat(words)


def _rows(
    pipe: DiffusionPipeline, path: str, pairs: list[tuple[str, str]], embeds: dict[str, Tensor], last: bool
) -> tuple[solver.Rows, solver.Rows, Tensor]:
    """The same of concepts whose and whose targets' embeddings are known. last: the start takes last words alone."""
    C = torch.stack([embeds[concept] for concept, _ in pairs])
    T = torch.stack([_filled(embeds[target]) for _, target in pairs])
    if last:
        cuts = [tuple(layers.last_words(pipe, text, path) for text in pair) for pair in pairs]
    else:
        cuts = [layers.matched(pipe, *pair, path) for pair in pairs]
    K_start = torch.cat([C[n, rows] for n, (rows, _) in enumerate(cuts)])
    T_start = torch.cat([T[n, rows] for n, (_, rows) in enumerate(cuts)])
    words = torch.stack([C[n, rows[0]] for n, (rows, _) in enumerate(cuts)])
    C, T = C.flatten(0, 1), T.flatten(0, 1)
    read = C.any(-1)  # positions that the model masks out are zero
    return solver.Rows(K_start, T_start), solver.Rows(C[read], T[read]), words


def _preserved(
    pipe: DiffusionPipeline, path: str, settings: dict, progress: bool
) -> tuple[Tensor | None, Tensor | None]:
    """P^T P of the UCE start and of the rounds, (d, d); None where no text is preserved."""
    start, rounds, last = settings["preserve_uce"], settings["preserve_rounds"], settings["uce_tokens"] == "last"
    PP = layers.encode_gram(pipe, start, path=path, last=last, progress=progress) if start else None
    if rounds == start and not last:
        return PP, PP
    return PP, layers.encode_gram(pipe, rounds, path=path, progress=progress) if rounds else None


def _filled(T: Tensor) -> Tensor:
    """A target (positions, d) whose masked positions, which are zero, are filled up with its last one: a concept may
    be longer than its target."""
    read = T.any(-1).nonzero()[:, 0]
    return T if len(read) in (0, len(T)) else torch.where(T.any(-1)[:, None], T, T[read[-1]])


def _token_scale(embeds: Tensor) -> float:
    """Mean squared norm of the tokens that are read, in units of SD_TOKEN."""
    tokens = embeds.flatten(0, 1)
    return tokens[tokens.any(-1)].square().sum(-1).mean().item() / SD_TOKEN


def _certified(M: Tensor, G: Tensor, words: Tensor, norm: tuple, enough: Tensor) -> tuple[float, bool]:
    """The least certified distance of the word tokens (n, d), and whether each one's has reached `enough` (n,)."""
    distance, _ = certificate.bound(M, G, words, *norm[:2], eps=norm[2])
    return distance.min().item(), bool((distance >= enough).all())


def _nearest(pipe: DiffusionPipeline, G: Tensor, words: Tensor, others: list[str], progress: bool) -> Tensor:
    """The distance from each word token (n, d) to the nearest word token of `others`; infinite if there are none."""
    found = torch.full_like(words[:, 0], torch.inf)
    for some in layers.batches(others, 64, progress):
        last = torch.tensor([[layers.last_word(pipe, text)] for text in some])
        embeds = layers.encode(pipe, some)
        parts = [certificate.nearest(part, embeds, last.expand(-1, len(part)), G)[0] for part in words.split(64)]
        found = torch.minimum(found, torch.cat(parts))
    return found


def _texts(value: str | list[str], name: str) -> list[str]:
    texts = [value] if isinstance(value, str) and name == "concept" else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a list of texts, not {value!r}")
    return list(texts)


@contextmanager
def _remedy(name: str):
    """Lets the solver's advice name the keyword of `erase` that its lamb came from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("raise lamb", f"raise {name}")) from None


def origin(pipe: DiffusionPipeline) -> dict:
    """What a pipeline is and with which versions it is worked on, for an eraser's provenance."""
    return {
        "base_model": _base_model(pipe),
        "pipeline": type(pipe).__name__,
        "text_encoders": layers.encoders(pipe),
        "versions": _versions(),
    }


def _base_model(pipe: DiffusionPipeline) -> str:
    """The name the pipeline was loaded by; of a local folder only its last part."""
    name = str(pipe.config.get("_name_or_path") or "unnamed")
    return Path(name).resolve().name if Path(name).exists() else name


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("rece", "torch", "diffusers", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            versions[package] = "not installed"
    return versions
