"""Checks of lesson 7: judge honestly."""

from collections.abc import Callable
from math import comb, sqrt

import numpy as np

from rece.course.checks import check
from rece.study import statistics

Z = 1.959964


@check
def wilson(mine: Callable[[int, int], tuple[float, float]]) -> tuple[bool, str]:
    """wilson(k, n): at both ends of the interval k/n is z standard errors away; and how often it covers the truth."""
    for k, n in ((13, 30), (0, 30), (1, 5), (30, 30), (400, 1000)):
        low, high = _pair(mine(k, n))
        rate, case = k / n, f"{k} of {n}"
        right = _score(rate, n, Z)
        cause = _named(
            (low, high),
            {
                "this takes the spread at k/n, and the spread belongs to p: solve the quadratic": _wald(k, n),
                "this is the 90 % interval: z = 1.96": _score(rate, n, 1.644854),
                "z enters the quadratic as its square": _score(rate, n, sqrt(Z)),
                "n is missing under the root": _score(rate, 1, Z),
                "the square of p has a factor in the quadratic": tuple(end * (1 + Z**2 / n) for end in right),
                "the two ends stand the wrong way round": right[::-1],
                "these are counts: an interval is of the rate": tuple(n * end for end in right),
                "this is the exact interval of Clopper and Pearson, which is wider: solve the quadratic": _exact(k, n),
            },
        )
        if cause:
            return False, f"{case}: {cause}"
        for p in (low, high):
            away, spread = abs(rate - p), Z * sqrt(max(p * (1 - p), 0) / n)
            if not -1e-4 < p < 1 + 1e-4 or abs(away - spread) > 1e-4:
                return False, f"{case}: at {p:.4f} k/n is {away:.4f} away, and z standard errors are {spread:.4f}"
        if n * (high - low) ** 2 < 1e-6 or min(abs(low - rate), abs(high - rate)) < 1e-6 and 0 < k < n:
            return False, f"{case}: the quadratic has two roots, and you say {low:.4f} to {high:.4f}"
    shares = [f"{_covers(mine, p):.2f} and {_covers(_wald, p):.2f}" for p in (0.02, 0.1, 0.5)]
    told = f"of 30 pictures it covers a true 0.02, 0.1, 0.5 with probability (yours and Wald's) {', '.join(shares)}"
    return True, f"k/n is z standard errors away at both ends; {told}"


@check
def bootstrap(mine: Callable[[np.ndarray, np.ndarray], tuple[float, float]]) -> tuple[bool, str]:
    """bootstrap(table, draws): the percentile interval of the rate when rows are drawn; recomputed one by one."""
    for seed in range(3):
        random = np.random.default_rng(seed)
        table = random.random((5, 6)) < random.random((5, 1))
        draws = random.integers(0, 5, (400, 5))
        found = _pair(mine(table, draws))
        rates = [[sum(table[row]) / 6 for row in draw] for draw in draws]
        means = sorted(sum(some) / 5 for some in rates)
        single = random.choice(table.ravel(), (400, 30)).mean(1)
        cause = _named(
            found,
            {
                "this is the 90 % interval: 2.5 % belong on each side": _ends(means, 0.05),
                "these are the least and the largest: leave 2.5 % out on each side": (means[0], means[-1]),
                "the rates of single prompts are no resampled rate: take the mean of each draw": _ends(
                    np.ravel(rates), 0.025
                ),
                "this is the spread of the prompts as they are: use the draws": _ends(table.mean(1), 0.025),
                "these are counts of pictures: an interval is of the rate": tuple(30 * e for e in _ends(means, 0.025)),
                "2.5 % are left out on one side only": (_ends(means, 0.025)[0], means[-1]),
            },
        )
        if cause:
            return False, cause
        wanted = _ends(means, 0.025)
        if max(abs(a - b) for a, b in zip(found, wanted, strict=True)) > 1e-9:
            if found[1] - found[0] < 0.8 * (wanted[1] - wanted[0]) and np.ptp(single) > 0:
                return False, "yours is too narrow: did you draw pictures in place of prompts, or not use the draws?"
            return False, "recomputed draw by draw it is another interval: each draw names 5 rows, and has one mean"
    yours, pictures = _coverage(mine)
    return (
        True,
        f"as recomputed; it covers the truth {yours:.0%} of the time, an interval of single pictures {pictures:.0%}",
    )


