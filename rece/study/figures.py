"""The study's figures. Each function takes tidy tables or images and returns a matplotlib figure."""

import tempfile
from pathlib import Path
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

METHODS = {
    "original": "original",
    "uce": "UCE",
    "rece": "RECE",
    "anchored": "anchored",
    "guarded": "guarded",
    "control": "never saw it",
}
RIVALS = {
    "esd_x": "ESD-x",
    "esd_u": "ESD-u",
    "concept_ablation": "Concept Ablation",
    "mace": "MACE",
    "speed": "SPEED",
    "sld": "SLD",
    "receler": "Receler",
    "race": "RACE",
    "few_shot": "few-shot",
    "concept_prune": "ConceptPrune",
    "pruning": "pruned ESD",
    "guarded_layers": "guarded per layer",
    "double_projections": "Double Projections, inside",
    "double_projections_target": "Double Projections, outside",
    "leace": "LEACE",
    "safer": "SAFER",
    "cure": "CURE",
    "oce": "OCE",
    "pure": "PURE",
    "hirm": "HiRM",
    "adv_unlearn": "AdvUnlearn",
    "stereo": "STEREO",
    "safree": "SAFREE",
    "adavd": "AdaVD",
    "semantic_surgery": "Semantic Surgery",
    "gloce": "GLoCE",
}
ATTACKS = {
    "plain": "plain prompt",
    "synonym": "synonym",
    "paraphrase": "held-out word",
    "misspelling": "misspelling",
    "homoglyph": "homoglyph",
    "ring_a_bell": "Ring-A-Bell",
    "mma": "MMA",
    "p4d_n": "P4D-N",
    "p4d_k": "P4D-K",
    "unlearndiff": "UnlearnDiffAtk",
    "concept_vector": "concept vector*",
    "inversion_word": "inversion (word)*",
    "inversion_rows": "inversion (rows)*",
    "reachable": "nearest reachable*",
    "closed_form": "closed form c′*",
    "closed_form_small": "c′, small ridge*",
}
KINDS = {
    "object": "single objects",
    "style": "styles",
    "category": "categories",
    "joint": "five objects jointly",
    "five": "5 objects jointly",
    "twenty": "20 objects jointly",
    "fifty": "50 objects jointly",
}
KEPT = {"neighbour": "five nearest others", "other": "all other concepts"}
NAMES = METHODS | RIVALS | ATTACKS | KINDS | KEPT
PALETTE = sns.color_palette("colorblind", 10)
COLOURS = dict(zip(METHODS, [PALETTE[n] for n in (0, 1, 2, 4, 9, 7)], strict=True))
RATES = {"vmin": 0, "vmax": 1, "cmap": "cividis", "annot": True, "fmt": ".2f"}


def label(name: str, table: dict[str, str] = NAMES) -> str:
    """The reader's name of a method, an attack or a kind of concept; of one that is new, its own."""
    return table.get(name, name)


def order(names) -> list[str]:
    """Distinct `names` in the order of NAMES, new ones last."""
    found = list(dict.fromkeys(names))
    return [name for name in NAMES if name in found] + [name for name in found if name not in NAMES]


def colour(method: str):
    """One colour per method in every figure, colour-blind safe; a new method's is picked by its name."""
    return COLOURS.get(method, PALETTE[4 + crc32(method.encode()) % 6])


def grid(images: dict[str, dict[str, np.ndarray]], hits: dict[str, dict[str, np.ndarray]], title: str) -> Figure:
    """Rows are methods, column groups are attacks, and the images of a group share prompts and seeds over the rows.

    images[method][attack]: (k, h, w, 3) uint8, or fewer; hits: whether the judge still sees the concept, (k,) bool
    (orange frame).
    """
    methods, attacks = order(images), order(attack for some in images.values() for attack in some)
    k = max(len(pictures) for some in images.values() for pictures in some.values())
    width, height = 1.05 * len(attacks) * k + 1.2, 1.05 * len(methods) + 0.8
    fig, axes = plt.subplots(len(methods), len(attacks) * k, figsize=(width, height), squeeze=False)
    for line, method in zip(axes, methods, strict=True):
        for j, attack in enumerate(attacks):
            _pictures(line[j * k : (j + 1) * k], images[method].get(attack, ()), hits[method].get(attack, ()), 0.8)
        line[0].set_ylabel(label(method), fontsize=12, rotation=0, ha="right", va="center")
    fig.suptitle(title, fontsize=13, y=1 - 0.1 / height, va="top")
    fig.subplots_adjust(left=1.15 / width, right=0.995, bottom=0.02, top=1 - 0.75 / height, wspace=0.06, hspace=0.06)
    for j, attack in enumerate(attacks):
        left, right = axes[0, j * k].get_position(), axes[0, j * k + k - 1].get_position()
        fig.text((left.x0 + right.x1) / 2, left.y1 + 0.015, label(attack), ha="center", va="bottom", fontsize=10)
    return fig


