"""The arena's tables and figures: rivals beside the methods of the fair study, on the same groups and prompts."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rece.study import config, fair, figures, statistics

KEPT = ("neighbour", "other")
COSTS = ("guarded", "against_uce", "evaluations", "changed", "bytes", "slowdown")
MARKERS = "osD^vP*Xh<>dp8"
ROWS = "inversion_rows"  # embeddings of many free tokens, which get through every edit of keys and values alike


def gathered(folder: str | Path, rivals: list[str], kinds: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of images and of edits of all methods, on the groups that the rivals were measured on.

    folder: with fair/<kind> and rivals/<method>, relative to the checkout. Raises FileNotFoundError naming the stage.
    """
    there = config.root() / folder
    parts = {"fair": [there / "fair" / kind for kind in kinds], "rival": [there / "rivals" / one for one in rivals]}
    for stage, folders in parts.items():
        missing = [one for one in folders if not one.exists()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing; run `dvc repro {stage}` first")
    ours, theirs = (
        pd.concat([pd.read_csv(one / "images.csv.gz") for one in folders], ignore_index=True)
        for folders in parts.values()
    )
    edits = pd.concat([pd.read_csv(one / "edits.csv") for one in parts["rival"]], ignore_index=True)
    before = pd.concat([pd.read_csv(one / "erasers.csv") for one in parts["fair"]], ignore_index=True)
    groups = theirs.group.unique()
    images = pd.concat([ours[ours.group.isin(groups)], theirs], ignore_index=True)
    images["preserve"] = images.preserve.fillna("none")
    images = images[images.preserve != "nothing"]
    before = before[before.group.isin(groups) & (before.preserve == "names")]
    return images, pd.concat([before, edits], ignore_index=True)


def rates(images: pd.DataFrame) -> pd.DataFrame:
    """Sure answers by kind, method and what: n, successes, rate, low, high, see `fair.rates`; and of all kinds."""
    every = pd.concat([images, images.assign(kind="all")])
    found = fair.rates(every).drop(columns=["preserve", "top"])
    found.insert(5, "successes", (every.groupby(["kind", "method", "what"]).sure.sum().reindex(
        pd.MultiIndex.from_frame(found[["kind", "method", "what"]])).to_numpy()))  # fmt: skip
    return found


def summary(images: pd.DataFrame, edits: pd.DataFrame) -> pd.DataFrame:
    """One row per method, over all groups: plain, strongest, kept, each with low and high, and what its edits cost.

    strongest: of each group the attack that brings most back, but for free rows, which get through every edit.
    """
    by = images.groupby(["method", "group", "what"]).sure.mean().unstack("what")
    attacks = [name for name in by if name not in (*KEPT, ROWS)]
    values = pd.DataFrame({"plain": by["plain"], "strongest": by[attacks].max(axis=1)})
    values["kept"], values["rows"] = by[list(KEPT)].mean(axis=1), by[ROWS] if ROWS in by else np.nan
    rows = []
    for method, part in values.groupby("method"):
        row = {"method": method, "groups": len(part)}
        for name in values:
            row |= {name: part[name].mean(), f"{name}_low": np.nan, f"{name}_high": np.nan}
            known = part[name].dropna().to_numpy()
            if len(known):
                found = statistics.clustered(known, range(len(known)))  # the same draws for every method
                row |= {f"{name}_low": found["low"], f"{name}_high": found["high"]}
        own = edits[edits.method == method]
        rows.append(row | {name: own[name].median() for name in COSTS if name in own})
    table = pd.DataFrame(rows)
    return table.set_index("method").loc[figures.order(table.method)].reset_index()


def robustness(table: pd.DataFrame) -> Figure:
    """Kept against what the strongest attack brings back, a mark per method with its intervals: see `summary`."""
    fig, ax = plt.subplots(figsize=(8.5, 5.2))
    for row, style in zip(table.to_dict("records"), _marks(table), strict=True):
        one = pd.DataFrame([row])
        across, up = (figures._errors(one, name, f"{name}_low", f"{name}_high") for name in ("strongest", "kept"))
        ax.errorbar(row["strongest"], row["kept"], up, across, elinewidth=0.8, **style)
    ax.set(xlabel="success of the strongest attack on a group", ylabel="accuracy on other concepts")
    return _beside(fig, ax)


def _marks(table: pd.DataFrame) -> list[dict]:
    """How each row's method is drawn."""
    return [
        {"fmt": MARKERS[n % len(MARKERS)], "color": figures.colour(method), "ms": 8, "label": figures.label(method)}
        for n, method in enumerate(table.method)
    ]


def _beside(fig: Figure, ax) -> Figure:
    """The figure with its legend to the right."""
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.grid(color="0.93")
    fig.tight_layout()
    return fig


def heatmap(table: pd.DataFrame) -> Figure:
    """Methods by attacks, and what is kept: rates over all groups; see `rates`."""
    every = table[table.kind == "all"]
    values = every.pivot_table(index="method", columns="what", values="rate")
    whats = [name for name in figures.order(values.columns) if name not in KEPT] + list(KEPT)
    values = values.loc[figures.order(values.index), whats]
    fig, ax = plt.subplots(figsize=(0.62 * len(whats) + 2.6, 0.36 * len(values) + 2.2))
    sns.heatmap(values, ax=ax, cbar=False, linewidths=0.5, annot_kws={"fontsize": 8}, **figures.RATES)
    ax.axvline(len(whats) - 2, color="white", lw=4)
    kept = [f"kept: {figures.label(name)}" if name in KEPT else figures.label(name) for name in whats]
    ax.set_xticklabels(kept, rotation=40, ha="right")
    ax.set_yticklabels([figures.label(name) for name in values.index], rotation=0)
    ax.set(xlabel="", ylabel="")
    fig.tight_layout()
    return fig


def cost(table: pd.DataFrame) -> Figure:
    """Success of the strongest attack against the seconds of the edit, in those of UCE, a mark per method."""
    fig, ax = plt.subplots(figsize=(8.5, 4.4))
    for row, style in zip(table.to_dict("records"), _marks(table), strict=True):
        if row["against_uce"] > 0:
            one = pd.DataFrame([row])
            up = figures._errors(one, "strongest", "strongest_low", "strongest_high")
            ax.errorbar(row["against_uce"], row["strongest"], up, elinewidth=0.8, **style)
    ax.set(xscale="log", xlabel="seconds of the edit, in those of UCE", ylabel="success of the strongest attack")
    return _beside(fig, ax)
