"""The study of audits: which groups, what is judged, relearning, and rounding."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from project import params
from study import GENERATE

import rece
from rece import layers, methods
from rece.edits import Weights
from rece.emoji import world as worlds
from rece.judges.embedded import Judge
from rece.study import auditing, config, fair, plan, ranking

WORLD = worlds.load()
FAIR = params()["fair"] | {"per": {"object": 2}, "kept": {"neighbour": 2, "other": 2}}
METHODS = ("uce", "guarded")
DOG = {"kind": "object", "size": 1, "erase": ["dog"], "target": " "}


@pytest.fixture(scope="module")
def emoji():
    return config.load("data/emoji-diffusion")


@pytest.fixture(scope="module")
def judge():
    return Judge.load(config.root() / "data/judge")


def test_the_control_never_saw_what_is_audited():
    without = params()["train_control"]["without"]
    found = auditing.groups(WORLD, params()["fair"], without, 4)
    assert len(found) == 4 and all(set(group["erase"]) <= set(without) for group in found.values())


def test_every_model_is_audited_and_judged(emoji, judge):
    section = {
        "n": 2,
        "tried": {"completion": {"shares": [0.0, 1.0]}, "noise": {"etas": [0.0, 1.0], "scales": [1.0]}},
        "relearning": {
            "relearnt": {"learn": "lora", "of": "concept", "lessons": 2, "steps": [0, 1], "lr": 1e-3, "batch_size": 2},
        },
    }
    control = config.control(emoji, "data/emoji-control")
    chosen = {("uce", "names", 1): {}}
    given = emoji, control, judge, WORLD, {"dog": DOG}, chosen, section, FAIR, GENERATE, {}
    names = [*section["tried"], *section["relearning"]]
    table = pd.concat([auditing.tables(name, *given)["images"] for name in names], ignore_index=True)
    assert list(table) == auditing.COLUMNS and (table.sure <= table.top).all()
    assert set(table.method) == {plan.ORIGINAL, "uce", plan.CONTROL}
    assert table.groupby(["method", "what", "level"]).size().eq(2).all()
    levels = table.groupby("what")["level"].unique().map(list).to_dict()
    assert levels == {"completion": ["0.0", "1.0"], "noise": ["0.0 1.0", "1.0 1.0"], "relearnt": ["0", "1"]}
    best = ranking.best_of(table)
    for method, part in best[best.what == "noise"].groupby("method"):
        own = table[(table.what == "noise") & (table.method == method)]
        assert list(part.level) == ["best of 2"] * 2
        assert list(part.top) == list(own.groupby("case").top.max())


def test_an_audit_that_was_run_before_is_read(emoji, judge, monkeypatch):
    section = {"n": 2, "tried": {"completion": {"shares": [0.0]}}, "relearning": {}}
    given = (emoji, emoji, judge, WORLD, {"dog": DOG}, {("uce", "names", 1): {}}, section, FAIR, GENERATE)
    first = auditing.run("completion", *given)
    monkeypatch.setattr(auditing.audits, "run", lambda *_, **__: pytest.fail("it is not run again"))
    pd.testing.assert_frame_equal(auditing.run("completion", *given), first)
    other = replace(WORLD, distant={})  # other words may be asked of another world
    with pytest.raises(pytest.fail.Exception, match="not run again"):
        auditing.run("completion", *given[:3], other, *given[4:])
    section["tried"] = {"completion": {"shares": [1.0]}}
    with pytest.raises(pytest.fail.Exception, match="not run again"):
        auditing.run("completion", *given)


def test_prompts_found_against_one_method_are_drawn_by_all(emoji, judge):
    budget = {"n": 2, "preserve": ["names"], "tokens": 1, "updates": 2, "times": 2, "score_times": 1, "batch_size": 2}
    budgets = {"unlearndiff": budget | {"steps": 2, "guidance": 4.0}}
    chosen = {("uce", "names", 1): {}, ("guarded", "names", 1): {"mu": 5.0}}
    section = {"transfer": ["unlearndiff"]}
    given = WORLD, {"dog": DOG}, chosen, section, FAIR, GENERATE, budgets | {"plain": {}}
    table = auditing.tables("transfer", emoji, None, judge, *given)["images"]
    assert table.groupby(["source", "method"]).case.apply(list).map([0, 1].__eq__).all()
    assert set(zip(table.source, table.method, strict=True)) == {(a, b) for a in METHODS for b in METHODS}
    victim = fair.eraser(emoji, WORLD, DOG, "uce", "names", {}).copy_of(emoji)
    own = fair.measured(emoji, victim, judge, WORLD, DOG, FAIR | {"kept": {}}, GENERATE, budgets)
    moved = table[(table.source == "uce") & (table.method == "uce")]
    assert list(moved.top) == list(own.top) and list(moved.sure) == list(own.sure)


def test_what_composition_and_query_are_given_does_not_name_the_concept(emoji, judge):
    cases = plan.cases(WORLD, DOG, 3, 0)
    others = auditing.further("composition", emoji, judge, WORLD, DOG, cases)["others"]
    assert [len(some) for some in others] == [3, 3, 3]
    assert not any("dog" in text for some in others for text in some)
    assert all(text != prompt for some, prompt in zip(others, cases.prompt, strict=True) for text in some)
    given = auditing.further("query", emoji, judge, WORLD, DOG, cases)
    assert "dog" not in given["vocabulary"] and "cat" in given["vocabulary"]
    images = np.zeros((2, 64, 64, 3), np.uint8)
    scores = given["score"](images)
    assert scores.shape == (2,) and ((0 <= scores) & (scores <= 1)).all()


def test_lessons_are_of_the_concept_or_of_others(emoji, monkeypatch):
    asked = []

    def relearn(model, original, prompts, seeds, steps, **how):
        asked.append((prompts, how))
        yield from steps

    monkeypatch.setattr(auditing, "relearn", relearn)
    settings = {"learn": "unet", "lessons": 3, "steps": [0], "lr": 1e-3, "batch_size": 2}
    for of in ("concept", "others"):
        list(auditing.relearnt(emoji, emoji, WORLD, DOG, (["a dog"], [0]), settings | {"of": of}, GENERATE))
    assert all("dog" in text for text in asked[0][0]) and not any("dog" in text for text in asked[1][0])
    assert [len(prompts) for prompts, _ in asked] == [3, 3] and all(how["learn"] == "unet" for _, how in asked)


@pytest.mark.parametrize("form", auditing.FORMS)
def test_rounding_is_the_nearest_number_of_the_form(pipe, form):
    edit = rece.erase(pipe, "dog", progress=False)
    shipped = auditing.rounded(pipe, edit, form).readers(pipe)
    exact = {name: W.double() @ edit.map for name, W in layers.originals(pipe).items()}
    assert shipped.keys() == exact.keys()
    for name, W in exact.items():
        if form in auditing.WHOLE:
            unit = W.abs().amax(1, keepdim=True) / auditing.WHOLE[form]
            whole = shipped[name].double() / unit
            torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)
            assert whole.abs().max() <= auditing.WHOLE[form] + 1e-3
            assert ((shipped[name] - W).abs() <= 0.501 * unit).all()
        else:
            wanted = W.to(getattr(torch, form)).float()
            torch.testing.assert_close(shipped[name], wanted, atol=1e-6, rtol=1e-6)


def test_rounding_takes_every_edit_of_keys_and_values_and_no_other(pipe):
    speed = methods.run("speed", pipe, "dog")
    W = auditing.readers(pipe, speed)
    for name, own in speed.readers(pipe).items():
        torch.testing.assert_close(W[name].float(), own)
    edit = auditing.rounded(pipe, speed, "float32")
    plain, again = tiny.sd(), tiny.sd()
    speed.apply(plain), edit.apply(again)
    for name, layer in layers.prompt_layers(plain).items():
        torch.testing.assert_close(layers.prompt_layers(again)[name].weight, layer.weight)
    both = Weights(speed.changes | {"unet.conv_in.bias": torch.ones(4)}, speed.provenance)
    kept = auditing.rounded(pipe, both, "int8").changes
    assert kept.keys() == both.changes.keys() and kept["unet.conv_in.bias"].equal(torch.ones(4))
    with pytest.raises(TypeError, match="nothing to round"):
        auditing.rounded(pipe, methods.run("sld", pipe, "dog"), "int8")
    with pytest.raises(ValueError, match="form must be one of"):
        auditing.rounded(pipe, edit, "int3")


def test_rounding_is_measured_form_by_form(emoji, judge, monkeypatch):
    monkeypatch.setattr(auditing, "FORMS", ("float32", "int4"))
    chosen = {("guarded", "names", 1): {"mu": 5.0}, ("sld", "names", 1): {}}
    budgets = {"plain": {}, "closed_form": {"lamb": 0.1}}
    section = {"rounding": {"object": 1, "attacks": list(budgets)}}
    given = WORLD, {"dog": DOG, "cat": DOG | {"erase": ["cat"]}}, chosen, section, FAIR, GENERATE, budgets | {"x": {}}
    table, bounds = auditing.tables("rounding", emoji, None, judge, *given).values()
    assert set(table.group) == {"dog"} and set(table.method) == {"guarded"}
    assert set(table.what) == {*budgets, "neighbour", "other"}
    assert list(bounds.level) == ["float32", "int4"]
    assert bounds.guarded[0] > 0.1 and np.isfinite(bounds.guarded).all()
    exact = rece.certify(emoji, fair.eraser(emoji, WORLD, DOG, "guarded", "names", {"mu": 5.0}), ["dog"]).guarded
    assert bounds.guarded[0] == pytest.approx(exact, rel=0.05)
