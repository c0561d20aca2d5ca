"""Checks of lesson 6: what can be proven?"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from rece import solver
from rece.course.checks import check, mistaken, near, random, shaped


@check
def emitted(mine: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[bool, str]:
    """emitted(h, gamma, beta): a bool per row, whether a LayerNorm with gamma and beta can emit such a token."""
    d = 12
    z, gamma, beta = random(40, d, seed=0), 0.5 + random(d, seed=1).abs(), random(d, seed=2)
    weak = z * torch.logspace(-3.5, 0, 40, dtype=z.dtype)[:, None]  # eps counts here: |x|^2 is well below d
    other = layer_norm(random(40, d, seed=3), (d,), gamma, beta)
    x = (other - beta) / gamma
    cases = [
        (layer_norm(z, (d,), gamma, beta), True, "refuses a token that a LayerNorm emitted: h = gamma x + beta"),
        (layer_norm(weak, (d,), gamma, beta), True, "refuses a token with |x|^2 < d, and a LayerNorm emitted it: eps"),
        (gamma * (0.9 * x + 0.3) + beta, False, "accepts a token whose x has the mean 0.3"),
        (gamma * 1.05 * x + beta, False, "accepts a token with |x|^2 = 1.1 d"),
        (other + 0.3 * beta, False, "accepts a token that lies beside the ellipsoid: is beta taken off?"),
        (1.5 * other, False, "accepts a token of 1.5 times a possible length"),
    ]
    for h, wanted, wrong in cases:
        found = shaped(mine(h, gamma, beta), torch.zeros(len(h)), "your answer")
        if (found != wanted).any():
            return False, f"it {wrong}"
    return True, "it accepts what a LayerNorm emits, with eps, and refuses tokens beside and outside the ellipsoid"


@check
def below(mine: Callable[[Tensor, Tensor, float, float], float]) -> tuple[bool, str]:
    """below(B, a, size, mu): the least of |B y - a|^2 + mu (|y|^2 - size) over all y."""
    for seed, mu in enumerate((0.3, 2.0, 7.0)):
        B, size = random(9, 6, seed=seed), 2.0
        a = B @ random(6, seed=40 + seed) * 4
        told = torch.as_tensor(float(mine(B, a, size, mu)), dtype=torch.float64)
        stacked = torch.cat([B, mu**0.5 * torch.eye(6, dtype=B.dtype)])
        wanted = torch.cat([a, torch.zeros(6, dtype=B.dtype)])
        y = torch.linalg.lstsq(stacked, wanted[:, None]).solution[:, 0]
        least = (stacked @ y - wanted).square().sum() - mu * size
        free = torch.linalg.lstsq(B, a[:, None]).solution[:, 0]

        def value(y: Tensor, B=B, a=a, mu=mu, size=size) -> Tensor:
            return (B @ y - a).square().sum() + mu * (y.square().sum() - size)

        cause = mistaken(
            told,
            {
                "mu size is missing: the sum holds mu (|y|^2 - size)": least + mu * size,
                "mu size has the wrong sign": least + 2 * mu * size,
                "this is |B y - a|^2 at the minimiser: the term of mu belongs to the sum": (B @ y - a).square().sum(),
                "the y is that of mu = 0: minimise the whole sum": value(free),
                "the y has mu squared: the sum holds mu": value(
                    torch.linalg.solve(B.T @ B + mu**2 * torch.eye(6, dtype=B.dtype), B.T @ a)
                ),
                "this is a root: the sum is of squares": least.clamp(min=0).sqrt(),
            },
        )
        if cause:
            return False, cause
        tried = random(4000, 6, seed=80 + seed)
        tried = tried / tried.norm(dim=1, keepdim=True) * size**0.5
        best = (tried @ B.T - a).square().sum(1).min().item()
        if told > best * (1 + 1e-9):
            return (
                False,
                f"no bound: a y with |y|^2 = size has |B y - a|^2 = {best:.4g}, and you say {told.item():.4g}",
            )
        if near(told, least) > 1e-8:
            return False, f"it holds for 4,000 tried y, but the least of the sum is {least:.4g}, not {told.item():.4g}"
    return True, "equal to a least-squares solution, and below 4,000 tried y for each of three mu"


@check
def guarded(mine: Callable[[Tensor, Tensor, Tensor], tuple[float, Tensor]]) -> tuple[bool, str]:
    """guarded(U, Q, c): the least |M h - c|_G over all h, and an h that attains it, for M of the projection by U."""
    for seed, r in enumerate((1, 3)):
        Q, c = random(8, 8, seed=seed), random(8, seed=20 + seed)
        U = torch.linalg.qr(random(8, r, seed=40 + seed))[0]
        M = solver.guard_map(Q, torch.linalg.inv(Q), U, U)
        given = mine(U, Q, c)
        if not isinstance(given, tuple | list) or len(given) != 2:
            return False, "return two things: the limit, and an embedding that attains it"
        if any(part is None or part is ... for part in given):
            return False, "one of the two things is missing: return the limit, and an embedding that attains it"
        told, h = torch.as_tensor(float(given[0]), dtype=torch.float64), shaped(given[1], c, "your h")
        solved = torch.linalg.lstsq(Q @ M, (Q @ c)[:, None], driver="gelsd").solution[:, 0]
        least = (Q @ M @ solved - Q @ c).norm()
        cause = mistaken(
            told,
            {
                "U lives in the answer space: c must be answered first, by Q": (U.T @ c).norm(),
                "this is the part of the answer that is left: the guarded part is the other one": (
                    Q @ c - U @ (U.T @ Q @ c)
                ).norm(),
                "h = 0 comes so near, and others come nearer": (Q @ c).norm(),
                "this is its square": least.square(),
            },
        )
        if cause:
            return False, cause
        if near(told, least) > 1e-8:
            return False, f"least squares over all h comes to {least:.4g}, and you say {told.item():.4g}"
        far = (Q @ M @ h - Q @ c).norm()
        if near(far, least) > 1e-8:
            return False, f"the limit is right, but your h comes to {far:.4g} only: which token needs no search?"
    return True, "least squares over all h comes to the same number, and your h attains it"
