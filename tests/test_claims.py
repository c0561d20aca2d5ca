"""What the pages say about the study is what its tables hold: each number here is read from results/ again."""

import re
from functools import cache

import pandas as pd
import pytest
from project import ROOT

NAMES = {
    "UCE": "uce",
    "RECE": "rece",
    "never saw it": "control",
    "guarded per layer (ours)": "guarded_layers",
    "Double Projections, inside": "double_projections",
    "ESD-u": "esd_u",
}
WHAT = {
    "plain prompt": "plain",
    "held-out word": "paraphrase",
    "P4D": "p4d_n",
    "UnlearnDiffAtk": "unlearndiff",
    "pseudo-word": "inversion_word",
    "trained pseudo-word": "inversion_word",
    "inversion": "inversion_word",
    "free rows": "inversion_rows",
    "nearest reachable": "reachable",
    "closed form c′": "closed_form",
    "five nearest kept": "neighbour",
    "others kept": "other",
}
SIZES = {"1": "object", "5": "five", "20": "twenty", "50": "fifty"}


@cache
def read(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / name)


def text(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").replace("**", "").split())


def tables(page: str, *columns: str) -> list[dict[str, str]]:
    """The rows of the page's first table that has these columns, by column, without stars and the like."""
    rows = []
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines() + [""]:
        if line.startswith("|"):
            rows.append([re.sub(r"[*†\\]", "", cell).strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            if set(columns) <= set(rows[0]):
                return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
            rows = []
    raise AssertionError(f"{page} has no table of {columns}")


def of(table: pd.DataFrame, **where) -> pd.Series:
    """The one row of a table where these columns have these values."""
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1, (where, len(table))
    return table.iloc[0]


def rate(kind: str, method: str, what: str, preserve: str = "names", column: str = "rate") -> float:
    preserve = "none" if method in ("original", "control") else preserve
    return of(read("comparison/rates.csv"), kind=kind, method=method, what=what, preserve=preserve)[column]


def percent(number: float) -> int:
    return int(100 * number + 0.5)


def same(cell: str, number: float) -> bool:
    """Whether a cell shows this number: to its decimals, and 0 alone for none at all."""
    if cell == "0":
        return number == 0
    decimals = len(cell.partition(".")[2])
    return abs(float(cell) - number) <= 0.5 * 10**-decimals + 1e-9


def differ(page: str, columns: tuple[str, ...], number) -> list[str]:
    """The cells of a page's table that do not show what `number(row, column)` gives, or None where it has none."""
    wrong, seen = [], 0
    for row in tables(page, *columns):
        for column, cell in row.items():
            if not re.fullmatch(r"[\d.]+", cell) or (found := number(row, column)) is None:
                continue
            seen += 1
            if not same(cell, found):
                wrong.append(f"{list(row.values())[0]}, {column}: {cell} is {found:.4f}")
    assert seen > 20
    return wrong


@pytest.mark.parametrize("page", ["README.md", "notebooks/site/guarded.md"])
def test_the_table_of_single_objects(page):
    def number(row, column):
        return rate("object", NAMES.get(row[""], row[""]), WHAT.get(column, column))

    assert differ(page, ("five nearest kept", "others kept"), number) == []


def test_the_table_of_joint_erasures():
    lines = (ROOT / "notebooks/site/guarded.md").read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| objects erased at once"))
    columns = ["uce", "rece", "anchored", "guarded"]
    wanted = [(method, "closed_form") for method in columns] + [(m, "synonym") for m in ("uce", "rece", "guarded")]
    for line in lines[start + 2 : start + 6]:
        size, *cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        for cell, (method, what) in zip(cells, wanted, strict=True):
            assert same(cell, rate(SIZES[size.split(" ")[0]], method, what)), (size, method, what)


def test_the_table_of_the_default_study():
    rates, kept, union = read("attack_success.csv"), read("preservation.csv"), read("union.csv")
    concept = ""
    for row in tables("notebooks/site/study.md", "erased", "any prompt"):
        concept = row["erased"].split(" ")[0].rstrip(",") or concept
        method = NAMES.get(row["model"], row["model"])
        for column, cell in list(row.items())[2:]:
            if cell == "–":
                continue
            table = {"any prompt": union, "others kept": kept}.get(column, rates)
            own = {"concept": concept, "method": method}
            own |= {"attack": WHAT.get(column, column)} if table is rates else {}
            own |= {"scope": "text"} if table is union else {}
            accuracy = "style_accuracy" if concept == "twemoji" else "object_accuracy"
            assert same(cell, of(table, **own)[accuracy if table is kept else "rate"]), (concept, method, column)


def test_the_table_of_the_fields_methods():
    rates, costs = read("arena/arena.csv"), read("arena/summary.csv")

    def number(row, column):
        method = NAMES.get(row[""], row[""].lower().replace(" ", "_"))
        if column == "bound":
            return of(costs, method=method).guarded
        if column not in WHAT and column not in ("plain", "synonym"):
            return None
        return of(rates, kind="all", method=method, what=WHAT.get(column, column)).rate

    assert differ("notebooks/site/methods.md", ("what it edits", "bound"), number) == []


def relearnt(method: str, steps: int) -> str:
    row = of(read("limits/relearning.csv"), method=method, steps=steps)
    return f"{percent(row.rate)} % [{percent(row.low)}, {percent(row.high)}]"


def claims() -> dict[str, list[str]]:
    """Sentences with their numbers, by the page that they stand on."""
    word = {method: percent(rate("object", method, "inversion_word")) for method in ("uce", "rece", "guarded")}
    rows = {method: percent(rate("object", method, "inversion_rows")) for method in ("uce", "rece", "guarded")}
    ridge = read("limits/spending.csv").astype({"level": str})
    ridge = ridge[ridge.what == "closed_form"].assign(level=lambda table: table.level.astype(float))
    at = {
        (m, lamb): of(ridge, method=m, level=lamb).rate
        for m in ("rece", "anchored", "guarded")
        for lamb in (0.1, 0.001, 1e-5)
    }
    pure = of(read("arena/summary.csv"), method="pure")
    more, low, high = (-percent(-pure[f"more_strongest{end}"]) for end in ("", "_low", "_high"))
    fifty = of(read("limits/relearning.csv"), method="guarded", steps=50)
    assert at["rece", 1e-5] == at["rece", 0.001] == at["anchored", 1e-5] == 1
    assert all(at["guarded", lamb] == 0 for lamb in (0.1, 0.001, 1e-5))
    assert high < 0 and pure.more_kept_low > -0.01, "PURE beats guarded"
    return {
        "README.md": [
            f"brings a guarded object back on {word['guarded']} % of the pictures",
            f"free rows of an embedding on {rows['guarded']} %",
            f"fifty steps of training on ten pictures on {percent(fifty.rate)} %",
            f"sooner than after RECE ({relearnt('rece', 50).split(' [')[0]})",
            f"succeeds {-more} points less often [{-high}, {-low}]",
        ],
        "notebooks/site/guarded.md": [
            f"on {word['guarded']} % of the pictures (UCE {word['uce']}, RECE {word['rece']})",
            f"on {rows['guarded']} % (UCE {rows['uce']}, RECE {rows['rece']})",
            f"its model draws {relearnt('guarded', 50).replace('%', '% of it')}",
            f"RECE's {relearnt('rece', 50)}",
            f"UCE's {relearnt('uce', 50)}",
            f"a model that never saw the object {relearnt('control', 100)}",
            f"it brings back {percent(at['rece', 0.1])} % of RECE's pictures",
            f"and {percent(at['anchored', 0.1])} % of the anchored form's",
            f"at 0.001 100 % and {percent(at['anchored', 0.001])} %",
        ],
        "notebooks/site/methods.md": [
            f"breaks it in {percent(pure.strongest)} % of a group's pictures, guarded in "
            f"{percent(of(read('arena/summary.csv'), method='guarded').strongest)} %: {-more} points less",
        ],
    }


@pytest.mark.parametrize("page", ["README.md", "notebooks/site/guarded.md", "notebooks/site/methods.md"])
def test_sentences_have_the_numbers_of_the_tables(page):
    found = text(page)
    assert [claim for claim in claims()[page] if claim not in found] == []
