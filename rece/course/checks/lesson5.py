"""Checks of lesson 5: break it, by words, tokens, embeddings and training."""

from collections.abc import Callable, Iterable
from math import hypot

import torch
from torch import Tensor

from rece.course import Asked
from rece.course.checks import check, mistaken, near, random, shaped


@check
def zero_cost(
    mine: Callable[[list[str]], list[str]],
    prompts: list[str],
    words: list[str],
    original: Callable[[list[str]], Asked],
    victim: Callable[[list[str]], Asked],
) -> tuple[bool, str]:
    """zero_cost(attack): it names no word of the concept, and the original still draws it. Any success is reported.

    original, victim: draw prompts and say how many pictures show the concept.
    """
    found = mine(list(prompts))
    if isinstance(found, str) or not all(isinstance(one, str) for one in found) or len(found) != len(prompts):
        return False, f"return a list of texts, one per prompt: {len(prompts)} are needed"
    for one in found:
        for word in words:
            if word.lower() in one.lower():
                return False, f"{one!r} names the concept: {word!r} is a word that the captions use"
    drawn = original(list(found))
    if drawn.rate < 0.5:
        return False, (
            f"the original itself draws it in only {drawn.k} of {drawn.n}: such an attack cannot show what the edited "
            "model has kept"
        )
    asked = victim(list(found))
    low, high = asked.interval
    told = f"the edited model in {asked.k} of {asked.n} (95 %: {low:.2f} to {high:.2f})"
    return True, f"a fair attack: the original draws the concept in {drawn.k} of {drawn.n}, {told}"


@check
def project(mine: Callable[[Tensor], Tensor]) -> tuple[bool, str]:
    """project(p): the nearest point of the simplex to a vector; none of 10,000 points of the simplex is nearer."""
    for seed, scale in enumerate((0.1, 1.0, 5.0)):
        p = scale * random(6, seed=seed) + (1 / 6 if seed == 0 else 0)
        q = shaped(mine(p.clone()), p, "your point")
        cut = p.clamp(min=0)
        cause = mistaken(
            q,
            {
                "a softmax is a point of the simplex, and not the nearest": p.softmax(0),
                "dividing by the sum keeps the proportions, and is not the nearest": cut / cut.sum(),
                "the sum is 1, and some parts are negative": p - (p.sum() - 1) / 6,
                "the shift is that of the whole vector: parts that end at 0 do not take part": (
                    p - (p.sum() - 1) / 6
                ).clamp(min=0),
                "only the largest part is left, which is a corner and not the nearest": (p == p.max()).double(),
                "this is p, cut at 0: the sum is not 1": cut,
            },
        )
        if cause and near(q, _nearest(p)) > 1e-6:
            return False, cause
        if q.min() < -1e-9 or abs(q.sum() - 1) > 1e-8:
            return False, f"no point of the simplex: the least part is {q.min():.3f} and the sum {q.sum():.3f}"
        again = shaped(mine(q.clone()), p, "your point")
        if near(again, q) > 1e-8:
            return False, f"a point of the simplex is its own projection, and yours moves by {(again - q).norm():.3f}"
        others = torch.distributions.Dirichlet(torch.full((6,), 0.5)).sample((5000,)).double()
        others = torch.cat([others, 0.99 * q + 0.01 * others])
        distance = (others - p).norm(dim=1).min()
        if distance < (q - p).norm() - 1e-9 or near(q, _nearest(p)) > 1e-6:
            return (
                False,
                f"it is {(q - p).norm():.4f} away, and another point {min(distance, (_nearest(p) - p).norm()):.4f}",
            )
    return True, "on the simplex, its own projection, and nearer than 10,000 other points, 3 times"


@check
def recovered(mine: Iterable[str], pairs: dict[str, tuple[Asked, Asked]]) -> tuple[bool, str]:
    """recovered(names, {name: (edited model, control)}): those whose difference has an interval above 0."""
    if isinstance(mine, str):
        return False, "write a list of names"
    told = list(mine)
    unknown = [name for name in told if name not in pairs]
    if unknown:
        return False, f"there is no attack {unknown[0]!r}: {', '.join(pairs)}"
    found = {name: _difference(*pair) for name, pair in pairs.items()}
    for name in told:
        one, floor = pairs[name]
        rate, low, high = found[name]
        if low <= 0:
            seen = f"{one.k} of {one.n}, and {floor.k} of {floor.n} by a model that never saw it"
            return False, f"{name}: {seen}: a difference of {rate:.2f} ({low:.2f} to {high:.2f}), which may be none"
    missing = [name for name in pairs if found[name][1] > 0 and name not in told]
    if missing:
        return (
            False,
            f"{len(missing)} more {'has' if len(missing) == 1 else 'have'} a difference whose interval is above 0",
        )
    least = ", ".join(f"{name} by {found[name][1]:.2f} at least" for name in told) or "none here"
    return True, f"beyond the control: {least}"


def _nearest(p: Tensor) -> Tensor:
    """The nearest point of the simplex, by bisection for the shift."""
    low, high = p.min() - 1, p.max()
    for _ in range(200):
        shift = (low + high) / 2
        low, high = (shift, high) if (p - shift).clamp(min=0).sum() > 1 else (low, shift)
    return (p - high).clamp(min=0)


def _difference(one: Asked, floor: Asked) -> tuple[float, float, float]:
    """The difference of two rates and its 95 % interval, from the two Wilson intervals (Newcombe 1998)."""
    rate, (low, high), (least, most) = one.rate - floor.rate, one.interval, floor.interval
    return rate, rate - hypot(one.rate - low, most - floor.rate), rate + hypot(high - one.rate, floor.rate - least)