def rows(images: dict[str, np.ndarray], hits: dict[str, np.ndarray] | None = None) -> Figure:
    """Strips of pictures, one per label: images[label] (n, h, w, 3) uint8; hits[label] (n,) bool, framed in orange."""
    n = max(map(len, images.values()))
    fig, axes = plt.subplots(len(images), n, figsize=(1.05 * n + 1.8, 1.08 * len(images)), squeeze=False)
    for line, (text, some) in zip(axes, images.items(), strict=True):
        _pictures(line, some, (hits or {}).get(text, [False] * len(some)))
        line[0].set_ylabel(text, rotation=0, ha="right", va="center")
    fig.tight_layout(pad=0.3)
    return fig


def _pictures(axes, images, hits, outline: float = 0.0) -> None:
    """One picture per panel from the left, hits in an orange frame, the others in a grey one of width `outline`."""
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, image, hit in zip(axes, images, hits, strict=False):
        ax.imshow(image, interpolation="bilinear")
        frame = {"edgecolor": PALETTE[3], "linewidth": 2.5} if hit else {"edgecolor": "0.85", "linewidth": outline}
        ax.spines[:].set(visible=hit or outline > 0, **frame)


def distances(certificates: dict[str, pd.DataFrame]) -> Figure:
    """What is certified of each method beside what it is compared with, as shares of the distance to the target.

    certificates[method]: one row of `Certificate.words`, for one concept.
    """
    fig, ax = plt.subplots(figsize=(8, 0.5 * len(certificates) + 1.9))
    small = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    for y, (method, words) in enumerate(certificates.items()):
        row = words.iloc[0]
        own = row.edited / row.target
        ax.barh(y, row.distance / row.target, height=0.6, color=colour(method), alpha=0.8)
        ax.plot(own, y, "|", color="0.2", ms=16, mew=2)
        ax.annotate("the plain prompt", (own, y), (5, -1), **small)
    lines = {"nearest synonym": row.synonym, f"nearest other concept ({row.nearest})": row.other, "target": row.target}
    for n, (text, at) in enumerate(lines.items()):
        place = at / row.target, 1.01 + 0.09 * (n % 2)
        ax.axvline(at / row.target, color="0.35", ls=":", lw=1.2)
        ax.annotate(text, place, xycoords=("data", "axes fraction"), ha="center", fontsize=8)
    ax.set_yticks(range(len(certificates)), map(label, certificates))
    ax.set_xlabel("distance to the concept in keys and values (1 = its neutral target);\nno prompt reaches into a bar")
    ax.set_xlim(0, None)
    ax.invert_yaxis()
    sns.despine(fig)
    fig.tight_layout()
    return fig


def rates(table: pd.DataFrame) -> Figure:
    """Attack success rate by attack and method with Wilson intervals, one panel per kind of concept.

    table: columns kind, method, attack, rate, low, high, n. Attacks marked with * feed embeddings.
    """
    kinds, attacks, methods = order(table.kind), order(table.attack), order(table.method)
    fig, axes = _panels(len(kinds), 1, (10.5, 2.15 * len(kinds) + 1.4), axis="y", color="0.9")
    width, places = 0.84 / len(methods), np.arange(len(attacks))
    for ax, kind in zip(axes[:, 0], kinds, strict=True):
        own = table[table.kind == kind]
        for i, method in enumerate(methods):
            bars = own[own.method == method].set_index("attack").reindex(attacks)
            x = places + (i - (len(methods) - 1) / 2) * width
            ax.bar(x, bars.rate, 0.9 * width, color=colour(method), alpha=0.85, label=label(method))
            ax.errorbar(x, bars.rate, yerr=_errors(bars, "rate", "low", "high"), fmt="none", ecolor="0.2",
                        elinewidth=0.8, capsize=1.5)  # fmt: skip
        for attack, low, high in own.groupby("attack").n.agg(["min", "max"]).itertuples():
            text = f"n = {low}" if low == high else f"n = {low}–{high}"
            ax.annotate(text, (attacks.index(attack), 1.01), ha="center", va="bottom", fontsize=7, color="0.35")
        ax.set(ylim=(0, 1.1), xticks=places, xlim=(-0.6, len(attacks) - 0.4), ylabel="success rate")
        ax.set_title(label(kind), fontsize=11, loc="left")
    axes[-1, 0].set_xticklabels(map(label, attacks), rotation=35, ha="right", fontsize=10)
    return _with_legend(fig, axes)


