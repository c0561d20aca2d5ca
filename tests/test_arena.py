"""The arena: rivals on the fair study's terms, what an edit costs, and the tables of all methods."""

import json
import os
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest
from project import params
from study import GENERATE

from rece import methods
from rece.attacks import Attempts
from rece.cluster import local_cluster
from rece.edits import Weights
from rece.emoji import world as worlds
from rece.judges.embedded import Judge
from rece.study import arena, config, experiment, fair, ranking

WORLD = worlds.load()
FAIR = params()["fair"] | {
    "per": {"object": 2, "style": 2, "category": 1, "five": 1},
    "kept": {"neighbour": 2, "other": 2},
}
DOG = {"kind": "object", "size": 1, "erase": ["dog"], "target": " "}


@pytest.fixture(scope="module")
def emoji():
    return config.load("data/emoji-diffusion")


@pytest.fixture(scope="module")
def judge():
    return Judge.load(config.root() / "data/judge")


def test_every_rival_has_its_numbers_and_a_grid_as_large_as_every_others():
    section = params()["arena"]
    for part in ("given", "grid"):
        assert set(section[part]) == set(methods.names()) - set(params()["erase"]), part
    sizes = {method: len(arena.tried(grids)) for method, grids in section["grid"].items()}
    assert set(sizes.values()) == {6}
    assert set(params()["arena_methods"]) <= set(section["given"])


SOURCES = {"model": "data/emoji-diffusion", "judge": "data/judge"}
QUICK = {
    "groups": {"object": 1},
    "validation": {"object": 1},
    "given": {"sld": {"warm_up": 0.0}},
    "grid": {"sld": [{"scale": [0.0, 5000.0], "threshold": [1.0]}]},
}
BUDGETS = {"plain": {}, "synonym": {}, "closed_form": {"lamb": 0.1}, "reachable": {}}  # the last one is of maps alone


@pytest.fixture(scope="module")
def serial():
    """A rival's tables, computed by this process alone."""
    return arena.rival(SOURCES, "sld", FAIR, QUICK, GENERATE, BUDGETS)


def test_a_rivals_numbers_are_chosen_on_others_and_then_it_is_measured(serial):
    images, edits, choice = serial
    assert len(choice) == 2 and not set(choice.group) & set(images.group)
    best = json.loads(choice.numbers[choice.score.idxmax()])
    assert json.loads(edits.numbers[0]) == best and best["warm_up"] == 0.0
    assert set(images.what) == {*BUDGETS, "neighbour", "other"} - {"reachable"} and set(images.preserve) == {"names"}
    assert edits.guarded[0] == 0.0 and edits.changed[0] == 0 and edits.slowdown[0] > 0 and edits.bytes[0] > 0


def test_what_an_edit_costs_is_measured_where_it_is_reported_alone(serial, monkeypatch):
    measured, images = [], serial[0]
    monkeypatch.setattr(arena, "measures", lambda *given: measured.append(1) or {})

    def drawn(sources, plan_of, generate, budgets, job):
        return images.assign(group=job[0], numbers=json.dumps(job[3]))

    monkeypatch.setattr(arena, "_images", drawn)
    arena.rival(SOURCES, "sld", FAIR, QUICK, GENERATE, BUDGETS)
    assert len(measured) == 1


