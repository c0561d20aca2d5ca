"""The guarded eraser: after one solve, no embedding is answered nearer to the concept than its own name is.

RECE looks for the embedding that brings the concept back, erases it, and looks again. While the edit's map is
invertible there is always a next one. So make the answers of a whole subspace impossible. In the space of all layers'
answers, x~ = Q x with Q^T Q = G, the map is an orthogonal projection, I - U U^T. Then |M h - c|_G >= |U^T Q c| for
every h, a prompt's token or not, and the concept's own token attains it: asking plainly is the best attack. No other
map with this bound moves any token less. What a preserved token p pays is |U^T Q p|. So U is chosen to see the concept
and not what is preserved, see `solver.discriminant`.

The bound is about keys and values, for one row that serves all layers. It does not bound what an image shows.
"""

import weakref
from importlib import resources

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from rece import families, layers, solver, texts
from rece.eraser import Eraser, origin

NEUTRAL = 0.2  # share of " " and "" in what is preserved: they are a part of every guided picture
ENERGY = 0.99  # of the concept's answers, that the guarded directions hold by default
DRIFT = 0.2  # how far preserved texts may move on average, as a share of their distances to " ", if mu is not given
MUS = tuple(5 * 10 ** (-step / 8) for step in range(17))  # what mu is then chosen from: more than 5 guards hardly more
SAME_MEANING = 0.7  # cosine from which on an everyday text means a concept, and is not preserved
REPORTED = 10  # preserved texts that the report tells of


def guard(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    synonyms: list[str] | dict[str, list[str]] | None = None,
    target: str | list[str] | None = None,
    preserve: list[str] | None = None,
    mu: float | None = None,
    rank: int | None = None,
    oblique: float | None = None,
    pooled: bool = True,
    progress: bool = True,
) -> Eraser:
    """Compute the guarded eraser of one or more concepts, jointly. The pipeline is read, not changed.

    concept: one text or several. synonyms: further texts of the concepts, such as other words or contexts ("a cat in
        noto style"): one list for one concept, or a list per concept. More texts guard more, and cost more.
    target: by default the concept is left to whatever allowed answer is nearest. A text (one for all or one each) is
        drawn instead of the concept. Every other embedding then moves more than the bound needs.
    preserve: texts to keep. By default the words and captions of `everyday`, without those that mean a
        concept, see `without`.
    mu: the one number that trades guard against drift, in units of the mean squared answer to what is preserved. By
        default the largest of MUS with which preserved texts move no more than DRIFT on average.
    rank: how many directions are guarded. By default as many as there are concepts, or as many as hold ENERGY of the
        concepts' answers if these are more.
    oblique: 0 is the orthogonal form, 1 the oblique one, see `solver.oblique`. By default 0, or 1 with a target.
    pooled: guard the pooled prompt embedding too, where the model reads one, by the same numbers.
    progress: show a bar if it takes more than a second.

    Returns an Eraser. Its provenance holds a `report`: `guard`, for each concept the bound at its last word token as a
    share of the distance to the target; `drift`, the mean movement of the preserved texts; and `moved`, that of the
    REPORTED ones nearest to a concept. A text moves by the distance between the answers to the token after its last
    word before and after, as a share of that token's distance to " ".
    Computed in float64 on the device of the pipeline (CPU for MPS) from its original weights. The Gram matrix and its
    factor are kept while the weights stay the same.
    Raises TypeError or ValueError naming the parameter. Source: ours, see above.
    """
    concepts = texts.concepts_of(concept)
    words = _further(concepts, synonyms)
    targets = [target or " "] * len(concepts) if isinstance(target, str | None) else texts.listed(target, "target")
    if len(targets) != len(concepts):
        raise ValueError(
            f"target must be one text or one per concept: {len(targets)} targets for {len(concepts)} concepts"
        )
    kept, left_out = None if preserve is None else texts.listed(preserve, "preserve"), []
    share = float(target is not None) if oblique is None else oblique
    if mu is not None:
        solver.positive(mu, "mu")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be a whole number, 1 or more, not {rank!r}")
    if layers.fused(pipe) is not None:
        raise ValueError("the pipeline carries an eraser: remove it before computing another one")

    maps, numbers, reports = {}, {}, {}
    paths = families.paths(pipe) if pooled else ("tokens",)
    with tqdm(total=2 * len(paths), desc="guard", delay=1, leave=False, disable=not progress) as bar:
        if kept is None:
            kept, left_out = without(pipe, everyday(), [text for some in words for text in some])
        for path in paths:
            Q, back = layers.answers(pipe, path)
            bar.update()
            pairs = [(text, aim) for some, aim in zip(words, targets, strict=True) for text in some]
            _, (K, T), _ = texts.erased_tokens(pipe, path, pairs, Q.device, progress=progress)
            D = _leading((K - T) @ Q.T, rank, len(concepts))
            PP = Q @ _preserved(pipe, kept, path, progress).to(Q) @ Q.T
            X, neutral = (_ends(pipe, some, path).to(Q) @ Q.T for some in (kept or [" "], [" "]))
            away = (X - neutral).norm(dim=1).clamp(min=1e-6 * neutral.norm())
            for number in MUS if mu is None else (mu,):
                U = solver.discriminant(D, PP, mu=number)
                E = solver.oblique(U, D, share)
                moved = (X @ U @ E.T).norm(dim=1) / away
                if moved.mean() <= DRIFT:
                    break
            maps[path], numbers[path] = solver.guard_map(Q, back, U, E), {"mu": number, "rank": U.shape[1]}
            C, T = (texts.at_last_words(pipe, some, path).to(Q) @ Q.T for some in (concepts, targets))
            guarded = (C @ U).norm(dim=1) / (C - T).norm(dim=1)
            nearest = torch.cdist(X, C).min(1).values.argsort()[:REPORTED].tolist() if kept else []
            reports[path] = {"guard": dict(zip(concepts, guarded.tolist(), strict=True)), "drift": moved.mean().item()}
            reports[path]["moved"] = {kept[n]: moved[n].item() for n in nearest}
            bar.update()
    provenance = {**origin(pipe), "method": "guard", "concepts": concepts, "target": targets}
    provenance |= {"synonyms": {name: some[1:] for name, some in zip(concepts, words, strict=True) if some[1:]}}
    provenance |= {"preserve": preserve, "left_out": left_out, **numbers["tokens"], "oblique": share, "pooled": pooled}
    eraser = Eraser(maps["tokens"], provenance | {"report": reports["tokens"]}, None, maps.get("pooled"))
    eraser._pipe = weakref.ref(pipe)
    return eraser


