"""The lessons' figures: rows of pictures, bars and curves with intervals, and what was predicted as open circles."""

from collections.abc import Mapping, Sequence
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import seaborn as sns
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rece.course import Asked
from rece.study import figures

MARKS = "osD^vP"
PREDICTED = {"marker": "o", "mfc": "none", "mec": "black", "ms": 10, "mew": 1.5, "ls": "none", "zorder": 5}


def rows(asked: Mapping[str, Asked], alt: str, n: int = 5) -> None:
    """Show the first n pictures of each, a row each, with its count. A frame: the judge sees what was asked for."""
    images = {f"{label}: {one.k} of {one.n}": one.images[:n] for label, one in asked.items()}
    hits = {f"{label}: {one.k} of {one.n}": one.hits[:n] for label, one in asked.items()}
    show(figures.rows(images, hits), alt)


def bars(
    asked: Mapping[str, Asked], alt: str, predicted: Mapping[str, float | None] | None = None, **labels: str
) -> None:
    """Show the rate of each with its interval. predicted: by the same names. labels: of the axes, see `Axes.set`."""
    rates, labels = [one.rate for one in asked.values()], {"xlabel": "share that the judge recognises"} | labels
    ticks = [f"{name} ({one.k} of {one.n})" for name, one in asked.items()]
    _across(list(asked), rates, _reach(asked.values()), alt, predicted, labels, ticks)


def curves(
    x: Sequence[float],
    asked: Mapping[str, Sequence[Asked]],
    alt: str,
    log: bool = False,
    **labels: str,
) -> None:
    """Show rates with their intervals along x, a line per name. log: the scale of x."""
    fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    _lines(ax, x, asked, log)
    ax.set(xscale="log" if log else "linear", ylim=(-0.04, 1.04), ylabel="share that the judge recognises")
    ax.set(**labels)
    if not log:
        ax.set_xticks(x)
    _finish(fig, ax, alt, None)


def intervals(
    found: Mapping[str, tuple[float, float, float]],
    alt: str,
    predicted: Mapping[str, float | None] | None = None,
    **labels: str,
) -> None:
    """Show a rate with the low and the high end of its interval per line. predicted, labels: as of `bars`."""
    names, (rates, low, high) = list(found), np.array(list(found.values())).T
    _across(names, rates, (rates - low, high - rates), alt, predicted, labels, names, capsize=3)


def spread(
    values: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    alt: str,
    predicted: Mapping[str, float | None] | None = None,
    **labels: str,
) -> None:
    """Show how values lie, a histogram per name on a logarithmic scale, and the limit of each as a line."""
    fig, axes = plt.subplots(len(values), figsize=(7, 1.05 * len(values) + 0.9), sharex=True, layout="constrained")
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), 80)
    for n, (ax, (name, some)) in enumerate(zip(np.atleast_1d(axes), values.items(), strict=True)):
        ax.hist(some, edges, color=figures.PALETTE[n])
        ax.axvline(limits[name], color="black", lw=2)
        ax.set(yscale="log", ylim=(0.7, None), xlim=(0, None), ylabel=labels.get("ylabel"))
        ax.set_title(f"{name}: the line is at {limits[name]:.2f}", loc="left", fontsize=10)
        if name in _known(predicted):
            ax.plot(predicted[name], 0.7, clip_on=False, label="your prediction", **PREDICTED)
            ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.95))
    np.atleast_1d(axes)[-1].set_xlabel(labels.get("xlabel"))
    sns.despine(fig)
    show(fig, alt)


def panels(
    x: Sequence[float],
    asked: Mapping[str, Mapping[str, Sequence[Asked]]],
    alt: str,
    predicted: Mapping[str, float | None] | None = None,
    **labels: str,
) -> None:
    """Show `curves` side by side, a panel per name. predicted: by the names of lines, at the first panel's last x."""
    fig, axes = plt.subplots(1, len(asked), figsize=(8, 3.6), layout="constrained", sharey=True)
    for ax, (name, lines) in zip(np.atleast_1d(axes), asked.items(), strict=True):
        _lines(ax, x, lines)
        ax.set_title(name, loc="right")
        ax.set(xticks=x, ylim=(-0.04, 1.04), **labels)
        ax.grid(color="0.93")
    first, names = np.atleast_1d(axes)[0], list(next(iter(asked.values())))
    first.set_ylabel("share that the judge recognises")
    for name, value in _known(predicted).items():
        colour = figures.PALETTE[names.index(name)]
        first.plot(x[-1], value, **PREDICTED | {"mec": colour, "clip_on": False})
    _finish(fig, first, alt, predicted)