def test_workers_compute_what_one_process_computes_though_one_is_killed(tmp_path, monkeypatch, serial):
    """Two workers on this machine; the first that has made an edit is killed before it has measured it."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    monkeypatch.setenv("RECE_CACHE", str(tmp_path / "shared"))
    forked = dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    distributed.utils.get_mp_context().set_forkserver_preload(["distributed", "rece.study.arena"])
    with forked, local_cluster(2) as cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        pids = list(client.run(os.getpid).values())

        def kill():
            while not list((tmp_path / "shared").glob("edits/*.safetensors")):
                time.sleep(0.005)
            os.kill(pids[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        shared = arena.rival(SOURCES, "sld", FAIR, QUICK, GENERATE, BUDGETS, client)
        killer.join()
    timed = ["seconds", "against_uce", "slowdown"]
    for one, two in zip(serial, shared, strict=True):
        one, two = (table.drop(columns=timed, errors="ignore") for table in (one, two))
        pd.testing.assert_frame_equal(one, two)


def test_an_edit_is_made_once(emoji, monkeypatch):
    numbers = {"iterations": 1, "steps": 2}
    first = arena.made(emoji, WORLD, DOG, "esd_x", numbers)
    monkeypatch.setattr(fair, "eraser", lambda *given: pytest.fail("made again"))
    again = arena.made(emoji, WORLD, DOG, "esd_x", numbers)
    assert again.provenance == first.provenance and first.provenance["seconds"] > 0
    with pytest.raises(pytest.fail.Exception, match="made again"):
        arena.made(emoji, WORLD, DOG, "esd_x", numbers | {"iterations": 2})


def test_what_differs_is_counted(emoji):
    name = "unet.conv_in.bias"
    bias = emoji.unet.conv_in.bias
    edit = Weights({name: np_indices(bias)}, {"seconds": 2.0})
    victim = edit.copy_of(emoji)
    assert arena.changed(emoji, victim, edit) == 2
    row = arena.measures(emoji, victim, edit, WORLD, DOG, GENERATE)
    assert row["guarded"] == 0 and row["changed"] == 2 and row["bytes"] == 8 and row["against_uce"] > 0


def np_indices(bias):
    """The places of the first two entries that are not zero."""
    return bias.detach().nonzero().flatten()[:2].int()


def test_attacks_read_the_encoder_that_the_victim_has(emoji, judge, monkeypatch):
    """An attack that does not look at the victim still must hold an encoder: the victim's own where it is edited."""
    asked = []

    def attempt(name, victim, original, cases, *rest):
        asked.append((victim, original))
        return Attempts(list(cases.prompt), list(cases.seed))

    monkeypatch.setattr(experiment, "attempt", attempt)
    name = next(name for name, _ in emoji.text_encoder.named_parameters() if name.endswith("fc1.bias"))
    for part, own in {f"text_encoder.{name}": True, "unet.conv_in.bias": False}.items():
        bias = dict(emoji.text_encoder.named_parameters())[name] if own else emoji.unet.conv_in.bias
        victim = Weights({part: np_indices(bias)}).copy_of(emoji)
        fair.measured(emoji, victim, judge, WORLD, DOG, FAIR | {"kept": {}}, GENERATE, {"mma": {"n": 1}})
        assert asked.pop() == ((victim, victim) if own else (emoji, emoji))


def tables():
    """Rows of two methods in two groups, and their edits."""
    rows = []
    for method, rate in {"uce": 1.0, "esd_x": 0.0}.items():
        for group in ("dog", "cat"):
            for what in ("plain", "closed_form", "inversion_rows", "neighbour", "other"):
                value = 1.0 if what in ("inversion_rows", "neighbour", "other") else rate * (what == "closed_form")
                rows += [{"method": method, "group": group, "what": what, "sure": int(value)} for _ in range(4)]
    images = pd.DataFrame(rows).assign(kind="object", preserve="names", concept="x", case=0, top=1)
    edits = pd.DataFrame(
        {"group": ["dog", "dog"], "method": ["uce", "esd_x"], "preserve": "names", "guarded": [0.1, 0.0]}
    )
    return images, edits.assign(against_uce=[np.nan, 50.0])


def test_the_summary_takes_the_strongest_attack_of_each_group_but_free_rows():
    images, edits = tables()
    found = ranking.summary(images, edits, "uce").set_index("method")
    assert found.strongest.to_dict() == {"uce": 1.0, "esd_x": 0.0} and (found.kept == 1).all()
    assert (found["rows"] == 1).all() and found.against_uce["esd_x"] == 50.0
    rates = ranking.rates(images)
    both = rates[(rates.kind == "all") & (rates.what == "closed_form")].set_index("method")
    assert both.rate.to_dict() == {"uce": 1, "esd_x": 0} and (both.n == 8).all()
    assert found.more_strongest.to_dict() == {"uce": 0.0, "esd_x": -1.0} and (found.more_kept == 0).all()


def test_the_strongest_attack_is_one_that_every_edit_met():
    images, edits = tables()
    own = images[(images.method == "esd_x") & (images.what == "plain")]
    found = ranking.summary(pd.concat([images, own.assign(what="reachable", sure=1)]), edits, "uce")
    assert found.set_index("method").strongest["esd_x"] == 0


