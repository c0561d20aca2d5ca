"""The guarded eraser: after one solve, no embedding is answered nearer to the concept than its own name is.

RECE looks for the embedding that brings the concept back, erases it, and looks again. While the edit's map is
invertible there is always a next one. So make the answers of a whole subspace impossible. In the space of all layers'
answers, x~ = Q x with Q^T Q = G, the map is an orthogonal projection, I - U U^T. Then |M h - c|_G >= |U^T Q c| for
every h, a prompt's token or not, and the concept's own token attains it: asking plainly is the best attack. Of all
maps whose answers stay in the same subspace, this one moves every token least. What a preserved token p pays is
|U^T Q p|. So U is chosen to see the concept and not what is preserved, see `solver.discriminant`.

The bound is about keys and values, for one row that serves all layers. It does not bound what an image shows.
"""

import weakref
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from rece import families, layers, solver, texts
from rece.edits import check_unedited
from rece.eraser import Eraser, origin

NEUTRAL = 0.2  # share of " " and "" in what is preserved: they are a part of every guided picture
ENERGY = 0.99  # share of the concepts' answers that the guarded directions hold by default
DRIFT = 0.2  # how far preserved texts may move on average, as a share of their distances to " ", if mu is not given
MUS = tuple(5 * 10 ** (-step / 8) for step in range(17))  # what mu is then chosen from: more than 5 guards hardly more
SAME_MEANING = 0.7  # cosine from which on an everyday text means a concept, and is not preserved
REPORTED = 10  # how many preserved texts the report lists


