"""Checks of lesson 4: what rounds buy, and what they cost."""

from collections.abc import Callable

import torch
from torch import Tensor

from rece import solver
from rece.course import Asked
from rece.course.checks import check, mistaken, near, random, shaped


def _by_hand(weights: list[Tensor], K: Tensor, T: Tensor, PP: Tensor, n: int, lamb: float, ridge: float) -> list:
    """Each layer's weights after UCE and after each of n rounds, edited one by one: no map and no Gram matrix."""
    eye, edited, found = torch.eye(K.shape[1], dtype=K.dtype), list(weights), []
    for step in range(n + 1):
        erased = K
        if step:
            left = torch.cat([*edited, ridge**0.5 * eye])
            right = torch.cat([*(W @ K.T for W in weights), torch.zeros_like(K.T)])
            erased = torch.linalg.lstsq(left, right).solution.T
        A = torch.linalg.inv(erased.T @ erased + PP + lamb * eye)
        edited = [(V @ T.T @ erased + V @ PP + lamb * V) @ A for V in edited]
        found.append(edited)
    return found


@check
def rounds(mine: Callable[..., list[Tensor]]) -> tuple[bool, str]:
    """rounds(G, K, T, PP, n, lamb, ridge): the maps after UCE and after n rounds edit layers as by hand."""
    worst = 0.0
    for seed, (n, lamb, ridge) in enumerate(((3, 0.5, 0.1), (2, 2.0, 0.4))):
        weights = [random(rows, 8, seed=seed + rows) for rows in (5, 9, 7)]
        K, T, P = random(2, 8, seed=10 + seed), random(2, 8, seed=20 + seed), random(3, 8, seed=30 + seed)
        G, PP = sum(W.T @ W for W in weights), P.T @ P
        maps = mine(G, K, T, PP, n, lamb, ridge)
        if len(maps) == n and n:
            return False, f"{n} maps for {n} rounds: the map after UCE is missing, or the last round"
        if len(maps) != n + 1:
            return False, f"{len(maps)} maps for {n} rounds, and {n + 1} are needed: that after UCE, then one a round"
        found = torch.stack([shaped(M, G, "a map of yours") for M in maps])

        def made(step: Callable, n=n, K=K, T=T, PP=PP, lamb=lamb) -> Tensor:
            some = [solver.edit_map(K, T, PP, lamb=lamb)]
            for _ in range(n):
                some.append(step(some))
            return torch.stack(some)

        def edit(C: Tensor, T=T, PP=PP, lamb=lamb) -> Tensor:
            return solver.edit_map(C, T, PP, lamb=lamb)

        def back(M: Tensor, C: Tensor = K, G=G, ridge=ridge) -> Tensor:
            return solver.derive(M, G, C, lamb=ridge)

        def anchored(some: list[Tensor], K=K, T=T, PP=PP, lamb=lamb, back=back) -> Tensor:
            C = torch.cat([K, *(back(M) for M in some)])
            return solver.edit_map(C, T.repeat(len(some) + 1, 1), PP, lamb=lamb)

        def chained(some: list[Tensor], K=K, edit=edit, back=back) -> Tensor:
            C = K
            for M in some:
                C = back(M, C)
            return some[-1] @ edit(C)

        cause = mistaken(
            found,
            {
                "the maps stand in the wrong order: the edited weights are W M, so edit those": made(
                    lambda some, edit=edit, back=back: edit(back(some[-1])) @ some[-1]
                ),
                "the round's edit alone is no map of the model: it edits weights that are edited already": made(
                    lambda some, edit=edit, back=back: edit(back(some[-1]))
                ),
                "each round must derive against the map so far, and not against that of UCE": made(
                    lambda some, edit=edit, back=back: some[-1] @ edit(back(some[0]))
                ),
                "each round derives what brings back K itself, and not what brings back the last c'": made(chained),
                "nothing is derived: each round erases K again": made(lambda some, edit=edit, K=K: some[-1] @ edit(K)),
                "this is the anchored loop: a published round edits the weights that the last one left": made(
                    anchored
                ),
            },
        )
        if cause:
            return False, cause
        for M, layers in zip(maps, _by_hand(weights, K, T, PP, n, lamb, ridge), strict=True):
            worst = max(worst, *(near(W @ M, V) for W, V in zip(weights, layers, strict=True)))
    if worst < 1e-8:
        return True, f"three layers that are edited one by one, without a map, differ by {worst:.0e}"
    return False, f"layers that are edited one by one differ from your W M by {worst:.1e}, and should not"


