"""What a prompt can reach, tensors in and tensors out: the least distance over all that a LayerNorm can emit.

Computed in float64 on the device of the input, as in `solver`; the set and the bound are ours.
"""

import torch
from torch import Tensor

from rece import solver

STEPS = 200  # of bisection on a logarithmic scale: more than float64 can resolve


def bound(
    M: Tensor, G: Tensor, C: Tensor, gamma: Tensor, beta: Tensor, *, eps: float = 1e-5, least_variance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """min |M h - c|_G over h = gamma x + beta with mean(x) = 0, for every row c of C: (n,) distances and minimisers.

    A LayerNorm divides by sqrt(variance + eps), so |x|^2 = d v / (v + eps) < d, where v is the variance of what it
    reads: over all v that is the whole ball, which is the default and assumes nothing. least_variance: a v below which
    the encoder is known never to go; then only the shell d v / (v + eps) <= |x|^2 <= d counts.

    With x = Q y, Q an orthonormal basis of mean zero, this is min |B y - a| over lo <= |y|^2 <= d, solved on the
    eigenvectors of B^T B: y = (B^T B + mu)^-1 B^T a, where mu >= 0 puts y on the ball's surface, mu <= 0 on the
    shell's inside, and 0 in between; on both spheres it is the global minimum (More and Sorensen 1983).
    M, G: (d, d), G symmetric positive semidefinite; C: (n, d); gamma, beta: (d,). float64, on G's device.
    Raises ValueError if a number is out of range.
    """
    solver.positive(eps, "eps", or_zero=True)
    solver.positive(least_variance, "least_variance", or_zero=True)
    d = G.shape[0]
    values, vectors = torch.linalg.eigh(G)
    root = values.clamp(min=0).sqrt()[:, None] * vectors.T  # root^T root = G
    B = root @ (M * gamma) @ _mean_zero(d).to(G)
    a = (C - beta @ M.T) @ root.T
    lam, V = torch.linalg.eigh(B.T @ B)
    lam = lam.clamp(min=0)
    g = a @ B @ V
    inner = d * least_variance / (least_variance + eps) if least_variance else 0.0
    mu = _secular(lam, g, d**0.5)
    if inner:
        mu = torch.maximum(mu, _secular(lam, g, inner**0.5).clamp(max=0))
    else:
        mu = mu.clamp(min=0)
    divisor = lam + mu[:, None]
    y = torch.where(divisor > 0, g / divisor.clamp(min=torch.finfo(g.dtype).tiny), 0)
    # The hard case: g has no part in the lowest eigenvectors, and what is missing to the sphere is added there.
    short = torch.where(mu < 0, inner, torch.where(mu > 0, float(d), 0.0)) - y.square().sum(1)
    y[:, 0] += torch.where((short > 1e-9 * d) & (divisor[:, 0] <= 0), short.clamp(min=0).sqrt(), 0)
    H = (y @ V.T) @ _mean_zero(d).to(G).T * gamma + beta
    return norm(H @ M.T - C, G), H


def _secular(lam: Tensor, g: Tensor, radius: float) -> Tensor:
    """mu >= -lam[0] with |(lam + mu)^-1 g| = radius, per row of g; -lam[0] where even there it is less (hard case)."""
    shifted = lam - lam[0]
    low = (g[:, 0].abs() / radius).clamp(min=1e-300).log()
    high = (g.norm(dim=1) / radius).clamp(min=1e-300).log() + 1e-9
    low = torch.minimum(low, high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        outside = (g / (shifted + middle.exp()[:, None])).norm(dim=1) > radius
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    return high.exp() - lam[0]


def _mean_zero(d: int) -> Tensor:
    """An orthonormal basis of the vectors of mean zero (Helmert's): (d, d - 1) float64."""
    n = torch.arange(1, d, dtype=torch.float64)
    basis = torch.triu(torch.ones(d, d - 1, dtype=torch.float64))
    basis[torch.arange(1, d), torch.arange(d - 1)] = -n
    return basis / (n * (n + 1)).sqrt()


def norm(X: Tensor, G: Tensor) -> Tensor:
    """|x|_G = sqrt(x^T G x) over the last dimension: (..., d) and (d, d) give (...)."""
    return (X @ G * X).sum(-1).clamp(min=0).sqrt()


def nearest(tokens: Tensor, E: Tensor, at: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """For each of tokens (k, d), the least distance |token - other|_G to the tokens of some texts, and whose it is.

    E: (texts, positions, d), of which text n is read at its own positions at[n], (texts, k) long. Infinite and 0 if
    there are no texts.
    """
    if not len(E):
        return torch.full_like(tokens[:, 0], torch.inf), torch.zeros(len(tokens), dtype=torch.long)
    best = norm(tokens - E[torch.arange(len(E))[:, None], at], G).min(0)
    return best.values, best.indices
