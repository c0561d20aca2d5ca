"""The study's figures. Each function takes tidy tables or images and returns a matplotlib figure."""

from pathlib import Path
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

METHODS = {"original": "original", "uce": "UCE", "rece": "RECE"}
ATTACKS = {
    "plain": "plain prompt",
    "synonym": "synonym",
    "paraphrase": "held-out word",
    "unlearndiff": "optimised tokens\n(UnlearnDiffAtk)",
    "concept_vector": "concept vector\n(embedding)",
    "closed_form": "closed form c′\n(embedding)",
}
COLOURS = dict(zip(METHODS, sns.color_palette("colorblind", 8)[:3], strict=True))


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

    images[method][attack]: (k, h, w, 3) uint8; hits: whether the judge still sees the concept, (k,) bool (red frame).
    """
    methods = order(images, METHODS)
    attacks = order(images[methods[0]], ATTACKS)
    k = len(images[methods[0]][attacks[0]])
    fig, axes = plt.subplots(
        len(methods),
        len(attacks) * k,
        figsize=(1.05 * len(attacks) * k + 0.8, 1.05 * len(methods) + 0.9),
        squeeze=False,
    )
    for i, method in enumerate(methods):
        for j, attack in enumerate(attacks):
            for n in range(k):
                ax = axes[i, j * k + n]
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
    fig.suptitle(title, fontsize=13)
    fig.subplots_adjust(
        left=0.075, right=0.995, bottom=0.02, top=0.76 if len(methods) > 1 else 0.6, wspace=0.06, hspace=0.06
    )
    for j, attack in enumerate(attacks):
        left, right = axes[0, j * k].get_position(), axes[0, j * k + k - 1].get_position()
        fig.text((left.x0 + right.x1) / 2, left.y1 + 0.015, label(attack), ha="center", va="bottom", fontsize=10)
    return fig


def rates(table: pd.DataFrame) -> Figure:
    """Attack success rate by attack and method with Wilson intervals, one panel per concept.

    table: columns concept, method, attack, rate, low, high, n.
    """
    concepts = list(dict.fromkeys(table.concept))
    attacks, methods = order(table.attack, ATTACKS), order(table.method, METHODS)
    columns = min(2, len(concepts))
    rows = -(-len(concepts) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(5.6 * columns, 3.1 * rows + 0.6), sharex=True, sharey=True, squeeze=False
    )
    for ax, concept in zip(axes.flat, concepts, strict=False):
        for i, method in enumerate(methods):
            rows_of = table[(table.concept == concept) & (table.method == method)].set_index("attack").reindex(attacks)
            x = np.arange(len(attacks)) + (i - (len(methods) - 1) / 2) * 0.22
            errors = [rows_of.rate - rows_of.low, rows_of.high - rows_of.rate]
            ax.bar(x, rows_of.rate, 0.2, color=colour(method), alpha=0.85, label=label(method, METHODS))
            ax.errorbar(x, rows_of.rate, yerr=np.abs(errors), fmt="none", ecolor="0.2", elinewidth=1, capsize=2)
        ax.set(title=f"erased: {concept}", ylim=(0, 1.02), xticks=np.arange(len(attacks)))
        ax.set_xticklabels([label(a) for a in attacks], rotation=35, ha="right", fontsize=9)
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
    for ax in axes[:, 0]:
        ax.set_ylabel("attack success rate")
    for ax in axes.flat[len(concepts) :]:
        ax.set_visible(False)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="upper center", ncol=len(names), frameon=False, bbox_to_anchor=(0.5, 1.0))
    sns.despine(fig)
    fig.tight_layout(rect=(0, 0, 1, 0.95))
    return fig


def tradeoff(table: pd.DataFrame) -> Figure:
    """Erasure against preservation as rounds and lambda vary: one panel per concept, one line per lambda.

    table: columns concept, lamb, rounds, attack_rate (worst attack of the sweep), kept (accuracy on other concepts).
    Up and left is better: what is kept, against what an attack brings back.
    """
    concepts = list(dict.fromkeys(table.concept))
    columns = min(2, len(concepts))
    rows = -(-len(concepts) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(5.6 * columns, 3.4 * rows + 0.7), sharex=True, sharey=True, squeeze=False
    )
    lambs = sorted(set(table.lamb))
    palette = dict(zip(lambs, sns.color_palette("viridis", len(lambs)), strict=True))
    for ax, concept in zip(axes.flat, concepts, strict=False):
        part = table[table.concept == concept]
        for lamb in lambs:
            line = part[part.lamb == lamb].sort_values("rounds")
            ax.plot(line.attack_rate, line.kept, "-o", color=palette[lamb], ms=5, label=f"λ = {lamb:g}")
            for row in line.itertuples():
                ax.annotate(
                    str(row.rounds), (row.attack_rate, row.kept), xytext=(4, 4), textcoords="offset points", fontsize=7
                )
        start = part[part.rounds == 0].iloc[0]
        ax.plot(start.attack_rate, start.kept, "s", color=colour("uce"), ms=9, label="UCE (0 rounds)", zorder=5)
        ax.set(title=f"erased: {concept}", xlim=(-0.03, 1.03), ylim=(0, 1.03))
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
    for ax in axes[-1]:
        ax.set_xlabel("success rate of the strongest attack (lower is better)")
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy on other concepts")
    for ax in axes.flat[len(concepts) :]:
        ax.set_visible(False)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, names, loc="upper center", ncol=len(names), frameon=False, fontsize=9, bbox_to_anchor=(0.5, 1.0)
    )
    sns.despine(fig)
    fig.tight_layout(rect=(0, 0, 1, 0.95))
    return fig


def singular_values(changes: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Singular values of map − I, one panel per concept: how many directions of the text space an eraser touches.

    changes[concept][method]: descending singular values, (d,).
    """
    fig, axes = plt.subplots(1, len(changes), figsize=(3.3 * len(changes) + 0.6, 3.2), sharey=True, squeeze=False)
    for ax, (concept, methods) in zip(axes[0], changes.items(), strict=True):
        for method in order(methods, METHODS):
            values = np.asarray(methods[method])
            ax.semilogy(
                np.arange(1, len(values) + 1),
                np.maximum(values, 1e-12),
                color=colour(method),
                label=label(method, METHODS),
                lw=2,
            )
        ax.set(title=f"erased: {concept}", xlabel="index of singular value", ylim=(1e-9, None))
        ax.grid(color="0.92")
    axes[0, 0].set_ylabel("singular value of map − I")
    axes[0, -1].legend(frameon=False)
    sns.despine(fig)
    fig.tight_layout()
    return fig


def save(fig: Figure, path: Path) -> None:
    """Write a figure as PNG at README size (130 dpi), making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
