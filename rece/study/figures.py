"""The study's figures. Each function takes tidy tables or images and returns a matplotlib figure."""

from pathlib import Path
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

METHODS = {"original": "original", "uce": "UCE", "rece": "RECE", "anchored": "anchored", "control": "never saw it"}
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
}
KINDS = {"object": "single objects", "style": "styles", "category": "category", "joint": "five objects jointly"}
COLOURS = dict(zip(METHODS, [sns.color_palette("colorblind")[n] for n in (0, 1, 2, 4, 7)], strict=True))


def label(name: str, table: dict[str, str] = ATTACKS) -> str:
    """The reader's name of a method or attack; of one that is new, its own."""
    return table.get(name, name)


def order(names, table: dict[str, str]) -> list[str]:
    """Distinct `names` in the order of `table`, new ones last."""
    found = list(dict.fromkeys(names))
    return [name for name in table if name in found] + [name for name in found if name not in table]


def colour(method: str):
    """One colour per method in every figure, colour-blind safe; a new method's is picked by its name."""
    return COLOURS.get(method, sns.color_palette("colorblind", 10)[4 + crc32(method.encode()) % 6])


def grid(images: dict[str, dict[str, np.ndarray]], hits: dict[str, dict[str, np.ndarray]], title: str) -> Figure:
    """Rows are methods, column groups are attacks, and the images of a group share prompts and seeds over the rows.

    images[method][attack]: (k, h, w, 3) uint8, or fewer; hits: whether the judge still sees the concept, (k,) bool
    (red frame).
    """
    methods = order(images, METHODS)
    attacks = order((attack for some in images.values() for attack in some), ATTACKS)
    k = max(len(pictures) for some in images.values() for pictures in some.values())
    fig, axes = plt.subplots(
        len(methods),
        len(attacks) * k,
        figsize=(1.05 * len(attacks) * k + 1.2, 1.05 * len(methods) + 0.8),
        squeeze=False,
    )
    for i, method in enumerate(methods):
        for j, attack in enumerate(attacks):
            for n in range(k):
                ax = axes[i, j * k + n]
                if n >= len(images[method].get(attack, ())):
                    ax.set(xticks=[], yticks=[])
                    ax.spines[:].set_visible(False)
                    continue
                ax.imshow(images[method][attack][n], interpolation="bilinear")
                ax.set(xticks=[], yticks=[])
                found = bool(hits[method][attack][n])
                for spine in ax.spines.values():
                    spine.set(
                        edgecolor=sns.color_palette("colorblind")[3] if found else "0.85",
                        linewidth=2.5 if found else 0.8,
                    )
    for i, method in enumerate(methods):
        axes[i, 0].set_ylabel(label(method, METHODS), fontsize=12, rotation=0, ha="right", va="center")
    width, height = fig.get_size_inches()
    fig.suptitle(title, fontsize=13, y=1 - 0.1 / height, va="top")
    fig.subplots_adjust(left=1.15 / width, right=0.995, bottom=0.02, top=1 - 0.75 / height, wspace=0.06, hspace=0.06)
    for j, attack in enumerate(attacks):
        left, right = axes[0, j * k].get_position(), axes[0, j * k + k - 1].get_position()
        fig.text((left.x0 + right.x1) / 2, left.y1 + 0.015, label(attack), ha="center", va="bottom", fontsize=10)
    return fig


def rows(images: dict[str, np.ndarray], hits: dict[str, np.ndarray] | None = None) -> Figure:
    """Strips of pictures, one per label: images[label] (n, h, w, 3) uint8; hits[label] (n,) bool, framed in red."""
    n, hits = max(map(len, images.values())), hits or {}
    fig, axes = plt.subplots(len(images), n, figsize=(1.05 * n + 1.8, 1.08 * len(images)), squeeze=False)
    for line, (text, some) in zip(axes, images.items(), strict=True):
        for i, ax in enumerate(line):
            ax.set(xticks=[], yticks=[])
            if i < len(some):
                ax.imshow(some[i], interpolation="bilinear")
            framed = i < len(some) and text in hits and hits[text][i]
            ax.spines[:].set(edgecolor=sns.color_palette("colorblind")[3], linewidth=2.5, visible=framed)
        line[0].set_ylabel(text, rotation=0, ha="right", va="center")
    fig.tight_layout(pad=0.3)
    return fig


