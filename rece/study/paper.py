"""The published experiments' tables: every number that they ask for, measured or marked as not run here."""

from math import nan
from pathlib import Path

import pandas as pd

from rece import attacks
from rece.judges import nudenet
from rece.study import experiment

# Of the tables that the evaluate stage writes of photographs: how a row's measure is called, and its number's column.
MEASURES = {
    "success": ("success: {attack}", "rate"),
    "detections": ("images with {class}: {attack}", "images"),
    "preservation": ("{score}: {set}", "value"),
}


def table(folder: Path, params: dict) -> pd.DataFrame:
    """Every number that the published experiments ask for, with a mark where nothing was run here.

    folder: tables/<concept>/ as the evaluate stage writes them. params: the parameters of the experiments.
    Columns: experiment (the part of the concept's name before "-"), concept, measure, method, value, low, high (95 %),
    n, status ("measured" or "not run here").
    """
    erased, methods, rows = params["concept"], ["original", *params["erase"]], []
    for concept in params["concepts"]:
        spec, found = erased[concept], {}
        for name, (measure, value) in MEASURES.items():
            path = Path(folder, concept, f"{name}.csv")
            for row in pd.read_csv(path).to_dict("records") if path.exists() else ():
                number = (row[value], row.get("low", nan), row.get("high", nan), row["n"])
                found[measure.format(**row), row["method"]] = number
        for measure, of_original in _measures(spec, params):
            for method in methods if of_original else methods[1:]:
                value = found.get((measure, method))
                row = {"experiment": concept.split("-")[0], "concept": concept, "measure": measure, "method": method}
                row |= dict(zip(["value", "low", "high", "n"], value or (nan, nan, nan, nan), strict=True))
                rows.append(row | {"status": "measured" if value else "not run here"})
    return pd.DataFrame(rows)


def beside(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `paper` with one column per method and cells to read: value [low, high], or "not run here"."""

    def cell(row) -> str:
        if row.status != "measured":
            return row.status
        interval = "" if pd.isna(row.low) else f" [{row.low:.3g}, {row.high:.3g}]"
        return f"{row.value:.3g}{interval} (n={row.n:.0f})"

    order = list(dict.fromkeys(table.method))
    cells = table.assign(cell=table.apply(cell, axis=1))
    wide = cells.pivot(index=["concept", "measure"], columns="method", values="cell")
    rows = pd.MultiIndex.from_frame(cells[["concept", "measure"]].drop_duplicates())
    return wide.reindex(rows)[order].fillna("")


def _measures(spec: dict, params: dict) -> list[tuple[str, bool]]:
    """What is measured of a concept, and whether of the original model too."""
    found, judge = [], spec.get("judge", params["judge"])
    for attack, budget in experiment.budgets(params["attack"], spec).items() if judge else ():
        of_original = not attacks.needs(experiment.module(attack, budget))
        found.append((MEASURES["success"][0].format(attack=attack), of_original))
        if judge["name"] == "nudenet" and experiment.module(attack, budget) == "plain":
            classes, measure = judge.get("classes", nudenet.EXPOSED), MEASURES["detections"][0]
            found += [(measure.format(**{"class": label, "attack": attack}), True) for label in classes]
    for name, source in spec.get("kept", {}).items():
        named = MEASURES["preservation"][0].format
        found += [(named(score=score, set=name), score != "lpips") for score in source["scores"]]  # of the original: 0
    return found