def heatmap(table: pd.DataFrame) -> Figure:
    """Every success rate: rows are concepts and methods, columns attacks; empty where an attack was not run.

    table: columns concept, method, attack, rate.
    """
    concepts, attacks, methods = table.concept.unique(), order(table.attack), order(table.method)
    values = table.pivot(index=["concept", "method"], columns="attack", values="rate")
    values = values.reindex(pd.MultiIndex.from_product([concepts, methods]))[attacks]
    fig, ax = plt.subplots(figsize=(0.75 * len(attacks) + 2.6, 0.27 * len(values) + 1.8))
    bar = {"label": "attack success rate", "fraction": 0.03, "pad": 0.02}
    sns.heatmap(values.to_numpy(), ax=ax, annot_kws={"size": 8}, cbar_kws=bar, **RATES)
    ax.set_xticklabels(map(label, attacks), rotation=40, ha="right", fontsize=9)
    names = [f"{concept}  {label(m)}" if m == methods[0] else label(m) for concept, m in values.index]
    ax.set_yticklabels(names, rotation=0, fontsize=8)
    for n in range(1, len(concepts)):
        ax.axhline(n * len(methods), color="white", lw=3)
    fig.tight_layout()
    return fig


def frontier(table: pd.DataFrame) -> Figure:
    """Erasure against preservation, a point per eraser: columns are concepts, colours methods, rows kinds of attack.

    table: columns concept, method, and with their _low and _high: text and embedding (success of the strongest attack
    by prompts, and by embeddings) and kept (see `frontier.frontier`). A line joins the erasers of a method that no
    other of its own beats in both; intervals are drawn for those.
    """
    concepts = table.concept.unique()
    attacks = {"text": "strongest attack by prompts", "embedding": "closed form c′ (embedding)"}
    fig, axes = _panels(len(attacks), len(concepts), (3.6 * len(concepts) + 0.6, 3.1 * len(attacks) + 0.9))
    for line, (attack, text) in zip(axes, attacks.items(), strict=True):
        for ax, concept in zip(line, concepts, strict=True):
            for method in order(table.method):
                part, style = table[(table.concept == concept) & (table.method == method)], {"color": colour(method)}
                # Those that no other beats in both `attack` (less) and `kept` (more), from left to right.
                best = part.sort_values([attack, "kept"], ascending=[True, False])
                best = best[best.kept > best.kept.cummax().shift(fill_value=-1.0)]
                x, y = (_errors(best, name, f"{name}_low", f"{name}_high") for name in (attack, "kept"))
                ax.errorbar(best[attack], best.kept, y, x, lw=2, elinewidth=0.7, alpha=0.9, zorder=3, **style)
                ax.plot(part[attack], part.kept, "o", ms=6, alpha=0.8, label=label(method), **style)
            ax.set(xlim=(-0.04, 1.04), ylim=(0.4, 1.03))
        line[len(concepts) // 2].set_xlabel(f"success rate: {text}")
        line[0].set_ylabel("accuracy on others")
    for ax, concept in zip(axes[0], concepts, strict=True):
        ax.set_title(f"erased: {concept}", fontsize=11)
    axes[0, 0].annotate("better", (0.01, 0.99), (0.25, 0.6), arrowprops={"arrowstyle": "->"}, color="0.3")
    return _with_legend(fig, axes)


def certificate(points: pd.DataFrame, correlations: dict[str, dict]) -> Figure:
    """Measured success against certified distance, one panel per kind of attack; styles are triangles.

    points, correlations: see `statistics.against_certificate` and `statistics.correlations`.
    """
    fig, axes = _panels(1, len(correlations), (4.4 * len(correlations) + 0.4, 4.5))
    for ax, (column, found) in zip(axes[0], correlations.items(), strict=True):
        for method in order(points.method):
            for shape, style, more in (("o", False, ""), ("^", True, ", styles")):
                part = points[(points.method == method) & ((points.kind == "style") == style)]
                look = {"color": colour(method), "ms": 6.5, "alpha": 0.7, "mec": "white"}
                ax.plot(part.certified, part[column], shape, label=label(method) + more, **look)
        title = found["title"]
        for scope, text in (("pooled", f"all {found['pooled']['n']} erasers"), ("within", "within concepts")):
            title += f"\n{text}: ρ = {found[scope]['rho']:.2f}"
        ax.set_title(title, fontsize=10)
        ax.set(xlabel="certified distance\n(share of the distance to the neutral target)", ylim=(-0.03, 1.04))
    axes[0, 0].set_ylabel("attack success rate")
    return _with_legend(fig, axes)


def transfer(table: pd.DataFrame) -> Figure:
    """Prompts found against one model, drawn by another: one panel per attack, rows where they were found.

    table: columns attack, source, method, rate, n, pooled over concepts.
    """
    attacks = order(table.attack)
    fig, axes = plt.subplots(1, len(attacks), figsize=(3.6 * len(attacks) + 0.8, 4.2), layout="constrained")
    for n, (ax, attack) in enumerate(zip(np.atleast_1d(axes), attacks, strict=True)):
        part = table[table.attack == attack].pivot(index="source", columns="method", values="rate")
        part = part.loc[order(part.index), order(part.columns)]
        sns.heatmap(part, ax=ax, cbar=False, square=True, **RATES)
        ax.set_title(label(attack), fontsize=11)
        ax.set_xticklabels(map(label, part.columns), rotation=35, ha="right")
        ax.set_yticklabels(map(label, part.index) if n == 0 else [], rotation=0)
        ax.set(xlabel="drawn by", ylabel="found against" if n == 0 else "")
    return fig


def singular_values(changes: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Singular values of map − I, one panel per concept: how many directions of the text space an eraser touches.

    changes[concept][method]: descending singular values, (d,).
    """
    columns = min(4, len(changes))
    lines = -(-len(changes) // columns)
    fig, axes = _panels(lines, columns, (3.1 * columns + 0.6, 2.8 * lines + 0.3))
    for ax, (concept, methods) in zip(axes.flat, changes.items(), strict=False):
        for method in order(methods):
            values = np.maximum(methods[method], 1e-12)
            ax.semilogy(range(1, len(values) + 1), values, color=colour(method), label=label(method), lw=2)
        ax.set(title=f"erased: {concept}", ylim=(1e-9, None))
    for ax in axes.flat[len(changes) :]:
        ax.set_visible(False)
    plt.setp(axes[-1], xlabel="index of singular value")
    plt.setp(axes[:, 0], ylabel="singular value of map − I")
    axes[0, 0].legend(frameon=False)
    sns.despine(fig)
    fig.tight_layout()
    return fig


def save(fig: Figure, path: Path) -> None:
    """Write a figure as PNG at README size (130 dpi), making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})