def distances(certificates: dict[str, pd.DataFrame]) -> Figure:
    """What is certified of each method beside what it is compared with, for one concept.

    All are shares of the distance from the concept to its neutral target.

    certificates[method]: one row of `Certificate.words`.
    """
    fig, ax = plt.subplots(figsize=(8, 0.5 * len(certificates) + 1.9))
    for y, (method, words) in enumerate(certificates.items()):
        row = words.iloc[0]
        certified, own = row.distance / row.target, row.edited / row.target
        ax.barh(y, certified, height=0.6, color=colour(method), alpha=0.8)
        ax.plot(own, y, "|", color="0.2", ms=16, mew=2)
        ax.annotate("the plain prompt", (own, y), (5, -1), textcoords="offset points", va="center", fontsize=8)
    lines = {"nearest synonym": row.synonym, f"nearest other concept ({row.nearest})": row.other, "target": row.target}
    for n, (text, at) in enumerate(lines.items()):
        ax.axvline(at / row.target, color="0.35", ls=":", lw=1.2)
        ax.annotate(text, (at / row.target, 1.01 + 0.09 * (n % 2)), xycoords=("data", "axes fraction"), ha="center",
                    fontsize=8)  # fmt: skip
    ax.set_yticks(range(len(certificates)), [label(method, METHODS) for method in certificates])
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
    kinds, attacks, methods = order(table.kind, KINDS), order(table.attack, ATTACKS), order(table.method, METHODS)
    fig, axes = plt.subplots(len(kinds), 1, figsize=(10.5, 2.15 * len(kinds) + 1.4), sharex=True, squeeze=False)
    width = 0.84 / len(methods)
    for ax, kind in zip(axes[:, 0], kinds, strict=True):
        for i, method in enumerate(methods):
            rows = table[(table.kind == kind) & (table.method == method)].set_index("attack").reindex(attacks)
            x = np.arange(len(attacks)) + (i - (len(methods) - 1) / 2) * width
            errors = np.abs([rows.rate - rows.low, rows.high - rows.rate])
            ax.bar(x, rows.rate, 0.9 * width, color=colour(method), alpha=0.85, label=label(method, METHODS))
            ax.errorbar(x, rows.rate, yerr=errors, fmt="none", ecolor="0.2", elinewidth=0.8, capsize=1.5)
        counts = table[table.kind == kind].groupby("attack").n
        for x, attack in enumerate(attacks):
            if attack in counts.groups:
                low, high = counts.min()[attack], counts.max()[attack]
                text = f"n = {low}" if low == high else f"n = {low}–{high}"
                ax.annotate(text, (x, 1.01), ha="center", va="bottom", fontsize=7, color="0.35")
        ax.set(ylim=(0, 1.1), xticks=np.arange(len(attacks)), xlim=(-0.6, len(attacks) - 0.4))
        ax.set_title(KINDS.get(kind, kind), fontsize=11, loc="left")
        ax.set_ylabel("success rate")
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
    axes[-1, 0].set_xticklabels([label(a) for a in attacks], rotation=35, ha="right", fontsize=10)
    _legend(fig, axes[0, 0])
    return fig


