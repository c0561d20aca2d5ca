"""What the pages say about the study is what its tables hold: each number here is read from results/ again."""

import ast
import re
from functools import cache

import nbformat
import numpy as np
import pandas as pd
import pytest
from claims import CLAIMS, METHODS, Run, holds
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
    return pd.read_csv(ROOT / "results" / name, dtype={"level": str} if name.startswith("audits") else None)


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


def audited(method: str, what: str, level: str, ends: bool = True) -> str:
    row = of(read("audits/audits.csv"), method=method, what=what, level=level)
    return f"{percent(row.rate)} %" + f" [{percent(row.low)}, {percent(row.high)}]" * ends


def beside(what: str, than: str, certain: bool = True) -> tuple[int, int, int]:
    """How many points guarded is away from another method in an audit, with the interval, in its own direction."""
    row = of(read("audits/beside.csv"), what=what, than=than)
    assert certain == (row.low > 0 or row.high < 0)
    sign = 1 if row.rate > 0 else -1
    found = sign * row.rate, *sorted((sign * row.low, sign * row.high))
    return tuple(percent(number) if number > 0 else -percent(-number) for number in found)


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
    assert high <= 0 and pure.more_kept_low > -0.01, "PURE beats guarded"
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
        "notebooks/site/audits.md": [
            "brings back " + audited("guarded", "lora", "50").replace(" %", " % of guarded's objects", 1),
            "{} points more than of RECE's [{}, {}]".format(*beside("lora: 50", "rece")),
            f"bring back {audited('guarded', 'readers', '100')}",
            "{} points more than of RECE's, which is not certain [{}, {}]".format(
                *beside("readers: 100", "rece", False)
            ),
            f"concept in {audited('guarded', 'image_to_image', '0.5')}",
            f"after OCE in {audited('oce', 'image_to_image', '0.5', False)}",
            f"with the concept in {audited('guarded', 'inpainting', '0.5')}",
            "{} points less often than RECE, which is not certain [{}, {}]".format(
                *beside("inpainting: 0.5", "rece", False)
            ),
            "{} points less often than UCE's and RECE's [{}, {}]".format(*beside("image_to_image: 0.7", "rece")),
            "({} points less [{}, {}])".format(*beside("readers: 25", "pure")),
            f"shows the concept in {audited('guarded', 'noise', 'best of 24')} after guarded",
            f"in {audited('semantic_surgery', 'query', '30')} after Semantic Surgery",
            f"in {audited('safree', 'query', '30')} after SAFREE",
            f"{audited('guarded', 'unet', '10')} after guarded",
            f"shows {audited('control', 'unet', '100')} itself",
        ],
        "notebooks/site/methods.md": [
            f"breaks it in {percent(pure.strongest)} % of a group's pictures, guarded in "
            f"{percent(of(read('arena/summary.csv'), method='guarded').strongest)} %: {-more} points less",
        ],
    }


PAGES = ["README.md", *(f"notebooks/site/{name}.md" for name in ("guarded", "methods", "audits"))]


@pytest.mark.parametrize("page", PAGES)
def test_sentences_have_the_numbers_of_the_tables(page):
    found = text(page)
    assert [claim for claim in claims()[page] if claim not in found] == []


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_holds_and_could_fail(name, tmp_path):
    assert holds(name, Run(ROOT / "results")) and holds(name, Run(ROOT / "results/second"))
    for table in (
        "comparison/rates",
        "comparison/differences",
        "limits/spending",
        "limits/relearning",
        "arena/summary",
    ):
        found, file = read(f"{table}.csv").copy(), tmp_path / f"{table}.csv"
        for column in found.columns.intersection(["rate", "guarded", "low", "high"]):
            found[column] = -found[column] if "differences" in table else 1 - found[column]
        found[[name for name in found if name.startswith("more_")]] *= -1
        file.parent.mkdir(exist_ok=True)
        found.to_csv(file, index=False)
    assert holds(name, Run(tmp_path)) is False
    assert holds(name, Run(tmp_path / "nothing")) is None


@pytest.mark.parametrize(
    "label", ["closed form c′", "synonym", "UnlearnDiffAtk", "trained pseudo-word", "five nearest kept"]
)
def test_the_table_of_both_runs_is_theirs(label):
    rows = tables("notebooks/site/reproduce.md", "first run", "second run")
    (line,) = (row for row in rows if row[""] == label)
    for run, folder in (("first run", "results"), ("second run", "results/second")):
        found = [Run(ROOT / folder).rate(method, WHAT.get(label, label)) for method in METHODS]
        assert [float(word) for word in line[run].split(", ")] == pytest.approx(found, abs=0.00501)


