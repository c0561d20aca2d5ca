"""The guarded eraser layer by layer: an orthogonal projection of each layer's own answers (ours)."""

import warnings

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import families, guarding, layers, solver, texts
from rece.edits import Weights
from rece.eraser import origin


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    mu: float = 3.0,
    rank: int | None = None,
    progress: bool = True,
) -> Weights:
    """W' = (I - U U^T) W in every layer that reads tokens, U = orth((P + mu I)^-1 D).

    P is the second moment of the layer's answers to the preserved texts (and to " " and "", see `rece.guard`); mu is
    in units of its mean; D are the `rank` directions in which its answers to the concepts differ most from those to
    their targets, by default as many as concepts, but at most half of the layer's. Then |W' h - W c| >= |U^T W c| for
    every layer and every h, another one in each layer too: the bound of `rece.guard` is for one h that serves all.
    preserve: as in `rece.guard`. Raises ValueError or TypeError naming the parameter. Source: ours.
    """
    concepts = texts.concepts_of(concept)
    targets = texts.targets_of(target, concepts)
    solver.positive(mu, "mu")
    solver.whole(rank=1 if rank is None else rank)
    left_out = []
    if preserve is None:
        with warnings.catch_warnings(action="ignore"):  # those about the concepts were given
            left_out = guarding.guard(pipe, concepts, progress=progress).provenance["left_out"]
    kept = [text for text in texts.everyday() if text not in left_out] if preserve is None else preserve
    PP = texts.encode_gram(pipe, [" ", ""]) / 2
    if kept:
        mean = texts.encode_gram(pipe, kept, progress=progress) / len(kept)
        PP = (1 - guarding.NEUTRAL) * mean + guarding.NEUTRAL * PP
    pairs, changes = list(zip(concepts, targets, strict=True)), {}
    rows = [(C - T)[C.any(-1)] for _, C, T in texts.embedded(pipe, "tokens", pairs, PP.device, progress)]
    R = torch.cat(rows)
    for name, weight in layers.originals(pipe).items():
        W = solver.precise(weight)
        U = directions(W, PP.to(W.device), R.to(W.device), mu, min(rank or len(concepts), max(1, len(W) // 2)))
        changes[f"{families.part(pipe)}.{name}.weight"] = ((-U).float(), (U.T @ W).float())
    provenance = {**origin(pipe), "method": "guarded_layers", "concepts": concepts, "target": targets}
    provenance |= {"preserve": preserve, "left_out": left_out, "mu": mu, "rank": rank}
    return Weights(changes, provenance)


def directions(W: Tensor, PP: Tensor, R: Tensor, mu: float, rank: int) -> Tensor:
    """U of one layer: (out, r) with orthonormal columns, r at most `rank`. W: (out, d), PP: (d, d), R: (n, d)."""
    _, sizes, right = torch.linalg.svd(R @ W.T, full_matrices=False)
    D = right[: min(rank, int((sizes > 1e-7 * sizes[0]).sum()))].T
    return solver.discriminant(D, W @ PP @ W.T, mu=mu)
