"""Double Projections: the concept goes to its part in a safe subspace, and no preserved token moves (CVPR 2026, arXiv
2604.10032).

Not reproduced: the published lists of safe concepts. The paper edits one concept at a time; of several, ours are
solved together. Its preserved span is here that of the last word tokens of `preserve`. Of a model that reads a pooled
embedding too, that stays as it is.
"""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import layers, solver, texts
from rece.eraser import Eraser, origin
from rece.methods._tokens import spanned


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    safe: str = "preserved",
    directions: int | None = None,
    keep: int | None = None,
    progress: bool = True,
) -> Eraser:
    """M = I + (A - C)^T (X X^T)^-1 X with X = C N, so that M c = a for each concept and M p = p for what is kept.

    C: the concepts' last word tokens. A: their projections on the safe subspace, which the tokens of `preserve`
    (safe="preserved") or of the targets (safe="target") span, or their largest `directions`. N: the projector on the
    complement of the preserved tokens' span, or of its `keep` largest directions. Where the safe subspace lies in what
    is kept, no embedding is answered as a concept was; else one is.
    Raises ValueError naming the parameter, also if a concept lies in what is kept.
    """
    concepts = texts.concepts_of(concept)
    targets, kept = texts.targets_of(target, concepts), texts.listed(preserve or [], "preserve")
    if safe not in ("preserved", "target"):
        raise ValueError(f"safe must be 'preserved' or 'target', not {safe!r}")
    if safe == "preserved" and not kept:
        raise ValueError("preserve must hold a text at least, since the concept goes to what is preserved")
    numbers = {"directions": directions, "keep": keep}
    solver.whole(**{name: 1 if value is None else value for name, value in numbers.items()})
    device = layers.gram(pipe).device
    C = texts.last_tokens(pipe, concepts).to(device)
    P = texts.last_tokens(pipe, kept).to(device) if kept else C.new_zeros(0, C.shape[1])
    S = P if safe == "preserved" else texts.last_tokens(pipe, list(dict.fromkeys(targets))).to(device)
    provenance = {**origin(pipe), "method": "double_projections", "concepts": concepts, "target": targets}
    provenance |= {"preserve": preserve, "safe": safe, **numbers}
    U = spanned(P)[:, :keep] if len(P) else C.new_zeros(C.shape[1], 0)
    return Eraser(edit(C, U, spanned(S)[:, :directions]), provenance)


def edit(C: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """The map of `erase`, (d, d), of concepts C in rows and orthonormal columns of what is kept, U, and safe, V."""
    X = C - C @ U @ U.T
    if not (torch.linalg.svdvals(X)[-1] > 1e-6 * C.norm()):
        raise ValueError("preserve spans a concept's token, so it cannot be erased: preserve fewer texts, or set keep")
    return torch.eye(len(U)).to(C) + (C @ V @ V.T - C).T @ torch.linalg.solve(X @ X.T, X)
