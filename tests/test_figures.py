"""What figures show: their panels, names, numbers and marks."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from PIL import Image

from rece.study import figures

WILSON = {"low": 0.1, "high": 0.9}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def ticks(axis) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels()]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.fixture
def success():
    """Two kinds of concept; the last method is nobody's, and it was not attacked by UnlearnDiffAtk."""
    rows = [
        {"kind": kind, "concept": concept, "method": method, "attack": attack, "n": n, "rate": rate, **WILSON}
        for kind, concept, n in (("style", "noto", 7), ("object", "dog", 5))
        for method, rate in (("mine", 0.2), ("rece", 0.4), ("uce", 0.6))
        for attack in ("closed_form", "plain", "unlearndiff")
        if (method, attack) != ("mine", "unlearndiff")
    ]
    return pd.DataFrame(rows)


def test_rates_have_a_bar_with_its_interval_per_method_and_the_number_of_attempts(success):
    success.loc[(success.kind == "object") & (success.attack == "plain") & (success.method == "uce"), "n"] = 8
    figure = figures.rates(success)
    objects, styles = figure.axes
    assert [ax.get_title("left") for ax in figure.axes] == ["single objects", "styles"]
    assert ticks(styles.xaxis) == ["plain prompt", "UnlearnDiffAtk", "closed form c′*"]
    assert {ax.get_ylabel() for ax in figure.axes} == {"success rate"} and legend(figure) == ["UCE", "RECE", "mine"]
    assert sorted(texts(objects)) == ["n = 5", "n = 5", "n = 5–8"] and texts(styles) == ["n = 7"] * 3
    heights = np.array([bar.get_height() for bar in objects.patches])
    np.testing.assert_array_equal(heights, [0.6] * 3 + [0.4] * 3 + [0.2, np.nan, 0.2])
    assert all(same_color(bar.get_facecolor()[:3], figures.colour("uce")) for bar in objects.patches[:3])
    (bars,) = objects.collections[0].get_segments()[:1]
    np.testing.assert_allclose(bars[:, 1], [0.1, 0.9])


def test_the_heatmap_has_every_rate_and_nothing_where_an_attack_was_not_run(success):
    ax, bar = figures.heatmap(success).axes
    assert ticks(ax.xaxis) == ["plain prompt", "UnlearnDiffAtk", "closed form c′*"]
    assert ticks(ax.yaxis) == ["noto  UCE", "RECE", "mine", "dog  UCE", "RECE", "mine"]
    assert texts(ax) == (["0.60"] * 3 + ["0.40"] * 3 + ["0.20"] * 2) * 2
    assert bar.get_ylabel() == "attack success rate" and len(ax.lines) == 1  # between two concepts


def test_the_grid_frames_the_pictures_that_still_show_the_concept():
    images = {m: {"plain": np.full((2, 4, 4, 3), n, np.uint8)} for n, m in enumerate(("uce", "original"))}
    images["uce"]["closed_form"] = np.full((1, 4, 4, 3), 9, np.uint8)  # one image less
    hits = {m: {a: np.arange(len(some)) == 0 for a, some in own.items()} for m, own in images.items()}
    figure = figures.grid(images, hits, title="erased: dog")
    panels = np.reshape(figure.axes, (2, 4))
    assert figure.get_suptitle() == "erased: dog"
    assert [ax.get_ylabel() for ax in panels[:, 0]] == ["original", "UCE"]
    assert [text.get_text() for text in figure.texts if text.get_text() != "erased: dog"] == [
        "plain prompt",
        "closed form c′*",
    ]
    assert [[len(ax.images) for ax in line] for line in panels] == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert [int(ax.images[0].get_array().max()) for ax in panels[:, 0]] == [1, 0]
    for ax, framed in zip(panels[1], (True, False, True), strict=False):
        assert {same_color(spine.get_edgecolor(), figures.PALETTE[3]) for spine in ax.spines.values()} == {framed}
    assert not any(spine.get_visible() for ax in (*panels[0, 2:], panels[1, 3]) for spine in ax.spines.values())


def test_rows_are_strips_of_pictures_by_their_labels():
    images = {"a": np.zeros((3, 4, 4, 3), np.uint8), "b": np.zeros((1, 4, 4, 3), np.uint8)}
    panels = np.reshape(figures.rows(images, {"a": np.array([True, False, True])}).axes, (2, 3))
    assert [ax.get_ylabel() for ax in panels[:, 0]] == ["a", "b"]
    assert [[len(ax.images) for ax in line] for line in panels] == [[1, 1, 1], [1, 0, 0]]
    framed = [[any(spine.get_visible() for spine in ax.spines.values()) for ax in line] for line in panels]
    assert framed == [[True, False, True], [False, False, False]]