def ladder(
    asked: Mapping[str, Mapping[str, Asked]],
    alt: str,
    predicted: Mapping[tuple[str, str], float | None] | None = None,
    **labels: str,
) -> None:
    """Show the rates of several models with their intervals, a line per name: asked[name][model].

    A line may lack a model. predicted: by name and model. labels: as of `bars`.
    """
    names, models = list(asked), list(dict.fromkeys(model for some in asked.values() for model in some))
    shift = dict(zip(models, np.linspace(-0.27, 0.27, len(models)), strict=True))
    fig, ax = plt.subplots(figsize=(7, 0.6 * len(names) + 1.3), layout="constrained")
    for n, model in enumerate(models):
        there = [at for at, name in enumerate(names) if model in asked[name]]
        some = [asked[names[at]][model] for at in there]
        style = {"color": "0.6" if model == "control" else figures.PALETTE[n], "marker": MARKS[n], "ls": "none"}
        y = np.array(there) + shift[model]
        ax.errorbar([one.rate for one in some], y, xerr=_reach(some), label=model, capsize=2, **style)
    for (name, model), value in _known(predicted).items():
        ax.plot(value, names.index(name) + shift[model], **PREDICTED)
    ax.set(xlim=(-0.04, 1.04), ylim=(len(names) - 0.5, -0.5), xlabel="share that the judge recognises")
    ax.set(**labels)
    ax.set_yticks(range(len(names)), names)
    _finish(fig, ax, alt, predicted)


def show(fig: Figure, alt: str) -> None:
    """Show a figure as a small PNG of 256 colours. alt: what it shows, for those who cannot see it."""
    file = BytesIO()
    fig.savefig(file, dpi=110, facecolor="white")
    plt.close(fig)
    small = BytesIO()
    PIL.Image.open(file).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    display(Image(small.getvalue(), alt=alt))


def _lines(ax: Axes, x: Sequence[float], asked: Mapping[str, Sequence[Asked]], log: bool = False) -> None:
    """Rates with their intervals along x, a line per name, a little beside each other."""
    for n, (name, some) in enumerate(asked.items()):
        shift = np.asarray(x, float) * 1.03**n if log else np.asarray(x) + 0.04 * n
        style = {"color": figures.PALETTE[n], "marker": MARKS[n], "capsize": 2}
        ax.errorbar(shift, [one.rate for one in some], yerr=_reach(some), label=name, **style)


def _across(names: list[str], rates, reach, alt: str, predicted, labels: dict, ticks: list[str], **style) -> None:
    """Show a rate with its interval per line. ticks: what stands beside the lines. style: of the marks."""
    fig, ax = plt.subplots(figsize=(7, 0.42 * len(names) + 1.1), layout="constrained")
    ax.errorbar(rates, range(len(names)), xerr=reach, fmt="s", ms=7, **style)
    for name, value in _known(predicted).items():
        ax.plot(value, names.index(name), **PREDICTED)
    ax.set(xlim=(-0.04, 1.04), ylim=(len(names) - 0.5, -0.5), **labels)
    ax.set_yticks(range(len(names)), ticks)
    _finish(fig, ax, alt, predicted)


def _reach(some) -> np.ndarray:
    """How far intervals reach below and above their rates, (2, n)."""
    return np.array([(one.rate - one.interval[0], one.interval[1] - one.rate) for one in some]).T


def _known(predicted: Mapping | None) -> dict:
    """The predictions that were made."""
    return {at: value for at, value in (predicted or {}).items() if value is not None}


def _finish(fig, ax: Axes, alt: str, predicted) -> None:
    if _known(predicted):
        ax.plot([], [], label="your prediction", **PREDICTED)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    ax.grid(color="0.93")
    ax.set_axisbelow(True)
    sns.despine(fig)
    show(fig, alt)
