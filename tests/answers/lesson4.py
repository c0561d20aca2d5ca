"""Answers to the exercises of lesson 4."""

import torch

from answers import asked
from rece import solver
from rece.course.checks import lesson4


def loop(G, K, T, PP, n, lamb, ridge, step=None):
    """Rounds by a step that gets the maps so far, and two functions: the edit of tokens, and c' against a map."""
    maps = [solver.edit_map(K, T, PP, lamb=lamb)]
    for _ in range(n):
        maps.append(step(maps, lambda C: solver.edit_map(C, T, PP, lamb=lamb), lambda M: derive(M, G, K, ridge)))
    return maps


def derive(M, G, C, ridge):
    return solver.derive(M, G, C, lamb=ridge)


def by(step):
    """The loop with a step of one's own."""
    return lambda *given: loop(*given, step=step)


def published(maps, edit, back):
    return maps[-1] @ edit(back(maps[-1]))


def anchored(G, K, T, PP, n, lamb, ridge):
    C, maps = K, [solver.edit_map(K, T, PP, lamb=lamb)]
    for r in range(n):
        C = torch.cat([C, derive(maps[-1], G, K, ridge)])
        maps.append(solver.edit_map(C, T.repeat(r + 2, 1), PP, lamb=lamb))
    return maps


def of_last(G, K, T, PP, n, lamb, ridge):
    C, maps = K, [solver.edit_map(K, T, PP, lamb=lamb)]
    for _ in range(n):
        C = derive(maps[-1], G, C, ridge)
        maps.append(maps[-1] @ solver.edit_map(C, T, PP, lamb=lamb))
    return maps


def size(X, G):
    return (X @ G * X).sum(1)


TRIED = {
    ("published", 0): (asked("horse", 20), asked("zebra or cow", 20)),
    ("published", 8): (asked("horse", 2), asked("zebra or cow", 4)),
    ("anchored", 3): (asked("horse", 3), asked("zebra or cow", 18)),
}

RIGHT = {
    "rounds": (lesson4.rounds, by(published)),
    "drift": (lesson4.drift, lambda M, G, P: (size(P @ M.T - P, G) / size(P, G)).sqrt().mean()),
    "chosen_rounds": (lesson4.chosen, ("anchored", 3), TRIED),
}

WRONG = {
    "rounds": [
        (by(lambda maps, edit, back: edit(back(maps[-1])) @ maps[-1]), "wrong order"),
        (by(lambda maps, edit, back: edit(back(maps[-1]))), "edited already"),
        (by(lambda maps, edit, back: maps[-1] @ edit(back(maps[0]))), "not against that of UCE"),
        (of_last, "not what brings back the last"),
        (
            lambda G, K, *rest: loop(G, K, *rest, step=lambda maps, edit, back: maps[-1] @ edit(K)),
            "nothing is derived",
        ),
        (anchored, "anchored"),
        (lambda *given: loop(*given, step=published)[1:], "after UCE is missing"),
        (lambda *given: loop(*given, step=published)[-1:], "1 maps for 3 rounds"),
        (lambda G, K, T, PP, n, lamb, ridge: loop(G, K, T, PP, n, lamb, 2 * ridge, published), "one by one differ"),
        (lambda *given: [M[:3] for M in loop(*given, step=published)], "shape"),
    ],
    "drift": [
        (lambda M, G, P: (size(P @ M.T - P, G) / size(P, G)).mean(), "squares"),
        (lambda M, G, P: size(P @ M.T - P, G).sqrt().mean(), "divide by the size"),
        (lambda M, G, P: ((P @ M.T - P).norm(dim=1) / P.norm(dim=1)).mean(), "G is missing"),
        (lambda M, G, P: (size(P @ M - P, G) / size(P, G)).sqrt().mean(), "tokens are rows"),
        (lambda M, G, P: size(P @ M.T - P, G).sqrt().sum() / size(P, G).sqrt().sum(), "then the mean"),
        (lambda M, G, P: (size(P @ M.T - P, G) / size(P @ M.T, G)).sqrt().mean(), "before the edit"),
        (lambda M, G, P: (size(P @ M.T - P, G) / size(P, G)).sqrt(), "shape"),
        (lambda M, G, P: 0.1, "you say 0.100"),
    ],
    "chosen_rounds": [
        (("published", 0), TRIED, "brings back 20 of 20"),
        (("published", 8), TRIED, "4 of 20 neighbours"),
        (("anchored", 4), TRIED, "none of those"),
        (3, TRIED, "a form and a number"),
        (("anchored", 3), TRIED | {("anchored", 5): (asked("dog", 0), asked("cat", 20))}, "which is reported"),
    ],
}