def test_no_difference_at_all_may_be_one_on_either_side():
    images, edits = tables()
    found = ranking.summary(images.assign(sure=1), edits, "uce").set_index("method").loc["esd_x"]
    assert found.more_kept == 0 and found.more_kept_low == -found.more_kept_high < 0


def test_a_difference_is_taken_group_by_group():
    """Two groups far apart, in which one and two pictures of eight differ: the interval is of these alone."""
    rows = []
    for method, hits in {"guarded": {"dog": 1, "cat": 6}, "uce": {"dog": 2, "cat": 8}}.items():
        for group, n in hits.items():
            rows += [{"method": method, "group": group, "what": "plain", "sure": int(i < n)} for i in range(8)]
            rows += [{"method": method, "group": group, "what": what, "sure": 1} for what in ranking.KEPT]
    found = ranking.summary(pd.DataFrame(rows), pd.DataFrame({"method": []})).set_index("method")
    assert found.strongest_high.uce - found.strongest_low.uce == 0.75
    ends = [found[f"more_strongest{end}"].uce for end in ("_low", "", "_high")]
    assert ends == [0.125, 0.1875, 0.25]
    assert found.more_strongest.guarded == 0 and np.isnan(found.more_strongest_low.guarded)


def test_properties_that_go_with_success_are_found_and_others_are_not():
    random = np.random.default_rng(0)
    methods_ = [f"m{n}" for n in range(12)]
    table = pd.DataFrame({"method": methods_, "guarded": np.linspace(0, 1, 12), "changed": random.permutation(12)})
    rates = pd.DataFrame(
        {"kind": "all", "method": methods_, "what": "closed_form", "rate": np.linspace(1, 0, 12) ** 2}
    )
    still = rates.assign(what="plain", rate=0.0)
    found = ranking.predictors(table.assign(kept=1.0), pd.concat([rates, still]))
    assert set(found.property) == {"guarded", "changed"} and set(found.what) == {"closed_form"}
    guarded, changed = (found[found.property == name].iloc[0] for name in ("guarded", "changed"))
    assert guarded.rho == -1 and guarded.high < -0.9 and changed.low < 0 < changed.high and guarded.n == 12


def test_the_figures_show_every_method():
    images, edits = tables()
    table, rates = ranking.summary(images, edits), ranking.rates(images)
    assert [text.get_text() for text in ranking.cost(table).axes[0].get_legend().get_texts()] == ["ESD-x"]
    named = ranking.robustness(ranking.summary(images, edits, "uce"), "uce").axes[1].get_yticklabels()
    assert [text.get_text() for text in named] == ["UCE", "ESD-x"]
    labels = [text.get_text() for text in ranking.heatmap(rates).axes[0].get_yticklabels()]
    assert labels == ["UCE", "ESD-x"]


def test_gathering_takes_the_same_groups_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "root", lambda: tmp_path)
    images, edits = tables()
    with pytest.raises(FileNotFoundError, match="make fair"):
        ranking.gathered("results", ["esd_x"], ["object"])
    parts = {"fair/object": images, "rivals/esd_x": images[(images.method == "esd_x") & (images.group == "dog")]}
    for folder, some in parts.items():
        there = tmp_path / "results" / folder
        there.mkdir(parents=True)
        some.assign(preserve="names").to_csv(there / "images.csv.gz")
        edits.to_csv(there / ("erasers.csv" if folder.startswith("fair") else "edits.csv"))
    found, costs = ranking.gathered("results", ["esd_x"], ["object"])
    assert set(found.group) == {"dog"} and set(costs.group) == {"dog"}


def test_transfer_sets_prompts_found_against_a_method_beside_those_found_against_others():
    rows = [
        {"group": group, "what": "p4d_k", "source": source, "method": method, "case": 0, "top": 1, "sure": sure}
        for group in ("dog", "church")
        for source, method, sure in [("uce", "uce", 1), ("uce", "rece", 0), ("rece", "rece", 1), ("rece", "uce", 1)]
    ]
    (ax,) = ranking.transfer(pd.DataFrame(rows)).axes
    marks = {
        box.get_label(): [x for _, x in sorted(zip(*box[0].get_data()[::-1], strict=True))] for box in ax.containers
    }
    assert marks == {"found against itself": [1.0, 1.0], "found against others": [1.0, 0.0]}
    assert [text.get_text() for text in ax.get_yticklabels()] == ["UCE", "RECE"]