def test_the_frontier_joins_the_erasers_that_no_other_beats():
    table = pd.DataFrame({"concept": "dog", "method": ["uce", "rece", "rece", "rece"], "text": [0.5, 0.2, 0.3, 0.4]})
    table["kept"], table["embedding"] = [0.9, 0.7, 0.65, 0.8], [1.0, 0.5, 0.1, 0.6]
    for name in ("text", "embedding", "kept"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.1, table[name] + 0.1
    figure = figures.frontier(table)
    above, below = figure.axes
    assert above.get_title() == "erased: dog" and above.get_ylabel() == "accuracy on others"
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "success rate: strongest attack by prompts",
        "success rate: closed form c′ (embedding)",
    ]
    assert legend(figure) == ["UCE", "RECE"]
    points = {line.get_label(): line.get_xydata().tolist() for line in above.lines if line.get_marker() == "o"}
    assert points == {"UCE": [[0.5, 0.9]], "RECE": [[0.2, 0.7], [0.3, 0.65], [0.4, 0.8]]}
    joined = [container.lines[0].get_xydata().tolist() for container in above.containers]
    assert joined == [[[0.5, 0.9]], [[0.2, 0.7], [0.4, 0.8]]]
    across, along = (part.get_segments() for part in above.containers[1].lines[2])
    np.testing.assert_allclose(across[0], [[0.1, 0.7], [0.3, 0.7]])
    np.testing.assert_allclose(along[1], [[0.4, 0.7], [0.4, 0.9]])


def test_certificates_are_points_of_success_over_distance_with_their_correlations():
    points = pd.DataFrame({"method": ["uce", "rece"] * 2, "kind": ["object", "object", "style", "style"]})
    points = points.assign(certified=[0.1, 0.2, 0.3, 0.4], text=[0.9, 0.8, 0.7, 0.6], embedding=1.0)
    rho, unknown = {"rho": -0.5, "n": 4}, {"rho": np.nan, "n": 4}
    found = {"text": {"title": "prompts", "pooled": rho, "within": rho | {"rho": 0.5}}}
    found["embedding"] = {"title": "c′", "pooled": unknown, "within": unknown}
    figure = figures.certificate(points, found)
    left, right = figure.axes
    lines = ["prompts", "all 4 erasers: ρ = -0.50", "within concepts: ρ = 0.50"]
    assert left.get_title().split("\n") == lines and "ρ = nan" in right.get_title()
    assert left.get_ylabel() == "attack success rate" and left.get_xlabel().startswith("certified distance")
    drawn = {line.get_label(): (line.get_marker(), line.get_xydata().tolist()) for line in left.lines}
    assert drawn == {
        "UCE": ("o", [[0.1, 0.9]]),
        "UCE, styles": ("^", [[0.3, 0.7]]),
        "RECE": ("o", [[0.2, 0.8]]),
        "RECE, styles": ("^", [[0.4, 0.6]]),
    }
    assert legend(figure) == list(drawn)


def test_a_legend_of_many_names_lies_inside_of_its_figure():
    methods = ["uce", "rece", "anchored", "guarded"]
    points = pd.DataFrame({"method": methods * 2, "kind": ["object"] * 4 + ["style"] * 4})
    points = points.assign(certified=0.5, text=0.5, embedding=0.5)
    unknown = {"rho": np.nan, "low": np.nan, "high": np.nan, "n": 8}
    found = {name: {"title": name, "pooled": unknown, "within": unknown} for name in ("text", "embedding")}
    figure = figures.certificate(points, found)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent().transformed(figure.transFigure.inverted())
    assert len(legend(figure)) == 8 and 0 <= box.x0 and box.x1 <= 1 and box.y1 <= 1
    assert all(ax.get_tightbbox().transformed(figure.transFigure.inverted()).y1 <= box.y0 for ax in figure.axes)


