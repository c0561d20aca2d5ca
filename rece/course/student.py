"""The files that students get: the lessons without solutions and outputs."""

import ast
import json
import textwrap
from pathlib import Path

from rece import files
from rece.study import config

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"  # nbgrader's marks
TURN = "...  # your turn"


def without_solutions(source: str) -> str:
    """The source of a code cell with `...` in place of every solution.

    A solution that only sets names sets them to `...`. Raises ValueError if the marks do not match.
    """
    lines, inside = [], None
    for line in source.splitlines():
        mark = line.strip()
        if mark == BEGIN and inside is None:
            inside, indent = [], line[: line.index("#")]
        elif mark == END and inside is not None:
            lines += [indent + turn for turn in _turns(textwrap.dedent("\n".join(inside)))]
            inside = None
        elif mark in (BEGIN, END):
            raise ValueError(f"{mark!r} has no partner")
        else:
            (lines if inside is None else inside).append(line)
    if inside is not None:
        raise ValueError(f"{BEGIN!r} has no partner")
    return "\n".join(lines)


def _turns(solution: str) -> list[str]:
    statements = ast.parse(solution).body
    names = [one.targets[0] for one in statements if isinstance(one, ast.Assign) and len(one.targets) == 1]
    if len(names) == len(statements) and all(isinstance(name, ast.Name) for name in names):
        return [f"{name.id} = {TURN}" for name in names]
    return [TURN]


def notebook(lesson: dict) -> dict:
    """A lesson's notebook as a student gets it.

    Raises ValueError naming the cell if the marks of its solutions do not match.
    """
    cells = []
    for n, cell in enumerate(lesson["cells"]):
        cell = cell | {"source": "".join(cell["source"])}
        if cell["cell_type"] == "code":
            try:
                cell |= {"source": without_solutions(cell["source"]), "outputs": [], "execution_count": None}
            except ValueError as error:
                raise ValueError(f"cell {n}: {error}") from None
        cells.append(cell | {"source": cell["source"].splitlines(True)})
    return lesson | {"cells": cells}


def write(out: str | Path = "notebooks/course/student") -> list[Path]:
    """Write the student's file of every lesson into a folder, relative to the checkout, and return their paths."""
    found = []
    for lesson in lessons():
        text = json.dumps(notebook(json.loads(lesson.read_text())), indent=1, ensure_ascii=False) + "\n"
        with files.replacing(config.root() / out / lesson.name) as file:
            file.write(text.encode())
        found.append(config.root() / out / lesson.name)
    return found


def lessons() -> list[Path]:
    """The lessons' notebooks, in order."""
    return sorted((config.root() / "notebooks/course").glob("[0-9]_*.ipynb"))
