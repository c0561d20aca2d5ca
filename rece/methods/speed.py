"""SPEED: values are edited in the null space of what is preserved (Li et al., ICLR 2026, arXiv 2503.07392).

In closed form, layer by layer, and of each layer the values alone, as its code does by default. Not reproduced: the
published lists of preserved concepts; here they are `preserve`. By default there are none: then `augment` does
nothing, and only tokens of "" stay.
"""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import layers, solver, texts
from rece.edits import Weights
from rece.eraser import origin
from rece.methods._tokens import values


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    ridge: float = 1.0,
    lamb: float = 0.5,
    least: float = 0.1,
    augment: int = 10,
    relative: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Weights:
    """Send the last word tokens of the concepts, C, to those of their targets, A, and move no preserved token.

    W' - W = W (A - C)^T C / n P (I - M K (K^T P M K + lamb I)^-1 K^T P) M, with M = (C^T C / n P + ridge I)^-1. P
    projects on the eigenvectors of the preserved tokens' second moment whose value is below `least`. K are tokens of
    "" that stay: the first one and three means of the others. Preserved are those that the edit without P moves more
    than the mean, and of each of these `augment` copies with noise along the layer's smallest singular direction,
    chosen likewise. relative: ridge, lamb and least are in units of the pipeline's token scale, see `rece.erase`.
    Raises ValueError or TypeError naming the parameter.
    """
    concepts = texts.concepts_of(concept)
    targets = texts.targets_of(target, concepts)
    numbers = {"ridge": ridge, "lamb": lamb, "least": least}
    for name, value in numbers.items():
        solver.positive(value, name)
    solver.whole(least=0, augment=augment)
    solver.whole(least=0, most=2**31, seed=seed)
    weights = values(pipe)
    scale = texts.token_scale(pipe, "tokens") if relative else 1.0
    some = texts.listed(preserve or [], "preserve")
    device = layers.gram(pipe).device
    C, A, R = (texts.last_tokens(pipe, part).to(device) if part else None for part in (concepts, targets, some))
    K = invariant(texts.encode(pipe, [""])[0].to(device))
    random, changes = torch.Generator().manual_seed(seed), {}
    for name, weight in weights.items():
        W = solver.precise(weight)
        kept = None if R is None else retained(W, C, A, R, ridge * scale, augment, random)
        P = null_space(kept, least * scale, len(C.T)).to(C)
        right = C @ P @ refined(C, P, K, ridge * scale, lamb * scale) / len(C)
        changes[f"unet.{name}.weight"] = ((W @ (A - C).T).float(), right.float())
    provenance = {**origin(pipe), "method": "speed", "concepts": concepts, "target": targets, "preserve": preserve}
    provenance |= {**numbers, "augment": augment, "relative": relative, "seed": seed}
    return Weights(changes, provenance)


def refined(C: Tensor, P: Tensor, K: Tensor, ridge: float, lamb: float) -> Tensor:
    """(I - M K (K^T P M K + lamb I)^-1 K^T P) M, see `erase`; K holds a token per row."""
    d, n = C.shape[1], len(C)
    M = torch.linalg.inv(C.T @ C / n @ P + ridge * torch.eye(d, dtype=C.dtype, device=C.device))
    inner = K @ P @ M @ K.T + lamb * torch.eye(len(K), dtype=C.dtype, device=C.device)
    return M - M @ K.T @ torch.linalg.solve(inner, K @ P @ M)


def null_space(R: Tensor | None, least: float, d: int) -> Tensor:
    """The projector on the eigenvectors of mean r r^T over the rows of R whose value is below `least`: (d, d)."""
    if R is None or not len(R):
        return torch.eye(d, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(R.T @ R / len(R))
    vectors = vectors[:, values < least]
    return vectors @ vectors.T


def retained(W: Tensor, C: Tensor, A: Tensor, R: Tensor, ridge: float, augment: int, random) -> Tensor:
    """Those rows of R, and of copies with noise, that the edit without a null space moves more than the mean."""
    change = W @ (A - C).T @ C @ torch.linalg.inv(C.T @ C + len(C) * ridge * torch.eye(len(C.T)).to(C))

    def moved(rows: Tensor) -> Tensor:
        size = (rows @ change.T).norm(dim=1)
        return rows[size >= size.mean()]

    R = moved(R)
    v = torch.linalg.svd(W, full_matrices=True)[2][-1]
    noise = torch.randn(augment * len(R), len(v), generator=random, dtype=v.dtype).to(v)
    return torch.cat([R, moved(R.repeat(augment, 1) + (noise @ v)[:, None] * v)]) if augment else R


def invariant(E: Tensor, means: int = 3, rounds: int = 20) -> Tensor:
    """The first row of E (positions, d), and the means of so many clusters of the others."""
    first, rest = E[:1], E[1:]
    centres = rest[torch.linspace(0, len(rest) - 1, means).round().long()]
    for _ in range(rounds):
        nearest = torch.cdist(rest, centres).argmin(1)
        centres = torch.stack(
            [rest[nearest == n].mean(0) if (nearest == n).any() else centres[n] for n in range(means)]
        )
    return torch.cat([first, centres])