def test_transfer_has_a_panel_per_attack_from_where_prompts_were_found_to_who_drew_them():
    rows = [(a, s, m) for a in ("p4d_k", "unlearndiff") for s in ("rece", "uce") for m in ("rece", "uce", "original")]
    table = pd.DataFrame(rows, columns=["attack", "source", "method"]).assign(rate=np.arange(12) / 20, n=4)
    left, right = figures.transfer(table).axes
    assert [ax.get_title() for ax in (left, right)] == ["P4D-K", "UnlearnDiffAtk"]
    assert ticks(left.xaxis) == ticks(right.xaxis) == ["original", "UCE", "RECE"]
    assert (ticks(left.yaxis), ticks(right.yaxis)) == (["UCE", "RECE"], ["", ""])
    assert (left.get_ylabel(), left.get_xlabel(), right.get_ylabel()) == ("found against", "drawn by", "")
    assert texts(left) == ["0.25", "0.20", "0.15", "0.10", "0.05", "0.00"]


def test_distances_are_shares_of_the_distance_to_the_target():
    words = {"distance": 0.5, "edited": 1.5, "target": 2.0, "synonym": 0.4, "other": 1.0, "nearest": "cat"}
    figure = figures.distances({m: pd.DataFrame([words | {"distance": d}]) for m, d in (("uce", 0.5), ("rece", 1.0))})
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.5] and ticks(ax.yaxis) == ["UCE", "RECE"]
    assert ax.get_xlabel().startswith("distance to the concept")
    assert texts(ax) == ["the plain prompt"] * 2 + ["nearest synonym", "nearest other concept (cat)", "target"]
    assert [line.get_xdata()[0] for line in ax.lines] == [0.75, 0.75, 0.2, 0.5, 1.0]


@pytest.mark.parametrize("n, panels", [(1, 1), (5, 8)])
def test_singular_values_have_a_panel_per_concept(n, panels):
    values = {"uce": np.array([1.0, 0.1]), "original": np.zeros(2)}
    figure = figures.singular_values({str(concept): values for concept in range(n)})
    first, shown = figure.axes[0], [ax for ax in figure.axes if ax.get_visible()]
    assert (len(figure.axes), [ax.get_title() for ax in shown]) == (panels, [f"erased: {i}" for i in range(n)])
    assert [line.get_label() for line in first.lines] == ["original", "UCE"] and first.get_yscale() == "log"
    assert first.lines[1].get_xydata().tolist() == [[1, 1], [2, 0.1]] and (first.lines[0].get_ydata() == 1e-12).all()
    assert figure.axes[-1].get_xlabel() == "index of singular value" and "singular value" in first.get_ylabel()


def test_names_and_colours_of_what_is_new():
    assert figures.order(["mine", "rece", "original", "mine"]) == ["original", "rece", "mine"]
    assert figures.label("mine") == "mine" and figures.colour("mine") == figures.colour("mine")
    assert len({figures.colour(method) for method in figures.METHODS}) == len(figures.METHODS)


def test_a_figure_is_saved_at_130_dots_per_inch_and_equal_ones_give_equal_files(tmp_path):
    for name in ("a", "b"):
        figure, _ = plt.subplots(figsize=(2, 1))
        figures.save(figure, tmp_path / "new" / f"{name}.png")
    with Image.open(tmp_path / "new/a.png") as image:
        assert image.size == (260, 130)
    assert (tmp_path / "new/a.png").read_bytes() == (tmp_path / "new/b.png").read_bytes()


def test_a_figure_is_shown_with_a_text_for_those_who_do_not_see_it(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    for path in (None, tmp_path / "folder/two.png"):
        fig = plt.figure(figsize=(1, 1))
        figures.show(fig, "a small empty figure", path)
        assert not plt.fignum_exists(fig.number)
    assert [picture.alt for picture in shown] == ["a small empty figure"] * 2
    assert shown[1].data == path.read_bytes() and shown[1].data.startswith(b"\x89PNG")


def test_effort_has_a_panel_per_attack_and_a_line_per_method_with_intervals():
    rows = [(what, method, n, n / 10) for what in ("mma", "p4d_n") for method in ("uce", "guarded") for n in (1, 5, 9)]
    table = pd.DataFrame(rows, columns=["what", "method", "updates", "rate"])
    table = table.assign(low=table.rate - 0.05, high=table.rate + 0.05)
    fig = figures.effort(table.sample(frac=1, random_state=0), "updates", "updates of the search")
    assert len(fig.axes) == 2 and len(fig.legends[0].get_texts()) == 2
    for ax in fig.axes:
        assert ax.get_xlabel() == "updates of the search"
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "5", "9"]
        assert all(list(bars.lines[0].get_ydata()) == [0.1, 0.5, 0.9] for bars in ax.containers)