class Lesson:
    """A lesson as it is in git: its sentences, and what its cells printed."""

    def __init__(self, n: int):
        (path,) = (ROOT / "notebooks/course").glob(f"{n}_*.ipynb")
        cells = nbformat.read(path, as_version=4).cells
        self.words = " ".join(" ".join(cell.source for cell in cells if cell.cell_type == "markdown").split())
        outs = [out for cell in cells if cell.cell_type == "code" for out in cell.outputs]
        self.printed = "\n".join(out.get("text") or out.get("data", {}).get("text/plain", "") for out in outs)

    def says(self, *sentences: str) -> bool:
        return all(sentence in self.words for sentence in sentences)

    def numbers(self, pattern: str) -> list[float]:
        """What the groups of a pattern match in what was printed."""
        found = [float(number) for match in re.findall(pattern, self.printed) for number in np.atleast_1d(match)]
        assert found, pattern
        return found


def test_lesson_1_says_what_it_printed():
    one = Lesson(1)
    shares = [ast.literal_eval(match) for match in re.findall(r"\{'before'.*?\}", one.printed)]
    assert one.says("In four of the seven cross-attentions the rows before the word get the largest share")
    assert (len(shares), sum(max(share, key=share.get) == "before" for share in shares)) == (7, 4)
    assert one.says("The end token alone brings none in any of these pairs")
    assert one.numbers(r"with the end .*: (\d+) of 20") == [0, 0, 0]
    assert one.says("the padding brings more unicorns than the word does, and these two intervals do not overlap")
    (word,), (padding,) = (
        one.numbers(rf"a horse +with the {how} to (\S+)\)") for how in ("word .*:.*", "padding .*:.*")
    )
    (low,) = one.numbers(r"a horse +with the padding .*95 %: (\S+) to")
    assert word < low < padding
    assert one.says("and yet here it is farther away than the pizza")
    assert one.numbers(r"to castle +(\S+) in G") > one.numbers(r"to pizza +(\S+) in G")


def test_lessons_3_and_4_say_what_they_printed():
    three, four = Lesson(3), Lesson(4)
    assert three.says("Plain prompts draw no church") and three.numbers(r"church: (\d+) of 20") == [0]
    assert four.says("The first round adds as many directions as the model has positions. Later rounds add few.")
    ranks = [ast.literal_eval(match) for match in re.findall(r"\{0: .*?\}", four.printed)]
    assert len(ranks) == 2 and all(rank[1] - rank[0] == 32 and rank[8] - rank[1] < 32 for rank in ranks)
    assert four.says(
        "UCE alone moves them by more than half of their size", "in both forms each round moves it further"
    )
    drift = {(form, name): four.numbers(rf"{form} +{name} +" + r" ".join([r"(\S+)"] * 5))
             for form in ("published", "anchored") for name in ("the empty prompt", "unicorn", "cow")}  # fmt: skip
    assert all(moved[0] > 0.5 for (_, name), moved in drift.items() if name != "the empty prompt")
    assert all(moved == sorted(moved) for (_, name), moved in drift.items() if name == "the empty prompt")
    assert four.says("Only the anchored form passes", "The last number is zero for both")
    cat, *others = four.numbers(
        r"stops after .* the cat (\S+), the nearest prompt at least (\S+), any embedding (\S+)"
    )
    assert others[0] < cat <= others[3] and others[1] == others[4] == 0


def test_lessons_5_to_7_say_what_they_printed():
    five, six, seven = Lesson(5), Lesson(6), Lesson(7)
    assert five.says("Whoever had tried $c'$ alone would have called the model safe")
    assert five.numbers(r"c′ .*'RECE': '(\d+) of 10'") == [0] and five.numbers(r"rows .*'RECE': '(\d+) of 10'")[0] > 5
    assert five.says("40 steps of training bring the church back")
    assert "training by" in five.printed.partition("beyond the control")[2]
    assert six.says("UCE draws churches from tokens that the encoder could emit. The other two models draw none here.")
    drawn = six.numbers(r"\n(?:UCE|RECE, 5 rounds|guarded) +church: (\d+) of 20")
    assert drawn[0] > 0 and drawn[1:] == [0, 0]
    assert six.says("prompts that begin with the very word reach its line", "UCE has the bound 0")
    certified, best = six.numbers(r"guarded +certified (\S+), best of 4,000: (\S+) by 'church")
    assert certified == best and six.numbers(r"UCE +any embedding: (\S+),") == [0]
    assert six.says('"chapel", which nobody named to the eraser, still gives churches in the guarded model')
    assert six.numbers(r"chapel .*guarded: church: (\d+) of 20")[0] > 0
    assert seven.says("all horses pass, and most of the noise does not. At 0.9 real horses are lost.")
    horses, noise = seven.numbers(r"p ≥ 0.5: (\d+) of 30 horses pass, and (\d+) of 30")
    assert horses == 30 and noise < 15 and seven.numbers(r"p ≥ 0.9: (\d+) of 30 horses")[0] < 30
