"""The course: its laboratory, its checks with right and wrong answers, and the files that students get."""

import ast
import json
import re
from importlib import import_module
from pkgutil import iter_modules

import answers
import numpy as np
import pandas as pd
import pytest

from rece import attacks, course
from rece.course import doctor, project, student
from rece.course.checks import Verdict
from rece.study import config, relearning

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


def test_solutions_are_taken_out_and_nothing_else():
    cell = "def f(x):\n    ### BEGIN SOLUTION\n    y = x\n    return y\n    ### END SOLUTION\n\n\ncheck.f(f)"
    assert student.without_solutions(cell) == "def f(x):\n    ...  # your turn\n\n\ncheck.f(f)"
    cell = "### BEGIN SOLUTION\na = 1\nb = {2: 3}\n### END SOLUTION\nuse(a, b)"
    assert student.without_solutions(cell) == "a = ...  # your turn\nb = ...  # your turn\nuse(a, b)"
    assert student.without_solutions("x = 1\ny = 2") == "x = 1\ny = 2"


@pytest.mark.parametrize("cell", [student.BEGIN, student.END, f"{student.BEGIN}\n{student.BEGIN}\n{student.END}"])
def test_marks_without_a_partner_are_refused_with_the_cell(cell):
    lesson = {"cells": [{"cell_type": "code", "metadata": {}, "source": [cell], "outputs": []}]}
    with pytest.raises(ValueError, match="cell 0: .* has no partner"):
        student.notebook(lesson)


@pytest.mark.parametrize("lesson", student.lessons(), ids=lambda path: path.stem)
def test_a_students_file_holds_no_solution_and_no_output(lesson):
    source = json.loads(lesson.read_text())
    given = student.notebook(source)
    text = json.dumps(given, ensure_ascii=False)
    assert "SOLUTION" in json.dumps(source) and "SOLUTION" not in text and student.TURN in text
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in given["cells"])
    assert len(given["cells"]) == len(source["cells"])


@pytest.mark.parametrize("lesson", student.lessons(), ids=lambda path: path.stem)
def test_a_lesson_is_as_long_as_a_lesson_may_be_and_every_check_is_right(lesson):
    cells = json.loads(lesson.read_text())["cells"]
    words = sum(len("".join(cell["source"]).split()) for cell in cells if cell["cell_type"] == "markdown")
    assert len(cells) <= 25 and words <= 1200 and lesson.stat().st_size < 300_000
    checks = [cell for cell in cells if "".join(cell["source"]).splitlines()[-1].startswith("check.")]
    assert 2 <= len(checks) <= 3
    for cell in checks:
        (output,) = cell["outputs"]
        assert "".join(output["data"]["text/plain"]).startswith("✓")
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not any(
        output["output_type"] in ("error", "stream") and output.get("name") != "stdout" for output in outputs
    )
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures and all(len(output["metadata"]["image/png"]["alt"]) > 20 for output in pictures)


def test_the_doctor_draws_and_judges(capsys):
    assert doctor.doctor()
    assert "✓ ready: church: 10 of 10" in capsys.readouterr().out


def test_the_doctor_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no-such-package"))
    assert not doctor.doctor()
    assert "no-such-package: not installed; run `make setup`" in capsys.readouterr().out


def test_a_project_is_measured_beside_ours(monkeypatch):
    tree = config.params()
    tree["fair"]["per"]["object"] = tree["generate"]["batch_size"] = 4
    monkeypatch.setattr(config, "params", lambda: tree)
    monkeypatch.setattr(project, "BESIDE", ("guarded",))  # lesson 8 runs with all of them
    table = project.run(search=False)
    assert list(table) == project.COLUMNS and set(table.model) == {"original", *project.BESIDE, project.MINE}
    by = table.set_index(["model", "what"]).rate
    assert by["original", "plain"] == 1 and by[project.MINE, "plain"] < 0.5 < by[project.MINE, "closed_form"]
    assert by["original", project.MY_ATTACK] >= 0.5 and by[project.MINE, "neighbour"] > 0.5
    assert ("original", "closed_form") not in by
    (ax,) = project.picture(table).axes
    assert [text.get_text().split(":")[0] for text in ax.get_legend().get_texts()] == ["guarded", "yours"]


@pytest.mark.parametrize(
    "given, error, why",
    [
        ({"folder": "notebooks"}, FileNotFoundError, "folder: there is no .*method.py: copy it"),
        ({"concept": "nudity"}, ValueError, "concept must be an object"),
    ],
)
def test_a_project_that_cannot_be_measured_is_refused_at_once(given, error, why, monkeypatch):
    monkeypatch.setattr(project.config, "load", lambda *_: pytest.fail("nothing is loaded"))
    with pytest.raises(error, match=why):
        project.run(**given)


@pytest.fixture(scope="module")
def opened():
    return course.open()


@pytest.mark.parametrize("lesson", student.lessons(), ids=lambda path: path.stem)
def test_a_students_file_runs_to_its_end_though_nothing_is_answered(lesson, opened, monkeypatch):
    """Every cell, in order, with grey pictures and attacks that search nothing: what is drawn has no part in it."""

    def grey(pipe, prompts=None, seeds=(), **_):
        return np.full((len(seeds), 64, 64, 3), 128, np.uint8)

    def found(name, victim, prompts, seeds, **_):
        return attacks.Attempts(prompts, seeds, attack=name)

    rows = [
        {"model": model, "what": what, "n": 10, "successes": 5, "rate": 0.5, "low": 0.2, "high": 0.8}
        for model in ("original", *project.BESIDE, project.MINE)
        for what in ("plain", "neighbour")
    ]
    monkeypatch.setattr(course, "open", lambda *_, **__: opened)
    monkeypatch.setattr(course, "generate", grey)
    monkeypatch.setattr(attacks, "run", found)
    monkeypatch.setattr(relearning, "relearn", lambda *given, **_: iter(given[4]))
    monkeypatch.setattr(project, "run", lambda **_: pd.DataFrame(rows))
    monkeypatch.chdir(lesson.parent)
    names, verdicts = {}, []
    for cell in student.notebook(json.loads(lesson.read_text()))["cells"]:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"]).replace("range(4000)", "range(40)"))  # prompts of lesson 6
            last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
            exec(compile(body, lesson.name, "exec"), names)
            value = last and eval(compile(ast.Expression(last.value), lesson.name, "eval"), names)
            verdicts += [value] if isinstance(value, Verdict) else []
    assert 2 <= len(verdicts) <= 3 and all(verdict.right is None for verdict in verdicts)