@dataclass(frozen=True)
class Preserved:
    """What `guard` reads of the preserved texts on one path, in the space of answers of width k.

    PP: (k, k), second moment of the answers to all of their tokens, a share of NEUTRAL being of those of " " and "".
    texts: those that differ from " ". ends: the answers to each one's token after its last word, (texts, k). away:
    the distances from there to " ". near: those to the nearest text of a concept. left_out: texts that mean one.
    """

    PP: Tensor
    texts: list[str]
    ends: Tensor
    away: Tensor
    near: Tensor
    left_out: list[str]

    def moved(self, U: Tensor, E: Tensor) -> Tensor:
        """How far the map of U and E moves each text, as a share of its distance to " "."""
        return (self.ends @ U @ E.T).norm(dim=1) / self.away


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
    preserve: texts to keep. By default the words and captions of `texts.everyday`, without those that mean a concept,
        see `meaning`.
    mu: the one number that trades guard against drift, in units of the mean squared answer to what is preserved. By
        default the largest of MUS with which preserved texts move no more than DRIFT on average, or else the least.
    rank: how many directions are guarded, or fewer if the texts have fewer. By default as many as there are concepts,
        or as many as hold ENERGY of the concepts' answers if these are more; but at most half of all directions.
    oblique: 0 is the orthogonal form, 1 the oblique one, see `solver.oblique`. By default 0, or 1 with a target.
    pooled: guard the pooled prompt embedding too, where the model reads one, by the same rules.
    progress: show a bar if it takes more than a second.

    Returns an Eraser. Its provenance holds a `report`: `guard`, for each concept the bound at its last word token as a
    share of the distance to the target; `drift`, the mean movement of the preserved texts; and `moved`, that of the
    REPORTED ones nearest to a concept. A text moves by the distance between the answers to the token after its last
    word before and after, as a share of that token's distance to " ". (" " itself and "" are not among these texts.)
    Of the pooled path, `pooled_report` holds the same, and its mu and rank.
    Computed in float64 on the device of the pipeline (CPU for MPS) from its original weights. The Gram matrix and its
    factor are kept while the weights stay the same.
    Raises TypeError or ValueError naming the parameter. Source: ours, see above.
    """
    concepts = texts.concepts_of(concept)
    named = texts.with_synonyms(concepts, synonyms)
    target, given = " " if target is None else target, target is not None
    targets = texts.targets_of(target, concepts)
    listed = texts.everyday() if preserve is None else texts.listed(preserve, "preserve")
    share = float(given) if oblique is None else oblique
    solver.fraction(share, "oblique")
    if mu is not None:
        solver.positive(mu, "mu")
    solver.whole(rank=1 if rank is None else rank)
    solver.flags(pooled=pooled, progress=progress)
    check_unedited(pipe)

    texts.check_erased(pipe, concepts, targets, preserve)
    texts.check(pipe, synonyms=[text for some in named for text in some[1:]], preserve=preserve or [])
    pairs = [(text, aim) for some, aim in zip(named, targets, strict=True) for text in some]
    maps, numbers, reports, left_out = {}, {}, {}, []
    paths = families.paths(pipe) if pooled else ("tokens",)
    with tqdm(total=3 * len(paths), desc="guard", delay=1, leave=False, disable=not progress) as bar:
        for path in paths:
            Q, back = layers.answers(pipe, path)
            bar.update()
            D, answered = _erased(pipe, path, Q, pairs, rank, len(concepts), progress)
            bar.update()
            ends = {text: end for (text, _), (_, _, end) in answered.items()}
            kept = _preserved(pipe, path, Q, listed, ends, preserve is None and path == "tokens", progress)
            left_out += kept.left_out
            listed = [text for text in listed if text not in kept.left_out]
            for number in MUS if mu is None else (mu,):
                U = solver.discriminant(D, kept.PP, mu=number)
                E = solver.oblique(U, D, share)
                moved = kept.moved(U, E)
                drift = moved.mean().item() if len(moved) else 0.0
                if drift <= DRIFT:
                    break
            maps[path], numbers[path] = solver.guard_map(Q, back, U, E), {"mu": number, "rank": U.shape[1]}
            words = {concept: answered[concept, aim] for concept, aim in zip(concepts, targets, strict=True)}
            guarded = {concept: ((c @ U).norm() / (c - t).norm()).item() for concept, (c, t, _) in words.items()}
            nearest = {kept.texts[n]: moved[n].item() for n in kept.near.argsort()[:REPORTED].tolist()}
            reports[path] = {"guard": guarded, "drift": drift, "moved": nearest}
            bar.update()
    provenance = {**origin(pipe), "method": "guard", "concepts": concepts, "target": targets}
    provenance |= {"synonyms": {name: some[1:] for name, some in zip(concepts, named, strict=True) if some[1:]}}
    provenance |= {"preserve": preserve, "left_out": left_out, **numbers["tokens"], "oblique": share, "pooled": pooled}
    provenance["report"] = reports["tokens"]
    if "pooled" in reports:
        provenance["pooled_report"] = numbers["pooled"] | reports["pooled"]
    eraser = Eraser(maps["tokens"], provenance, None, maps.get("pooled"))
    eraser._pipe = weakref.ref(pipe)
    return eraser


def meaning(listed: list[str], X: Tensor, concepts: list[str], C: Tensor) -> list[str]:
    """Those of the listed texts that mean one of the concepts.

    A text means a concept if it names it, or if what the layers answer to the tokens after their last words has a
    cosine of SAME_MEANING or more. Both answers are taken from their mean over the list, which all texts share.
    X, C: the answers to these tokens, of the texts, (texts, k), and of the concepts, (concepts, k).
    """
    same = (normalize(X - X.mean(0)) @ normalize(C - X.mean(0)).T >= SAME_MEANING).any(1).tolist()
    named = [texts.names(text, concepts) for text in listed]
    return [text for text, *reasons in zip(listed, same, named, strict=True) if any(reasons)]


def _erased(
    pipe: DiffusionPipeline,
    path: str,
    Q: Tensor,
    pairs: list[tuple[str, str]],
    rank: int | None,
    least: int,
    progress: bool,
) -> tuple[Tensor, dict[tuple[str, str], Tensor]]:
    """D, the directions in which the texts' answers differ most from their targets': (k, r), orthonormal columns.

    The leading right-singular vectors of R Q^T, where R are the rows K - T of all (text, target) pairs. r is `rank`;
    by default as many as hold ENERGY, or `least`, but at most k / 2.
    Returned with it, for each pair, the answers to the text's last word, to its target's, and to the text's token
    after its last word: (3, k).
    Raises ValueError if a text is its own target, or if D holds all directions there are.
    """
    k, rows, seen, answered = len(Q), [], 0, {}
    few = len(pairs) * texts.positions(pipe, path) <= k
    for some, C, T in texts.embedded(pipe, path, pairs, Q.device, progress):
        names, aims = zip(*some, strict=True)
        tokens = [texts.last_tokens_of(pipe, *one, path) for one in ((names, C), (aims, T))]
        tokens.append(texts.last_tokens_of(pipe, names, C, path, after=1))
        answered |= zip(some, torch.stack(tokens, 1) @ Q.T, strict=True)
        R = (C - T)[C.any(-1)]  # positions that are masked out are zero
        if few:
            rows.append(R)
        else:
            seen = seen + R.T @ R
    for (text, _), (c, t, _) in answered.items():
        if torch.equal(c, t):
            raise ValueError(f"concept: the target of {text!r} is the same text, so there is nothing to erase")
    if few:
        _, sizes, right = torch.linalg.svd(torch.cat(rows) @ Q.T, full_matrices=False)
        energy = sizes.square()
    else:
        energy, right = torch.linalg.eigh(Q @ seen @ Q.T)
        energy, right = energy.flip(0).clamp(min=0), right.T.flip(0)
    there = int((energy > 1e-14 * energy[0]).sum())
    enough = max(least, int((energy.cumsum(0) < ENERGY * energy.sum()).sum()) + 1)
    r = min(there, min(enough, max(1, k // 2)) if rank is None else rank)
    if rank is not None and r == k:
        raise ValueError(f"rank: {rank} is all directions that these layers answer in: choose a smaller rank")
    return right[:r].T, answered


def _preserved(
    pipe: DiffusionPipeline,
    path: str,
    Q: Tensor,
    listed: list[str],
    erased: dict[str, Tensor],
    leave_out: bool,
    progress: bool,
) -> Preserved:
    """What is read of the listed texts, each encoded once. leave_out: do not take those that mean an erased text.

    erased: the answers to the tokens after the last words of the erased texts, (k,) each.
    """
    sums, X = texts.gram_and_ends(pipe, listed, path, progress)
    X, C = X.to(Q) @ Q.T, torch.stack(list(erased.values()))
    neutral = texts.last_tokens(pipe, [" "], path, after=1).to(Q) @ Q.T
    out = meaning(listed, X, list(erased), C) if leave_out else []
    if out:
        sums = sums - texts.encode_gram(pipe, out, path=path, progress=progress)
    PP = texts.encode_gram(pipe, [" ", ""], path=path) / 2
    if len(listed) > len(out):
        PP = (1 - NEUTRAL) * sums.to(PP) / (len(listed) - len(out)) + NEUTRAL * PP
    away = (X - neutral).norm(dim=1)
    there = away > 1e-6 * neutral.norm()
    kept = [n for n, text in enumerate(listed) if there[n] and text not in out]
    near = torch.cdist(X[kept], C).amin(1)
    return Preserved(Q @ PP.to(Q) @ Q.T, [listed[n] for n in kept], X[kept], away[kept], near, out)
