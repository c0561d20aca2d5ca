"""From one row per drawn image to the study's tables: success, transfer, union, and success against certificates."""

from math import nan
from pathlib import Path

import numpy as np
import pandas as pd

from rece import attacks, metrics, stages
from rece.judges import nudenet

RATE = ["n", "successes", "rate", "low", "high"]
SUCCESS = ["method", "attack", "access", "kind", *RATE, "prompts", "top1_rate", "seconds"]
# Of the tables that the evaluate stage writes of photographs: how a row's measure is called, and its number's column.
MEASURES = {
    "success": ("success: {attack}", "rate"),
    "detections": ("images with {class}: {attack}", "images"),
    "preservation": ("{score}: {set}", "value"),
}


def success(drawn: pd.DataFrame) -> pd.DataFrame:
    """Attack success by method and attack: n, successes, rate, low, high (95 % Wilson), prompts (distinct ones asked;
    each is drawn with n / prompts seeds), top1_rate (with no threshold on the judge's probability), seconds (drawing).

    drawn: see `stages.draw_attempts`. Only attempts that were meant for the method count.
    """
    own = drawn[(drawn.source == "any") | (drawn.source == drawn.method)]
    rows = []
    for (method, attack), part in own.groupby(["method", "attack"], sort=False):
        columns = {"method": method, "attack": attack, "access": part.access.iloc[0], "kind": part.kind.iloc[0]}
        extra = {"prompts": part.asked.nunique(), "top1_rate": part.top1.mean(), "seconds": part.seconds.sum()}
        rows.append(metrics.success(part.hit.to_numpy(dtype=bool), **columns) | extra)
    return pd.DataFrame(rows, columns=SUCCESS)


def transfer(drawn: pd.DataFrame) -> pd.DataFrame:
    """Success of prompts found against one model (source) when another one draws them (method), by attack."""
    found = drawn[(drawn.kind == "text") & (drawn.source != "any") & (drawn.source != "control")]
    rows = [
        metrics.success(part.hit.to_numpy(), attack=attack, source=source, method=method)
        for (attack, source, method), part in found.groupby(["attack", "source", "method"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["attack", "source", "method", *RATE])


def union(drawn: pd.DataFrame) -> pd.DataFrame:
    """Success of the union of attacks: a case counts if any attack of the scope brings the concept back.

    scope: "words" (prompts that cost nothing to make), "text" (all prompts), "all" (embeddings too). Only the cases
    that every attack of the scope was run on count, and no attack on prompts of its own; attacks: how many there are.
    """
    own = drawn[((drawn.source == "any") | (drawn.source == drawn.method)) & (drawn.method != "control")]
    own = own[~own.own_prompts.astype(bool)]
    scopes = {"words": own[own.access == "none"], "text": own[own.kind == "text"], "all": own}
    rows = []
    for scope, part in scopes.items():
        for method, mine in part.groupby("method", sort=False):
            hits = mine.pivot(index="case", columns="attack", values="hit").dropna().astype(bool)
            if len(hits):
                columns = {"method": method, "scope": scope, "attacks": hits.shape[1]}
                rows.append(metrics.success(hits.any(axis=1).to_numpy(), **columns))
    return pd.DataFrame(rows, columns=["method", "scope", "attacks", *RATE])


def detections(drawn: pd.DataFrame, judge) -> dict[str, pd.DataFrame]:
    """{"detections": what the judge found where, by method, attack and class}, or nothing for a judge that names one
    answer per image. Columns images, boxes, rate: see `NudeNet.counts`."""
    if not hasattr(judge, "counts") or not len(drawn):
        return {}
    own, parts = drawn[(drawn.source == "any") | (drawn.source == drawn.method)], []
    for (method, attack), part in own.groupby(["method", "attack"], sort=False):
        found = judge.counts(part).reset_index().assign(n=len(part))
        found.insert(0, "method", method)
        found.insert(1, "attack", attack)
        parts.append(found)
    return {"detections": pd.concat(parts, ignore_index=True)}


def paper(folder: Path, params: dict) -> pd.DataFrame:
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
    for attack, budget in stages.budgets(params["attack"], spec).items() if judge else ():
        of_original = attacks.access(stages.module(attack, budget)) in ("none", "grey")
        found.append((MEASURES["success"][0].format(attack=attack), of_original))
        if judge["name"] == "nudenet" and stages.module(attack, budget) == "plain":
            classes, measure = judge.get("classes", nudenet.EXPOSED), MEASURES["detections"][0]
            found += [(measure.format(**{"class": label, "attack": attack}), True) for label in classes]
    for name, source in spec.get("kept", {}).items():
        named = MEASURES["preservation"][0].format
        found += [(named(score=score, set=name), score != "lpips") for score in source["scores"]]  # of the original: 0
    return found


def pooled(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Counts (n, successes) of several tables added up over all columns but `by`, with new rates and intervals."""
    rows = []
    for key, part in table.groupby(by, sort=False):
        n, successes = int(part.n.sum()), int(part.successes.sum())
        low, high = metrics.wilson(successes, n)
        rate = {"n": n, "successes": successes, "rate": successes / n, "low": low, "high": high}
        rows.append(dict(zip(by, key, strict=True)) | rate)
    return pd.DataFrame(rows)


def against_certificate(success: pd.DataFrame, certified: pd.DataFrame, frontier: pd.DataFrame) -> pd.DataFrame:
    """One row per eraser of the study and of the sweep: what was certified and what attacks reached.

    Columns: concept, kind (of the concept), method, certified (least share of the distance to the target, over the
    concept's words), and success rates: text (the strongest attack by prompts that saw the weights), embedding (the
    closed form).
    """
    last = certified.groupby(["concept_name", "method"])["round"].transform("max") == certified["round"]
    share = certified[last].assign(certified=certified.distance / certified.target)
    least = share.groupby(["concept_name", "method"]).certified.min()
    rows = []
    for (concept, method), part in success.groupby(["concept", "method"], sort=False):
        rate = part.set_index("attack").rate
        if method in ("original", "control") or "closed_form" not in rate:
            continue
        searched = part[(part.access == "white") & (part.kind == "text")].rate
        row = {"concept": concept, "method": method, "certified": least[concept, method]}
        rows.append(row | {"text": searched.max(), "embedding": rate["closed_form"]})
    points = pd.concat([pd.DataFrame(rows), frontier[["concept", "method", "certified", "text", "embedding"]]])
    kinds = success.drop_duplicates("concept").set_index("concept").kind_of_concept
    points.insert(1, "kind", points.concept.map(kinds))
    return points.reset_index(drop=True)


def correlations(points: pd.DataFrame) -> dict[str, dict]:
    """For each column of success rates in `points`, a title and its rank correlations with the certified distance.

    "pooled" is over all erasers, "within" with each concept's mean taken off both; see `metrics.rank_correlation`.
    Numbers are nan where a column does not vary or has fewer than four points.
    """
    titles = {"text": "strongest attack by prompts", "embedding": "closed form c′ (embedding)"}
    found = {}
    for column, title in titles.items():
        pair = ["certified", column]
        some = points.dropna(subset=[column])
        own = some[pair] - some.groupby("concept")[pair].transform("mean")
        found[column] = {"title": title, "pooled": _ranked(some[pair]), "within": _ranked(own)}
    return found


def _ranked(pair: pd.DataFrame) -> dict:
    try:
        return metrics.rank_correlation(*(pair[column] for column in pair))
    except ValueError:
        return {"rho": np.nan, "low": np.nan, "high": np.nan, "n": len(pair)}