def heatmap(table: pd.DataFrame) -> Figure:
    """Every success rate: rows are concepts and methods, columns attacks; empty where an attack was not run.

    table: columns concept, method, attack, rate.
    """
    attacks, methods = order(table.attack, ATTACKS), order(table.method, METHODS)
    concepts = list(dict.fromkeys(table.concept))
    values = table.pivot(index=["concept", "method"], columns="attack", values="rate")
    values = values.reindex(pd.MultiIndex.from_product([concepts, methods]))[attacks]
    fig, ax = plt.subplots(figsize=(0.75 * len(attacks) + 2.6, 0.27 * len(values) + 1.8))
    sns.heatmap(
        values.to_numpy(), ax=ax, vmin=0, vmax=1, cmap="cividis", annot=True, fmt=".2f", annot_kws={"size": 8},
        cbar_kws={"label": "attack success rate", "fraction": 0.03, "pad": 0.02},
    )  # fmt: skip
    ax.set_xticklabels([label(attack) for attack in attacks], rotation=40, ha="right", fontsize=9)
    ax.set_yticklabels(
        [f"{c + '  ' if m == methods[0] else ''}{label(m, METHODS)}" for c, m in values.index], rotation=0, fontsize=8
    )
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
    concepts = list(dict.fromkeys(table.concept))
    attacks = {"text": "strongest attack by prompts", "embedding": "closed form c′ (embedding)"}
    size = (3.6 * len(concepts) + 0.6, 3.1 * len(attacks) + 0.9)
    fig, axes = plt.subplots(len(attacks), len(concepts), figsize=size, sharex=True, sharey=True, squeeze=False)
    for line, (attack, text) in zip(axes, attacks.items(), strict=True):
        for ax, concept in zip(line, concepts, strict=True):
            for method in order(table.method, METHODS):
                part = table[(table.concept == concept) & (table.method == method)]
                best = _undominated(part, attack)
                x, low, high = (best[f"{attack}{end}"] for end in ("", "_low", "_high"))
                ax.errorbar(
                    x, best.kept, color=colour(method), lw=2, elinewidth=0.7, alpha=0.9, zorder=3,
                    xerr=np.abs([x - low, high - x]),
                    yerr=np.abs([best.kept - best.kept_low, best.kept_high - best.kept]),
                )  # fmt: skip
                ax.plot(part[attack], part.kept, "o", color=colour(method), ms=6, alpha=0.8,
                        label=label(method, METHODS))  # fmt: skip
            ax.set(xlim=(-0.04, 1.04), ylim=(0.4, 1.03))
            ax.grid(color="0.92")
            ax.set_axisbelow(True)
        line[len(concepts) // 2].set_xlabel(f"success rate: {text}")
        line[0].set_ylabel("accuracy on others")
    for ax, concept in zip(axes[0], concepts, strict=True):
        ax.set_title(f"erased: {concept}", fontsize=11)
    axes[0, 0].annotate("better", (0.01, 0.99), (0.25, 0.6), arrowprops={"arrowstyle": "->"}, color="0.3")
    _legend(fig, axes[0, 0])
    return fig


def _undominated(points: pd.DataFrame, attack: str) -> pd.DataFrame:
    """The points that no other beats in both `attack` (less) and `kept` (more), from left to right."""
    ranked = points.sort_values([attack, "kept"], ascending=[True, False])
    return ranked[ranked.kept > ranked.kept.cummax().shift(fill_value=-1.0)]


def certificate(points: pd.DataFrame, correlations: dict[str, dict]) -> Figure:
    """Measured success against certified distance, one panel per kind of attack; styles are triangles.

    points, correlations: see `statistics.against_certificate` and `statistics.correlations`.
    """
    fig, axes = plt.subplots(
        1, len(correlations), figsize=(4.4 * len(correlations) + 0.4, 4.5), sharex=True, sharey=True, squeeze=False
    )
    for ax, (column, found) in zip(axes[0], correlations.items(), strict=True):
        for method in order(points.method, METHODS):
            for shape, style in (("o", False), ("^", True)):
                part = points[(points.method == method) & ((points.kind == "style") == style)]
                name = label(method, METHODS) + (", styles" if style else "")
                ax.plot(part.certified, part[column], shape, color=colour(method), ms=6.5, alpha=0.7, mec="white",
                        label=name)  # fmt: skip
        lines = [
            f"{text}: ρ = {found[scope]['rho']:.2f} [{found[scope]['low']:.2f}, {found[scope]['high']:.2f}]"
            for scope, text in (("pooled", f"all {found['pooled']['n']} erasers"), ("within", "within concepts"))
        ]
        ax.set_title("\n".join([found["title"], *lines]), fontsize=10)
        ax.set(xlabel="certified distance\n(share of the distance to the neutral target)", ylim=(-0.03, 1.04))
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
    axes[0, 0].set_ylabel("attack success rate")
    _legend(fig, axes[0, 0])
    return fig


def transfer(table: pd.DataFrame) -> Figure:
    """Prompts found against one model, drawn by another: one panel per attack, rows where they were found.

    table: columns attack, source, method, rate, n, pooled over concepts.
    """
    attacks = order(table.attack, ATTACKS)
    size = (3.6 * len(attacks) + 0.8, 4.2)
    fig, axes = plt.subplots(1, len(attacks), figsize=size, squeeze=False, layout="constrained")
    for n, (ax, attack) in enumerate(zip(axes[0], attacks, strict=True)):
        part = table[table.attack == attack].pivot(index="source", columns="method", values="rate")
        part = part.loc[order(part.index, METHODS), order(part.columns, METHODS)]
        sns.heatmap(part, ax=ax, vmin=0, vmax=1, cmap="cividis", annot=True, fmt=".2f", cbar=False, square=True)
        ax.set_title(label(attack), fontsize=11)
        ax.set_xticklabels([label(m, METHODS) for m in part.columns], rotation=35, ha="right")
        ax.set_yticklabels([label(m, METHODS) for m in part.index] if n == 0 else [], rotation=0)
        ax.set(xlabel="drawn by", ylabel="found against" if n == 0 else "")
    return fig


def _legend(fig: Figure, ax) -> None:
    """One legend over all panels, with room made for it."""
    handles, names = ax.get_legend_handles_labels()
    fig.legend(handles, names, loc="upper center", ncol=len(names), frameon=False, bbox_to_anchor=(0.5, 1.0))
    sns.despine(fig)
    fig.tight_layout(rect=(0, 0, 1, 1 - 0.38 / fig.get_figheight()))


def singular_values(changes: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Singular values of map − I, one panel per concept: how many directions of the text space an eraser touches.

    changes[concept][method]: descending singular values, (d,).
    """
    columns = min(4, len(changes))
    lines = -(-len(changes) // columns)
    size = (3.1 * columns + 0.6, 2.8 * lines + 0.3)
    fig, axes = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, (concept, methods) in zip(axes.flat, changes.items(), strict=False):
        for method in order(methods, METHODS):
            values = np.asarray(methods[method])
            ax.semilogy(
                np.arange(1, len(values) + 1),
                np.maximum(values, 1e-12),
                color=colour(method),
                label=label(method, METHODS),
                lw=2,
            )
        ax.set(title=f"erased: {concept}", ylim=(1e-9, None))
        ax.grid(color="0.92")
    for ax in axes[-1]:
        ax.set_xlabel("index of singular value")
    for ax in axes[:, 0]:
        ax.set_ylabel("singular value of map − I")
    for ax in axes.flat[len(changes) :]:
        ax.set_visible(False)
    axes[0, 0].legend(frameon=False)
    sns.despine(fig)
    fig.tight_layout()
    return fig


def save(fig: Figure, path: Path) -> None:
    """Write a figure as PNG at README size (130 dpi), making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
