"""Checks of lesson 3: is it gone? The derived embedding."""

from collections.abc import Callable

import torch
from torch import Tensor

from rece.course.checks import check, mistaken, near, random, shaped


@check
def derive(mine: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> tuple[bool, str]:
    """derive(M, G, c, lamb): the gradient over all layers is zero, and no embedding nearby is better."""
    worst = 0.0
    for seed, lamb in enumerate((0.02, 0.7)):
        layers = [random(rows, 9, seed=seed + rows) for rows in (4, 11, 8)]
        G = sum(W.T @ W for W in layers)
        M, c = torch.eye(9, dtype=torch.float64) + 0.4 * random(9, 9, seed=seed), random(9, seed=50 + seed)
        found = shaped(mine(M, G, c, lamb), c, "your c'")

        def loss(x: Tensor, layers=layers, M=M, c=c, lamb=lamb) -> Tensor:
            away = sum((W @ M @ x - W @ c).square().sum() for W in layers)
            return away + lamb * x.square().sum()

        def made(N: Tensor, ridge: float, right: Tensor, c=c) -> Tensor:
            return torch.linalg.solve(ridge * torch.eye(9, dtype=torch.float64) + N, right @ c)

        cause = mistaken(
            found,
            {
                "the M of the answers is transposed: W M x is (W M) x": made(M @ G @ M.T, lamb, M @ G),
                "M^T is missing on the right-hand side": made(M.T @ G @ M, lamb, G),
                "M is missing in the matrix: the edited layers are W M": made(G, lamb, M.T @ G),
                "lamb is missing": made(M.T @ G @ M, 0.0, M.T @ G),
                "lamb squared is not lamb": made(M.T @ G @ M, lamb**2, M.T @ G),
                "G is missing: it stands for all layers": made(M.T @ M, lamb, M.T),
                "this is c itself: the edit answers it with something else": c,
            },
        )
        if cause:
            return False, cause
        x = found.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(x), x)
        at_c = c.clone().requires_grad_()
        worst = max(worst, (slope.norm() / torch.autograd.grad(loss(at_c), at_c)[0].norm()).item())
        steps = random(1000, 9, seed=99) * found.norm() * 0.01
        if min(loss(found + step) for step in steps) < loss(found) * (1 - 1e-9):
            return False, "one of 1,000 small steps from your c' comes nearer: it is no minimum"
    if worst < 1e-8:
        return True, f"the gradient at your c' is {worst:.0e} of that at c, and none of 1,000 small steps is better"
    return False, f"the gradient at your c' is {worst:.1e} of that at c, and should be 0"


@check
def limit(mine: Callable[[Tensor, Tensor, Tensor, float], float]) -> tuple[bool, str]:
    """limit(M, G, c, lamb): a number that |c' - M^-1 c| never exceeds, and that goes to 0 with lamb."""
    for seed in range(20):
        W = random(14, 7, seed=seed)
        G, M = W.T @ W, torch.eye(7, dtype=torch.float64) + 0.1 * random(7, 7, seed=40 + seed)
        S = M.T @ G @ M
        sizes, directions = torch.linalg.eigh(S)
        for x, lamb in [(random(7, seed=80 + seed), 0.1), (directions[:, 0], 3.0), (directions[:, 0], 1e-4)]:
            c = M @ x
            back = torch.linalg.solve(lamb * torch.eye(7, dtype=torch.float64) + S, M.T @ G @ c)
            far, told = (back - x).norm().item(), float(mine(M, G, c, lamb))
            mistakes = {
                "it takes the least singular value of M, and the system is M^T G M": x.norm()
                / torch.linalg.svdvals(M)[-1],
                "it takes the largest singular value, and the least one bounds an inverse": x.norm() / sizes[-1],
                "it takes |c|, and the difference is a matrix times M^-1 c": c.norm() / sizes[0],
                "it takes G in place of M^T G M": x.norm() / torch.linalg.eigvalsh(G)[0],
            }
            cause = mistaken(torch.tensor(told), {cause: lamb * one for cause, one in mistakes.items()})
            if cause:
                return False, cause
            if told < far * (1 - 1e-9):
                return False, f"|c' - M^-1 c| = {far:.2g} at lamb {lamb:g}, and you say at most {told:.2g}"
            if lamb == 1e-4 and told > 2 * far:
                return False, f"it holds, but is {told / far:.1f} times too large where it can nearly be attained"
    return True, "it holds in 60 cases, and is nearly attained along the least singular direction"


@check
def squared_size(mine: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[bool, str]:
    """squared_size(h, gamma, beta): |x|^2 / d of the x that h = gamma x + beta came from, a number per row."""
    x, gamma, beta = random(6, 8, seed=0), 1 + random(8, seed=1).abs(), random(8, seed=2)
    h = gamma * x + beta
    wanted = x.square().mean(1)
    found = shaped(mine(h, gamma, beta), wanted, "your answer")
    cause = mistaken(
        found,
        {
            "divide by d: the mean of the squares is wanted": x.square().sum(1),
            "beta is still in it": (h / gamma).square().mean(1),
            "divide by gamma after beta is taken off": (h - beta).square().mean(1),
            "h is not x: undo gamma and beta first": h.square().mean(1),
            "this is its root": wanted.sqrt(),
        },
    )
    if cause:
        return False, cause
    return (
        (True, "as computed from x itself") if near(found, wanted) < 1e-8 else (False, "it is not |x|^2 / d of h's x")
    )
