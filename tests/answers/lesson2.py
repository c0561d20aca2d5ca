"""Answers to the exercises of lesson 2."""

import torch

from answers import asked
from rece.course.checks import lesson2


def eye(K):
    return torch.eye(K.shape[1], dtype=K.dtype)


def A(K, P, lamb):
    return lamb * eye(K) + K.T @ K + P.T @ P


VALIDATED = {10.0: (asked("horse", 0), asked("zebra", 2)), 100.0: (asked("horse", 1), asked("zebra", 19))}
VALIDATED[1e4] = asked("horse", 18), asked("zebra", 20)

RIGHT = {
    "edit_map": (lesson2.edit_map, lambda K, T, P, lamb: eye(K) + (T - K).T @ K @ torch.linalg.inv(A(K, P, lamb))),
    "most_rank": (lesson2.most_rank, lambda n, m, d: min(n, d)),
    "chosen": (lesson2.chosen, 100.0, VALIDATED),
}

WRONG = {
    "edit_map": [
        (lambda K, T, P, lamb: RIGHT["edit_map"][1](K, T, P, lamb).T, "transpose"),
        (lambda K, T, P, lamb: RIGHT["edit_map"][1](K, T, P, lamb**2), "squared"),
        (lambda K, T, P, lamb: RIGHT["edit_map"][1](K, T, P, 2 * lamb), "2 lamb"),
        (lambda K, T, P, lamb: eye(K) + (T - K).T @ K @ torch.linalg.pinv(A(K, P, 0)), "lamb is missing"),
        (lambda K, T, P, lamb: RIGHT["edit_map"][1](K, T, 0 * P, lamb), "P is missing"),
        (lambda K, T, P, lamb: RIGHT["edit_map"][1](K, 2 * K - T, P, lamb), "sign"),
        (lambda K, T, P, lamb: RIGHT["edit_map"][1](K, T, P, lamb) - eye(K), "I is missing"),
        (lambda K, T, P, lamb: eye(K), "should be 0"),
        (lambda K, T, P, lamb: K, "shape"),
        (lambda K, T, P, lamb: 1 / 0, "ZeroDivisionError"),
    ],
    "most_rank": [
        (lambda n, m, d: n + m, "preserved tokens"),
        (lambda n, m, d: d, "never have more"),
        (lambda n, m, d: n, "limited by"),
        (lambda n, m, d: n - 1, "random tokens have"),
    ],
    "chosen": [
        (100.0, VALIDATED | {300.0: (asked("church", 0), asked("zebra", 20))}, "church, which is reported"),
        (10.0, VALIDATED, "2 of 20 neighbours"),
        (1e4, VALIDATED, "18 of 20 are still drawn"),
        (50.0, VALIDATED, "none of the numbers"),
    ],
}
