"""The arena's tables and figures: rivals beside the methods of the fair study, on the same groups and prompts."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rece.study import config, fair, figures, plan, statistics
from rece.study.fair import KEPT, ROWS

PROPERTIES = ("guarded", "changed", "bytes", "against_uce", "kept")  # of edits, that may go with robustness
COSTS = ("guarded", "against_uce", "evaluations", "changed", "bytes", "slowdown")
MARKERS = "osD^vP*Xh<>dp8"

AUDITS = {
    "image_to_image": "image to image",
    "inpainting": "inpainting",
    "completion": "completion",
    "noise": "noise",
    "composition": "other prompts composed",
    "tina": "TINA, updates",
    "query": "query, pictures",
    "adapter": "adapter, updates",
    "readers": "relearnt K, V",
    "unet": "relearnt UNet",
    "lora": "relearnt LoRA",
    "unrelated": "K, V trained on others",
}


def gathered(folder: str | Path, rivals: list[str], kinds: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of images of all methods, on the groups that the rivals were measured on, and that of rivals' edits.

    folder: with fair/<kind> and rivals/<method>, relative to the checkout. Raises FileNotFoundError naming the target.
    """
    there = config.root() / folder
    parts = {"fair": [there / "fair" / kind for kind in kinds], "arena": [there / "rivals" / one for one in rivals]}
    for target, folders in parts.items():
        missing = [one for one in folders if not one.exists()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing; run `make {target}` first")
    ours, theirs = (
        pd.concat([pd.read_csv(one / "images.csv.gz") for one in folders], ignore_index=True)
        for folders in parts.values()
    )
    edits = pd.concat([pd.read_csv(one / "edits.csv") for one in parts["arena"]], ignore_index=True)
    images = pd.concat([ours[ours.group.isin(theirs.group.unique())], theirs], ignore_index=True)
    images["preserve"] = images.preserve.fillna("none")
    return images[images.preserve != "nothing"], edits


def chosen(folder: str | Path, rivals: list[str], validation: str | Path) -> dict[tuple[str, str, int], dict]:
    """The numbers of all methods where names are preserved, see `fair.choose`.

    validation: the table that the fair study's are chosen from. folder: with rivals/<method>, which have theirs. Both
    are relative to the checkout.
    """
    tables = [config.root() / validation, *(config.root() / folder / "rivals" / one / "choice.csv" for one in rivals)]
    found = fair.choose(pd.concat([pd.read_csv(table) for table in tables], ignore_index=True))
    return {key: numbers for key, numbers in found.items() if key[1] == "names"}


def rates(images: pd.DataFrame) -> pd.DataFrame:
    """Sure answers by kind, method and what: n, rate, low, high, see `fair.rates`; and of all kinds."""
    return fair.rates(pd.concat([images, images.assign(kind="all")])).drop(columns=["preserve", "top"])


def summary(images: pd.DataFrame, edits: pd.DataFrame, beside: str = "guarded") -> pd.DataFrame:
    """One row per method, over all groups: plain, strongest, kept and rows, and what its edits cost.

    strongest: of each group the one that brings most back of the attacks that every edit met, but for free rows, which
    get through every edit. kept: accuracy on neighbours and others. rows: success of free rows. more_strongest,
    more_kept: how much higher they are than those of the method `beside`, on the same groups, prompts and seeds. Each
    has low and high, which resample groups, with the same draws for every method.
    A maximum of rates is too high where attacks have few pictures, and intervals are not corrected for the number of
    methods.
    """
    by = images.groupby(["method", "group", "what"]).sure.mean().unstack("what")
    of_edits = by.drop(index=[plan.ORIGINAL, plan.CONTROL], level="method", errors="ignore")
    attacks = [name for name in by if name not in (*KEPT, ROWS) and of_edits[name].notna().all()]
    values = pd.DataFrame({"plain": by["plain"], "strongest": by[attacks].max(axis=1)})
    values["kept"], values["rows"] = by[list(KEPT)].mean(axis=1), by[ROWS] if ROWS in by else np.nan
    if beside in values.index:
        than = values.loc[beside].reindex(values.index, level="group")
        values = values.assign(
            **{f"more_{name}": (values[name] - than[name]).round(9) for name in ("strongest", "kept")}
        )
    rows = []
    for method, part in values.groupby("method"):
        row = {"method": method, "groups": len(part)}
        for name in values:
            row |= {name: part[name].mean(), f"{name}_low": np.nan, f"{name}_high": np.nan}
            known = part[name].dropna().to_numpy()
            if len(known) and not (method == beside and name.startswith("more_")):
                least = -1.0 if name.startswith("more_") else 0.0
                found = statistics.clustered(known, range(len(known)), least=least)
                row |= {f"{name}_low": found["low"], f"{name}_high": found["high"]}
        own = edits[edits.method == method]
        rows.append(row | {name: own[name].median() for name in COSTS if name in own})
    table = pd.DataFrame(rows)
    return table.set_index("method").loc[figures.order(table.method)].reset_index()


def predictors(table: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    """Which properties of edits go with which success, over methods: Spearman's rho, low, high and n.

    A row per property of PROPERTIES and attack, over the methods that have both. Pairs with fewer than four methods,
    or in which one of the two never varies, are left out. table: of `summary`. rates: of `rates`.
    """
    success = rates[rates.kind == "all"].pivot_table(index="method", columns="what", values="rate")
    own, rows = table.set_index("method"), []
    for name in (name for name in PROPERTIES if name in own):
        for what in figures.order(success.columns):
            both = pd.DataFrame({"x": own[name], "y": success[what]}).dropna()
            if len(both) >= 4 and both.nunique().min() > 1:
                rows.append({"property": name, "what": what, **statistics.rank_correlation(both.x, both.y)})
    return pd.DataFrame(rows, columns=["property", "what", "rho", "low", "high", "n"])


def robustness(table: pd.DataFrame, beside: str = "guarded") -> Figure:
    """Kept against what the strongest attack brings back, a mark per method; and both beside one method.

    table: of `summary`. The right panels name the marks of the left one.
    """
    table = table.dropna(subset=["kept"]).reset_index(drop=True)
    shares = {"width_ratios": [2, 1, 1]}
    fig, (cloud, *sides) = plt.subplots(
        1, 3, figsize=(11, 0.26 * len(table) + 1.6), gridspec_kw=shares, layout="constrained"
    )
    styles = _marks(table)
    for row, style in zip(table.to_dict("records"), styles, strict=True):
        one = pd.DataFrame([row])
        across, up = (figures._errors(one, name, f"{name}_low", f"{name}_high") for name in ("strongest", "kept"))
        cloud.errorbar(row["strongest"], row["kept"], up, across, elinewidth=0.5, **style)
    cloud.set(xlabel="success of the strongest attack on a group", ylabel="accuracy on other concepts")
    for ax, name, title in zip(sides, ("strongest", "kept"), ("success", "accuracy"), strict=True):
        for n, (row, style) in enumerate(zip(table.to_dict("records"), styles, strict=True)):
            error = figures._errors(pd.DataFrame([row]), *(f"more_{name}{end}" for end in ("", "_low", "_high")))
            ax.errorbar(row[f"more_{name}"], n, xerr=error, elinewidth=1, **style)
        ax.axvline(0, color="0.6", lw=0.8, zorder=0)
        ax.set(xlabel=f"{title}, more than {figures.label(beside)}", ylim=(len(table) - 0.5, -0.5))
    sides[0].set_yticks(range(len(table)), [figures.label(method) for method in table.method])
    sides[1].set_yticks(range(len(table)), [])
    for ax in (cloud, *sides):
        ax.grid(color="0.93")
    sns.despine(fig)
    return fig


def _marks(table: pd.DataFrame) -> list[dict]:
    """How each row's method is drawn."""
    known = {method: n for n, method in enumerate(figures.METHODS | figures.RIVALS)}
    return [
        {"fmt": MARKERS[known.get(method, n) % len(MARKERS)], "color": figures.colour(method), "ms": 7}
        for n, method in enumerate(table.method)
    ]


def heatmap(table: pd.DataFrame) -> Figure:
    """Methods by attacks, and what is kept: rates over all groups; see `rates`."""
    every = table[table.kind == "all"]
    values = every.pivot_table(index="method", columns="what", values="rate")
    whats = [name for name in figures.order(values.columns) if name not in KEPT] + list(KEPT)
    fig = _grid(values[whats], [f"kept: {figures.label(w)}" if w in KEPT else figures.label(w) for w in whats])
    fig.axes[0].axvline(len(whats) - len(KEPT), color="white", lw=4)
    return fig


def best_of(table: pd.DataFrame, what: str = "noise") -> pd.DataFrame:
    """The table of audits with all tries of one as one level, "best of n": a case is found if one of its tries is."""
    tries = table[table.what == what]
    if not len(tries):
        return table
    best = tries.groupby(["group", "method", "what", "case"], sort=False)[["top", "sure"]].max().reset_index()
    best["level"] = f"best of {tries.level.nunique()}"
    return pd.concat([table[table.what != what], best[table.columns]], ignore_index=True)


def audited(rates: pd.DataFrame) -> Figure:
    """Methods by audits and how much each was given: rates over all groups; columns method, what, level, rate."""
    columns = list(dict.fromkeys(zip(rates.what, rates["level"], strict=True)))
    values = rates.pivot_table(index="method", columns=["what", "level"], values="rate")[columns]
    fig = _grid(values, [f"{AUDITS.get(what, figures.label(what))}: {level}" for what, level in columns])
    for n in range(1, len(columns)):
        if columns[n][0] != columns[n - 1][0]:
            fig.axes[0].axvline(n, color="white", lw=4)
    return fig


def transfer(table: pd.DataFrame) -> Figure:
    """What each method's model shows of prompts that were found against it, and of those found against the others.

    table: of `auditing.transferred`. Intervals resample groups.
    """
    whose = np.where(table.source == table.method, "found against itself", "found against others")
    rates = fair.clustered(table.assign(whose=whose), ["method", "whose"])
    methods = figures.order(rates.method)
    fig, ax = plt.subplots(figsize=(7, 0.24 * len(methods) + 1.4), layout="constrained")
    for n, (name, part) in enumerate(rates.groupby("whose")):
        at = [methods.index(method) + 0.25 * n - 0.12 for method in part.method]
        error = figures._errors(part, "rate", "low", "high")
        ax.errorbar(part.rate, at, xerr=error, fmt="Do"[n], color=figures.PALETTE[n], label=name, elinewidth=1)
    ax.set(xlabel="success of prompts that a search found", xlim=(-0.02, 1.02), ylim=(len(methods) - 0.5, -0.5))
    ax.set_yticks(range(len(methods)), [figures.label(method) for method in methods])
    ax.grid(color="0.93", axis="x")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncol=2)
    sns.despine(fig)
    return fig


def _grid(values: pd.DataFrame, names: list[str]) -> Figure:
    """A heat map of rates, methods in rows, with these names of its columns."""
    values = values.loc[figures.order(values.index)]
    fig, ax = plt.subplots(figsize=(0.62 * len(names) + 2.6, 0.36 * len(values) + 2.2))
    sns.heatmap(values, ax=ax, cbar=False, linewidths=0.5, annot_kws={"fontsize": 8}, **figures.RATES)
    ax.set_xticklabels(names, rotation=40, ha="right")
    ax.set_yticklabels([figures.label(name) for name in values.index], rotation=0)
    ax.set(xlabel="", ylabel="")
    fig.tight_layout()
    return fig


def cost(table: pd.DataFrame) -> Figure:
    """Success of the strongest attack against the seconds of the edit, in those of UCE, a mark per method."""
    table = table[table.against_uce > 0].reset_index(drop=True)
    fig, ax = plt.subplots(figsize=(8.5, max(4.4, 0.22 * len(table) + 0.6)))
    for row, style in zip(table.to_dict("records"), _marks(table), strict=True):
        up = figures._errors(pd.DataFrame([row]), "strongest", "strongest_low", "strongest_high")
        ax.errorbar(
            row["against_uce"], row["strongest"], up, elinewidth=0.8, label=figures.label(row["method"]), **style
        )
    ax.set(xscale="log", xlabel="processor seconds of the edit, in those of UCE")
    ax.set_ylabel("success of the strongest attack")
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.grid(color="0.93")
    sns.despine(fig)
    fig.tight_layout()
    return fig
