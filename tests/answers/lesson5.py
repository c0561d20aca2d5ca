"""Answers to the exercises of lesson 5."""

import torch

from answers import asked
from rece.course.checks import lesson5

PROMPTS = ["a church in noto style", "a church in twemoji style"] * 5


def reworded(word):
    return lambda prompts: [prompt.replace("church", word) for prompt in prompts]


def original(prompts):
    return asked("church", sum("cathedral" in prompt for prompt in prompts), len(prompts))


def victim(prompts):
    return asked("church", 2, len(prompts))


def project(p):
    falling = p.sort(descending=True).values
    shifts = (falling.cumsum(0) - 1) / torch.arange(1, len(p) + 1)
    return (p - shifts[falling > shifts][-1]).clamp(min=0)


PAIRS = {
    "c′": (asked("church", 0, 10), asked("church", 0, 10)),
    "word": (asked("church", 2, 10), asked("church", 0, 10)),
    "rows": (asked("church", 10, 10), asked("church", 8, 10)),
    "training": (asked("church", 9, 10), asked("church", 1, 10)),
    "all": (asked("church", 10, 10), asked("church", 0, 10)),
}

RIGHT = {
    "zero_cost": (lesson5.zero_cost, reworded("cathedral"), PROMPTS, ["church", "chapel"], original, victim),
    "project": (lesson5.project, project),
    "recovered": (lesson5.recovered, ["training", "all"], PAIRS),
}

WRONG = {
    "zero_cost": [
        (reworded("chapel"), *RIGHT["zero_cost"][2:], "names the concept: 'chapel'"),
        (reworded("Churches of old"), *RIGHT["zero_cost"][2:], "names the concept: 'church'"),
        (reworded("ziggurat"), *RIGHT["zero_cost"][2:], "original itself draws it in only 0 of 10"),
        (lambda prompts: "a cathedral", *RIGHT["zero_cost"][2:], "one per prompt"),
        (lambda prompts: ["a cathedral"], *RIGHT["zero_cost"][2:], "one per prompt"),
    ],
    "project": [
        (lambda p: p.softmax(0), "softmax"),
        (lambda p: p.clamp(min=0) / p.clamp(min=0).sum(), "dividing by the sum"),
        (lambda p: p - (p.sum() - 1) / len(p), "some parts are negative"),
        (lambda p: (p - (p.sum() - 1) / len(p)).clamp(min=0), "do not take part"),
        (lambda p: (p == p.max()).double(), "corner"),
        (lambda p: torch.full_like(p, 1 / len(p)), "its own projection|another point"),
        (lambda p: p.clamp(min=0), "sum is not 1"),
        (lambda p: p.sum(), "shape"),
    ],
    "recovered": [
        (["training", "all", "rows"], PAIRS, "rows: 10 of 10, and 8 of 10 .* may be none"),
        (["training", "all", "word"], PAIRS, "word: 2 of 10"),
        (["all"], PAIRS, "1 more has"),
        ([], PAIRS, "2 more have"),
        (["inversion"], PAIRS, "no attack 'inversion'"),
        ("all", PAIRS, "a list"),
    ],
}