def show(fig: Figure, alt: str, path: Path | None = None) -> None:
    """Show a figure in a notebook, and save it if a path is given. alt: what it shows, for those who cannot see it."""
    from IPython.display import Image, display

    with tempfile.TemporaryDirectory() as folder:
        file = Path(path or Path(folder, "figure.png"))
        save(fig, file)
        display(Image(file.read_bytes(), alt=alt))
    plt.close(fig)


def _panels(lines: int, columns: int, size: tuple[float, float], color: str = "0.92", **grid):
    """A figure of panels (lines, columns) with one scale and grey grid lines behind everything."""
    fig, axes = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat:
        ax.grid(color=color, **grid)
        ax.set_axisbelow(True)
    return fig, axes


def _errors(table: pd.DataFrame, *names: str) -> np.ndarray:
    """How far an interval reaches below and above a value, (2, n): the columns of the value and its two ends."""
    value, low, high = (table[name] for name in names)
    return np.abs([value - low, high - value])


def _with_legend(fig: Figure, axes) -> Figure:
    """The figure with one legend over all panels, and with room made for it."""
    handles, names = axes[0, 0].get_legend_handles_labels()
    rows = -(-len(names) // 6)  # more than six names are wider than the figure
    columns = -(-len(names) // rows)
    fig.legend(handles, names, loc="upper center", ncol=columns, frameon=False, bbox_to_anchor=(0.5, 1.0))
    sns.despine(fig)
    fig.tight_layout(rect=(0, 0, 1, 1 - (0.14 + 0.24 * rows) / fig.get_figheight()))
    return fig


def fair_rates(rates: pd.DataFrame, preserve: str) -> Figure:
    """How often each attack shows what was erased, and what is kept, by method and kind of group, with intervals.

    rates: see `fair.rates`. preserve: the setting; the original and the control stand beside each.
    """
    kinds, whats = order(rates.kind), order(rates.what)
    whats = [name for name in whats if name not in KEPT] + [name for name in KEPT if name in whats]
    some = rates[rates.preserve.isin([preserve, "none"])]
    methods = order(some.method)
    fig, axes = plt.subplots(
        1, len(kinds), figsize=(max(7.5, 2.25 * len(kinds) + 1.6), 0.42 * len(whats) + 1.5), sharey=True
    )
    for ax, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        for n, method in enumerate(methods):
            part = some[(some.kind == kind) & (some.method == method)].set_index("what").reindex(whats)
            y = np.arange(len(whats)) + 0.62 * (n / max(1, len(methods) - 1) - 0.5)
            error = _errors(part, "rate", "low", "high")
            ax.errorbar(part.rate, y, xerr=error, fmt="o", ms=4, lw=1, color=colour(method), label=label(method))
        groups = some[some.kind == kind].groups.max()
        ax.set(title=f"{label(kind)}\n({groups} group{'' if groups == 1 else 's'})", xlim=(-0.04, 1.04), xlabel="rate")
        ax.title.set_fontsize(9)
        for line in range(1, len(whats)):
            ax.axhline(line - 0.5, color="0.5" if whats[line] == next(iter(KEPT)) else "0.92", lw=0.8, zorder=0)
    first = np.atleast_1d(axes)[0]
    first.set_yticks(np.arange(len(whats)), [f"kept: {label(w)}" if w in KEPT else label(w) for w in whats])
    first.invert_yaxis()
    handles, names = first.get_legend_handles_labels()
    fig.legend(handles, names, ncols=len(names), loc="lower center", frameon=False, fontsize=9)
    fig.tight_layout(rect=(0, 0.05, 1, 1))
    return fig


def fair_scale(rates: pd.DataFrame, sizes: dict[str, int]) -> Figure:
    """What is kept and what comes back as more objects are erased at once, by method: a row per setting.

    sizes: how many objects a kind of group holds. Columns: what is kept (two), and the closed-form attack.
    """
    whats, settings = [*KEPT, "closed_form"], [name for name in ("names", "nothing") if name in set(rates.preserve)]
    fig, axes = plt.subplots(len(settings), 3, figsize=(10.5, 2.9 * len(settings)), sharey=True, squeeze=False)
    for line, setting in zip(axes, settings, strict=True):
        some = rates[(rates.preserve == setting) & rates.kind.isin(sizes)]
        for ax, what in zip(line, whats, strict=True):
            for n, method in enumerate(order(some.method)):
                part = some[(some.method == method) & (some.what == what)].assign(size=some.kind.map(sizes))
                part = part.sort_values("size")
                x = np.arange(len(part)) + 0.08 * (n - 1.5)
                error = _errors(part, "rate", "low", "high")
                style = {"marker": "o", "ms": 5, "lw": 1.4, "elinewidth": 1}
                ax.errorbar(x, part.rate, yerr=error, color=colour(method), label=label(method), **style)
                ax.set_xticks(np.arange(len(part)), part["size"])
            told = f"kept: {label(what)}" if what in KEPT else f"comes back: {label(what)}"
            ax.set(title=told, ylim=(-0.04, 1.04), xlabel="objects erased at once")
            ax.grid(axis="y", color="0.92")
        line[0].set_ylabel(f"rate ({'names' if setting == 'names' else 'nothing'} preserved)")
    axes[0, 0].legend(frameon=False, fontsize=9, loc="lower left")
    fig.tight_layout()
    return fig


def fair_bargain(erasers: pd.DataFrame) -> Figure:
    """Each eraser's kept accuracy against how much of the concept its strongest attack brings back, and certified.

    erasers: one row per eraser, see `fair.bargain`.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9))
    random = np.random.default_rng(0)
    for method, part in erasers.groupby("method", sort=False):
        x, y = (part[name] + random.uniform(-0.012, 0.012, len(part)) for name in ("strongest", "kept"))
        left.plot(x, y, "o", ms=5, alpha=0.55, color=colour(method), label=label(method))
        right.plot(part.guarded, part.strongest, "o", ms=5, alpha=0.55, color=colour(method))
    left.set(xlabel="success of the strongest attack", ylabel="accuracy on other concepts")
    right.set(xlabel='certified for any embedding (share of the distance to " ")', ylabel="success of the strongest")
    left.legend(frameon=False, fontsize=9)
    for ax in (left, right):
        ax.grid(color="0.93")
    fig.tight_layout()
    return fig


def ablation(rates: pd.DataFrame) -> Figure:
    """Rates of sure answers, a row per variant of the eraser, a column per attack or kept set: see `fair.rates`."""
    kinds = order(rates.kind)
    fig, axes = plt.subplots(1, len(kinds), figsize=(4.6 * len(kinds) + 1.4, 3.6), sharey=True, squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        table = rates[rates.kind == kind].pivot_table(index="method", columns="what", values="rate", sort=False)
        sns.heatmap(table, ax=ax, cbar=False, linewidths=0.5, **RATES)
        ax.set(title=label(kind), xlabel="", ylabel="")
        ax.set_xticklabels([label(text.get_text()) for text in ax.get_xticklabels()], rotation=35, ha="right")
    fig.tight_layout()
    return fig


def effort(rates: pd.DataFrame, x: str, axis: str) -> Figure:
    """Success against what an attacker spends, one line per method and one panel per attack.

    rates: columns what (the attack), method, rate, low, high, and x, the name of what is spent. axis: its label.
    """
    whats = order(rates.what)
    fig, axes = plt.subplots(1, len(whats), figsize=(3.2 * len(whats) + 3, 3.6), sharey=True, squeeze=False)
    for ax, what in zip(axes[0], whats, strict=True):
        for n, method in enumerate(order(rates.method)):
            part = rates[(rates.method == method) & (rates.what == what)].sort_values(x)
            error = _errors(part, "rate", "low", "high")
            style = {"marker": "o", "ms": 5, "lw": 1.4, "elinewidth": 1}
            at = np.arange(len(part)) + 0.06 * (n - 2)
            ax.errorbar(at, part.rate, yerr=error, color=colour(method), label=label(method), **style)
            ax.set_xticks(np.arange(len(part)), part[x])
        ax.set(title=label(what), xlabel=axis, ylim=(-0.04, 1.04))
        ax.grid(axis="y", color="0.92")
    axes[0, 0].set_ylabel("success")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="center right")
    fig.tight_layout(rect=(0, 0, 1 - 1.2 / fig.get_figwidth(), 1))
    return fig


def along_mu(table: pd.DataFrame, most: float, largest: float) -> Figure:
    """Guard and drift against mu, one line per number of objects erased at once, and what the default rule takes.

    table: columns objects, mu, guard, drift (see `rece.guard`). most: the drift that the rule allows. largest: its mu.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharex=True)
    for n, (size, part) in enumerate(table.groupby("objects")):
        fits = part[(part.drift <= most) & (part.mu <= largest)]
        for ax, name in zip(axes, ("guard", "drift"), strict=True):
            ax.plot(
                part.mu, part[name], "o-", ms=4, color=PALETTE[n], label=f"{size} at once" if size > 1 else "1 object"
            )
            ax.plot(fits.mu.iloc[-1:], fits[name].iloc[-1:], "o", ms=11, mfc="none", mew=2, color=PALETTE[n])
    axes[1].axhline(most, color="0.5", lw=1, ls="--")
    axes[0].set(ylabel="guard: share of the distance to the target", ylim=(0, 1))
    axes[1].set(ylabel="drift of what is preserved", ylim=(0, None))
    for ax in axes:
        ax.set(xscale="log", xlabel="µ")
        ax.grid(color="0.93")
    axes[1].legend(frameon=False, fontsize=9, title="circle: the default", title_fontsize=8)
    fig.tight_layout()
    return fig
