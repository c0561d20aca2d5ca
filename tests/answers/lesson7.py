"""Answers to the exercises of lesson 7."""

from math import sqrt

import numpy as np

from rece.course.checks import lesson7


def roots(k, n, z=1.96, a=1.0):
    centre, half = k / n + z**2 / (2 * n), z * sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + a * z**2 / n), (centre + half) / (1 + a * z**2 / n)


def wald(k, n):
    half = 1.959964 * sqrt(k / n * (1 - k / n) / n)
    return k / n - half, k / n + half


def means(table, draws):
    return table[draws].mean((1, 2))


def pictures(table, draws):
    random = np.random.default_rng(0)
    return np.quantile(random.choice(table.ravel(), (400, table.size)).mean(1), [0.025, 0.975])


RIGHT = {
    "wilson": (lesson7.wilson, roots),
    "bootstrap": (lesson7.bootstrap, lambda table, draws: np.quantile(means(table, draws), [0.025, 0.975])),
    "claims": (lesson7.claims, "cefab"),
}

WRONG = {
    "wilson": [
        (wald, "spread belongs to p"),
        (lambda k, n: roots(k, n, 1.644854), "90 %"),
        (lambda k, n: roots(k, n, sqrt(1.959964)), "as its square"),
        (lambda k, n: roots(k, n, 1.959964, a=0.0), "has a factor"),
        (lambda k, n: roots(k, n, 1.959964)[::-1], "wrong way round"),
        (lambda k, n: tuple(n * end for end in roots(k, n, 1.959964)), "counts"),
        (lambda k, n: roots(k, n, 2.2), "standard errors are"),
        (lambda k, n: (k / n, k / n), "standard errors are"),
        (lambda k, n: (roots(k, n)[0], roots(k, n)[0]), "two roots"),
        (lambda k, n: k / n, "TypeError"),
    ],
    "bootstrap": [
        (lambda table, draws: np.quantile(means(table, draws), [0.05, 0.95]), "90 %"),
        (lambda table, draws: (means(table, draws).min(), means(table, draws).max()), "least and the largest"),
        (lambda table, draws: np.quantile(table[draws].mean(2), [0.025, 0.975]), "mean of each draw"),
        (lambda table, draws: np.quantile(table.mean(1), [0.025, 0.975]), "use the draws"),
        (lambda table, draws: 30 * np.quantile(means(table, draws), [0.025, 0.975]), "counts"),
        (pictures, "too narrow"),
        (lambda table, draws: (0.0, 1.0), "recomputed"),
    ],
    "claims": [
        ("cefba", "claim 4"),
        ("eefab", "4 of 5; look at claim 1 again: .* 0.23"),
        ("ccfab", "claim 2 .* how many does the claim speak of"),
        ("cecab", "claim 3 .* by luck"),
        ("cefaa", "claim 5"),
        ("cef", "five letters"),
        (5, "five letters"),
    ],
}
