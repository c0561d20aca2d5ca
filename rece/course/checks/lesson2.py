"""Checks of lesson 2: derive UCE yourself."""

from collections.abc import Callable

import torch
from torch import Tensor

from rece.course import Asked
from rece.course.checks import check, mistaken, random, shaped


@check
def edit_map(mine: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> tuple[bool, str]:
    """edit_map(K, T, P, lamb): the gradient of the objective is zero at W M, for every W."""
    worst = 0.0
    for seed, lamb in enumerate((0.03, 0.5, 4.0)):
        K, T, P = random(2, 12, seed=seed), random(2, 12, seed=10 + seed), random(5, 12, seed=20 + seed)
        eye = torch.eye(12, dtype=torch.float64)
        M, W = shaped(mine(K, T, P, lamb), eye, "your M"), random(7, 12, seed=30 + seed)

        def slope(M: Tensor, W=W, K=K, T=T, P=P, lamb=lamb) -> float:
            edited = (W @ M).requires_grad_()
            loss = (edited @ K.T - W @ T.T).square().sum() + (edited @ P.T - W @ P.T).square().sum()
            (found,) = torch.autograd.grad(loss + lamb * (edited - W).square().sum(), edited)
            return found.norm().item()

        def made(*, ridge: float, kept: float = 1.0, K=K, T=T, P=P, eye=eye) -> Tensor:
            A = ridge * eye + K.T @ K + kept * P.T @ P
            return eye + (T - K).T @ K @ torch.linalg.pinv(A)

        right = made(ridge=lamb)
        cause = mistaken(
            M,
            {
                "this is the transpose of M: tokens are rows here, so W K^T holds the answers": right.T,
                "K^T (T - K) and (T - K)^T K are not the same: which of the two stands to the left of A^-1?": eye
                + K.T @ (T - K) @ torch.linalg.inv(lamb * eye + K.T @ K + P.T @ P),
                "lamb is missing from A": made(ridge=0.0),
                "A holds lamb squared, and the objective holds lamb": made(ridge=lamb**2),
                "A holds 2 lamb: the 2 of the derivative stands before every term": made(ridge=2 * lamb),
                "P is missing from A": made(ridge=lamb, kept=0.0),
                "K is moved to T the wrong way round: look at the sign of T - K": 2 * eye - right,
                "the I is missing: without anything to erase M must be I": right - eye,
            },
        )
        if cause:
            return False, cause
        worst = max(worst, slope(M) / slope(eye))
    if worst < 1e-8:
        return True, f"the gradient at your W M is {worst:.0e} of that at W"
    return (
        False,
        f"the gradient at your W M is {worst:.1e} of that at W, and should be 0: set each term's derivative to 0",
    )


@check
def most_rank(mine: Callable[[int, int, int], int]) -> tuple[bool, str]:
    """most_rank(n, m, d): the largest rank of M - I, of n erased and m preserved tokens of width d."""
    for n, m, d in ((2, 3, 10), (4, 1, 10), (1, 6, 10), (9, 2, 6), (3, 3, 3)):
        K, T, P = (random(rows, d, seed=seed) for seed, rows in enumerate((n, n, m)))
        A = 0.1 * torch.eye(d, dtype=torch.float64) + K.T @ K + P.T @ P
        rank, told = (
            torch.linalg.matrix_rank((T - K).T @ K @ torch.linalg.inv(A), rtol=1e-9).item(),
            int(mine(n, m, d)),
        )
        case = f"{n} erased, {m} preserved, width {d}"
        if told < rank:
            return False, f"{case}: you say at most {told}, and random tokens have {rank}"
        if told > rank:
            hint = (
                "preserved tokens stand in A alone, and A is invertible"
                if told >= n + m
                else "what else is it limited by?"
            )
            return False, f"{case}: you say {told}, and random tokens never have more than {rank}: {hint}"
    return True, "no random tokens have more, and all that were tried attain it"


@check
def chosen(mine: float, tried: dict[float, tuple[Asked, Asked]]) -> tuple[bool, str]:
    """chosen(lamb, {lamb: (asked for what is erased, asked for a neighbour)}): chosen on others, and by both."""
    reported = {one.name for pair in tried.values() for one in pair if one.name in ("church", "dog", "cat")}
    if reported:
        return False, f"your table holds {reported.pop()}, which is reported: choose on horse and its neighbours"
    if mine not in tried:
        return False, f"{mine!r} is none of the numbers that you tried: {', '.join(f'{one:g}' for one in tried)}"
    score = {lamb: (1 - erased.rate + kept.rate) / 2 for lamb, (erased, kept) in tried.items()}
    best = max(score, key=score.get)
    erased, kept = tried[mine]
    if score[mine] < score[best] - 0.1:
        what = (
            f"{erased.k} of {erased.n} are still drawn"
            if erased.rate > 0.2
            else f"{kept.k} of {kept.n} neighbours are left"
        )
        return False, f"at {mine:g} {what}: another number of your table does better on both together"
    return (
        True,
        f"on horse {erased.k} of {erased.n} are left, and {kept.k} of {kept.n} neighbours: now report church, once",
    )