@check
def drift(mine: Callable[[Tensor, Tensor, Tensor], float]) -> tuple[bool, str]:
    """drift(M, G, P): the mean over P's rows of |M p - p| / |p|, in all layers' answers."""
    for seed in range(3):
        weights = [random(rows, 6, seed=seed + rows) for rows in (4, 9)]
        G, P = sum(W.T @ W for W in weights), random(5, 6, seed=20 + seed) * torch.arange(1.0, 6.0)[:, None]
        M = torch.eye(6, dtype=torch.float64) + 0.3 * random(6, 6, seed=30 + seed)
        before = torch.cat([P @ W.T for W in weights], 1)
        wanted = ((torch.cat([P @ (W @ M).T for W in weights], 1) - before).norm(dim=1) / before.norm(dim=1)).mean()
        found = shaped(mine(M, G, P), wanted, "your answer")
        moved, turned = P @ M.T - P, P @ M - P

        def size(X: Tensor, G=G) -> Tensor:
            return (X @ G * X).sum(1)

        cause = mistaken(
            found,
            {
                "this is the mean of squares: take the root of each row's ratio": (size(moved) / size(P)).mean(),
                "divide by the size of the answer to p": size(moved).sqrt().mean(),
                "divide by the answer of the model before the edit, and not after": (size(moved) / size(P @ M.T))
                .sqrt()
                .mean(),
                "G is missing: the layers' answers are compared, and not the tokens": (
                    moved.norm(dim=1) / P.norm(dim=1)
                ).mean(),
                "tokens are rows, so M p is a row of P M^T": (size(turned) / size(P)).sqrt().mean(),
                "take each row's ratio first, then the mean": size(moved).sqrt().sum() / size(P).sqrt().sum(),
            },
        )
        if cause:
            return False, cause
        if near(found, wanted) > 1e-8:
            return False, f"the answers of two layers move by {wanted:.3f} on average, and you say {found:.3f}"
    return True, "as the answers of two layers say, one layer after the other"


@check
def chosen(mine: tuple[str, int], tried: dict[tuple[str, int], tuple[Asked, Asked]]) -> tuple[bool, str]:
    """chosen((form, rounds), {(form, rounds): (asked by c', asked for neighbours)}): chosen on horse, and by both."""
    reported = {one.name for pair in tried.values() for one in pair if one.name.split()[0] in ("church", "dog", "cat")}
    if reported:
        return False, f"your table holds {reported.pop()}, which is reported: choose on horse and its neighbours"
    if not isinstance(mine, tuple | list) or len(mine) != 2:
        return False, f"{mine!r} must be a form and a number of rounds, such as {next(iter(tried))}"
    mine = tuple(mine)
    if mine not in tried:
        return False, f"{mine} is none of those that you tried: their rounds are {sorted({n for _, n in tried})}"
    score = {one: (1 - back.rate + kept.rate) / 2 for one, (back, kept) in tried.items()}
    (back, kept), best = tried[mine], max(score.values())
    if score[mine] < best - 0.1:
        what = f"{kept.k} of {kept.n} neighbours are left"
        if 1 - back.rate < kept.rate:
            what = f"c' still brings back {back.k} of {back.n}"
        return (
            False,
            f"after {mine[1]} {mine[0]} rounds {what}: your table holds one that does better on both together",
        )
    return (
        True,
        f"c' brings back {back.k} of {back.n} horses, {kept.k} of {kept.n} neighbours are left: now report dog",
    )
