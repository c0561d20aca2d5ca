"""The course: its laboratory, its checks with right and wrong answers, and the files that students get."""

import re
from importlib import import_module
from pkgutil import iter_modules

import answers
import pytest

LESSONS = [import_module(f"answers.{module.name}") for module in iter_modules(answers.__path__)]
RIGHT = {name: answer for lesson in LESSONS for name, answer in lesson.RIGHT.items()}
WRONG = {name: some for lesson in LESSONS for name, some in lesson.WRONG.items()}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_is_right(name):
    check, *answers = RIGHT[name]
    verdict = check(*answers)
    assert verdict and repr(verdict).startswith("✓"), verdict


@pytest.mark.parametrize("name", RIGHT)
def test_no_answer_is_neither_right_nor_wrong(name):
    check, *answers = RIGHT[name]
    empty = (lambda *_: ..., lambda *_: None) if callable(answers[0]) else ()
    for nothing in (..., None, *empty):
        verdict = check(nothing, *answers[1:])
        assert verdict.right is None and repr(verdict) == "… not answered yet"


@pytest.mark.parametrize("name, n", [(name, n) for name, some in WRONG.items() for n in range(len(some))])
def test_a_wrong_answer_is_refused_and_told_why(name, n):
    *answers, why = WRONG[name][n]
    verdict = RIGHT[name][0](*answers)
    assert verdict.right is False and not verdict
    assert re.search(why, verdict.says), verdict


def test_every_check_has_three_wrong_answers_at_least():
    assert set(WRONG) == set(RIGHT) and all(len(some) >= 3 for some in WRONG.values())