@check
def claims(mine: str) -> tuple[bool, str]:
    """claims("abcde"): the letter of what is wrong with each of the five claims."""
    told = "".join(mine.split()).lower() if isinstance(mine, str) else ""
    if len(told) != len(CLAIMS) or set(told) - set("abcdef"):
        return False, f"write five letters from a to f, one per claim, in one text, not {mine!r}"
    wrong = [n for n, (one, (right, _)) in enumerate(zip(told, CLAIMS, strict=True)) if one != right]
    if wrong:
        return False, f"{5 - len(wrong)} of 5; look at claim {wrong[0] + 1} again: {CLAIMS[wrong[0]][1]()}"
    return True, "5 of 5: look for these five in the next paper that you read"


CLAIMS = (
    (
        "c",
        lambda: f"would you be surprised by 0 of 12 if the true rate were {statistics.wilson(0, 12)[1] - 0.01:.2f}?",
    ),
    ("e", lambda: "how many different things were asked for, and how many does the claim speak of?"),
    ("f", lambda: f"the lowest of eight results is low by luck: of a true 0.20 it shows {_lowest(8, 20, 0.2):.2f}"),
    ("a", lambda: "what does the judge say of pictures in which nobody asked for a style?"),
    ("b", lambda: f"if all of five tigers were lost, the average over 99 would still be {94 / 99:.2f}"),
)


def _pair(found) -> tuple[float, float]:
    low, high = (float(end) for end in found)
    return low, high


def _named(found: tuple[float, float], mistakes: dict[str, tuple[float, float]]) -> str:
    """The mistake that gives this interval, if there is one."""
    for cause, (low, high) in mistakes.items():
        if abs(found[0] - low) < 2e-5 and abs(found[1] - high) < 2e-5:
            return cause
    return ""


def _score(rate: float, n: float, z: float) -> tuple[float, float]:
    """The two p from which a rate of n pictures is z standard errors away, by bisection."""
    found = []
    for end in (0.0, 1.0):
        inside, outside = rate, end
        for _ in range(60):
            p = (inside + outside) / 2
            if abs(rate - p) <= z * sqrt(p * (1 - p) / n):
                inside = p
            else:
                outside = p
        found.append(outside)
    return found[0], found[1]


def _wald(k: int, n: int) -> tuple[float, float]:
    half = Z * sqrt(k / n * (1 - k / n) / n)
    return k / n - half, k / n + half


def _exact(k: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(k, n).proportion_ci(method="exact")
    return float(found.low), float(found.high)


def _covers(interval: Callable[[int, int], tuple[float, float]], p: float, n: int = 30) -> float:
    """The probability that the interval of n pictures holds the true rate p."""
    ends = [interval(k, n) for k in range(n + 1)]
    odds = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    return float(sum(odd for odd, (low, high) in zip(odds, ends, strict=True) if low <= p <= high))


def _ends(values, share: float) -> tuple[float, float]:
    low, high = np.quantile(values, [share, 1 - share])
    return float(low), float(high)


def _coverage(interval: Callable, true: float = 0.4) -> tuple[float, float]:
    """How often intervals of 5 prompts, 6 pictures each, hold the true rate where prompts differ: that of the answer,
    and Wilson's of 30 pictures."""
    random, hits = np.random.default_rng(0), np.zeros(2)
    for _ in range(300):
        table = random.random((5, 6)) < random.beta(0.8, 1.2, (5, 1))
        low, high = interval(table, random.integers(0, 5, (200, 5)))
        alone = statistics.wilson(int(table.sum()), 30)
        hits += low <= true <= high, alone[0] <= true <= alone[1]
    return tuple(hits / 300)


def _lowest(settings: int, n: int, rate: float) -> float:
    """The mean of the lowest of some results of n pictures each, all of the same true rate."""
    return float(np.random.default_rng(0).binomial(n, rate, (4000, settings)).min(1).mean() / n)