def everyday() -> list[str]:
    """Some twelve hundred everyday words and short captions, which `guard` preserves by default: our own choice."""
    return resources.files("rece").joinpath("everyday.txt").read_text("utf-8").splitlines()


def without(pipe: DiffusionPipeline, listed: list[str], concepts: list[str]) -> tuple[list[str], list[str]]:
    """The listed texts that mean none of the concepts, and those that mean one.

    A text means a concept if it names it, or if what the layers answer to the tokens after their last words has a
    cosine of SAME_MEANING or more. Both answers are taken from their mean over the list, which all texts share.
    """
    Q, _ = layers.answers(pipe)
    X, C = (_ends(pipe, some).to(Q) @ Q.T for some in (listed, concepts))
    same = (normalize(X - X.mean(0)) @ normalize(C - X.mean(0)).T >= SAME_MEANING).any(1).tolist()
    named = [any(f" {concept.lower()} " in f" {text.lower()} " for concept in concepts) for text in listed]
    out = [text for text, *reasons in zip(listed, same, named, strict=True) if any(reasons)]
    return [text for text in listed if text not in set(out)], out


def _further(concepts: list[str], synonyms: list[str] | dict[str, list[str]] | None) -> list[list[str]]:
    """For each concept all of its texts, its name first."""
    if isinstance(synonyms, dict):
        unknown = [name for name in synonyms if name not in concepts]
        if unknown:
            raise ValueError(f"synonyms: {unknown[0]!r} is none of the concepts")
    elif synonyms and len(concepts) > 1:
        raise ValueError("synonyms must be a dict with a list per concept where there are several concepts")
    lists = synonyms if isinstance(synonyms, dict) else dict.fromkeys(concepts, synonyms or [])
    return [[name, *texts.listed(lists.get(name, []), "synonyms")] for name in concepts]


def _leading(R: Tensor, rank: int | None, least: int) -> Tensor:
    """The right-singular directions of R (n, k) that are guarded: `rank`, or as many as hold ENERGY but `least`.

    Raises ValueError if there is none.
    """
    _, sizes, right = torch.linalg.svd(R, full_matrices=False)
    there = int((sizes > 1e-9 * sizes[0]).sum())
    if there == 0:
        raise ValueError("concept: its target is the same text, so there is nothing to erase")
    energy = sizes.square().cumsum(0)
    enough = max(least, int((energy < ENERGY * energy[-1]).sum()) + 1)
    return right[: min(rank or enough, there)].T


def _preserved(pipe: DiffusionPipeline, kept: list[str], path: str, progress: bool) -> Tensor:
    """The second moment of the preserved tokens, a share of NEUTRAL being of those of " " and "": (d, d)."""
    neutral = texts.encode_gram(pipe, [" ", ""], path=path) / 2
    if not kept:
        return neutral
    named = texts.encode_gram(pipe, kept, path=path, progress=progress) / len(kept)
    return (1 - NEUTRAL) * named + NEUTRAL * neutral


def _ends(pipe: DiffusionPipeline, some: list[str], path: str = "tokens") -> Tensor:
    """Each text's token after its last word, where the whole text has been read: (texts, d)."""
    return texts.at_last_words(pipe, some, path, after=1)
