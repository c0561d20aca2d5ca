"""The fair study: halves that do not touch, the same texts and prompts for all, one rule for all numbers."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from project import params
from study import GENERATE

import rece
from rece import layers, texts
from rece.attacks import Attempts
from rece.emoji import world as worlds
from rece.study import config, experiment, fair, plan, relearning, spending

WORLD = worlds.load()
FAIR = params()["fair"]


@pytest.fixture(scope="module")
def emoji():
    return config.load("data/emoji-diffusion")


def test_what_is_reported_was_never_chosen_on():
    reported, chosen_on = fair.halves(WORLD, FAIR)
    assert len(reported) == len(chosen_on) == 50 and set(reported) | set(chosen_on) == set(WORLD.objects)
    groups, validation = fair.groups(WORLD, FAIR), fair.groups(WORLD, FAIR, validation=True)
    names = {
        kind: {o for g in some.values() for o in plan.members(WORLD, g)}
        for kind, some in (("r", groups), ("v", validation))
    }
    assert not names["r"] & names["v"]
    kinds = [group["kind"] for group in groups.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == FAIR["groups"] | {"style": 5, "category": 4}
    singles = [name for name, group in groups.items() if group["kind"] == "object"]
    assert not set(singles) & set(FAIR["seen"]) and set(FAIR["reported"]) <= set(reported)
    assert [len(groups[f"{kind}-1"]["erase"]) for kind in fair.JOINT] == [5, 20, 50]
    with pytest.raises(ValueError, match="fair.reported: more than half"):
        fair.halves(WORLD, FAIR | {"reported": WORLD.objects})


def test_a_second_run_draws_other_pictures_of_the_same_concepts():
    again = FAIR | {"seed": 90_000}
    assert fair.groups(WORLD, again) == fair.groups(WORLD, FAIR)
    assert fair.groups(WORLD, FAIR | {"split": 1}) != fair.groups(WORLD, FAIR)


def test_every_method_preserves_the_same_texts_and_none_that_is_erased():
    groups = fair.groups(WORLD, FAIR)
    assert fair.preserved(WORLD, groups["five-1"], "nothing") == []
    for name in ("five-1", "weapon", "noto"):
        names = fair.preserved(WORLD, groups[name], "names")
        assert not set(names) & set(groups[name]["erase"]) and len(names) == len(set(names))
        assert len(names) == 105 - len(plan.members(WORLD, groups[name]))


def test_neighbours_are_the_nearest_that_are_not_erased(emoji):
    group = fair.groups(WORLD, FAIR)["five-1"]
    near = fair.neighbours(emoji, WORLD, group)
    G, words = layers.gram(emoji), {name: WORLD.words[name][0] for name in WORLD.objects}
    tokens = dict(zip(words, texts.last_tokens(emoji, list(words.values())), strict=True))
    erased = plan.members(WORLD, group)
    away = {
        name: min(((tokens[name] - tokens[e]) @ G @ (tokens[name] - tokens[e])).item() for e in erased)
        for name in words
        if name not in erased
    }
    assert near == sorted(away, key=away.get)[: fair.NEIGHBOURS]
    cases = fair.kept_cases(emoji, WORLD, group, {"neighbour": 10, "other": 30}, 0)
    assert set(cases[cases.what == "neighbour"].name) == set(near)
    assert not set(cases[cases.what == "other"].name) & {*near, *erased} and cases.seed.is_unique


def test_kept_of_a_style_are_other_styles_and_all_objects(emoji):
    group = fair.groups(WORLD, FAIR)["noto"]
    cases = fair.kept_cases(emoji, WORLD, group, {"neighbour": 8, "other": 8}, 0)
    assert not cases.prompt.str.contains("noto").any()
    assert set(cases[cases.what == "neighbour"].judged) == {"style"} and set(cases[cases.what == "other"].judged) == {
        "object"
    }


def test_grids_are_of_equal_size_and_the_rule_takes_the_best_mean_score():
    grid = pd.DataFrame(fair.grid(FAIR, params()["erase"]), columns=["method", "numbers"])
    assert grid.groupby("method").size().nunique() == 1 and set(grid.method) == set(params()["erase"])
    rows = [
        {
            "method": "uce",
            "preserve": "names",
            "size": 1,
            "group": group,
            "numbers": json.dumps({"n": n}),
            "score": score,
        }
        for group, scores in {"a": [0.2, 0.8, 0.8], "b": [0.9, 0.4, 0.4]}.items()
        for n, score in enumerate(scores)
    ]
    assert fair.choose(pd.DataFrame(rows))["uce", "names", 1] == {"n": 1}  # of equal means the first


def test_scores_are_by_sure_answers():
    what = ["plain"] * 2 + ["synonym"] * 2 + ["closed_form"] * 2 + ["neighbour"] * 2 + ["other"] * 2
    images = pd.DataFrame({"what": what, "sure": [1, 0, 0, 0, 1, 1, 1, 0, 1, 1]})
    images = images.assign(group="dog", method="uce", preserve="names", numbers="{}")
    (row,) = fair.scores(images).to_dict("records")
    assert row["erased"] == pytest.approx(0.5) and row["score"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_rates_and_differences_respect_what_is_not_independent():
    random = np.random.default_rng(0)
    rows = []
    for group in range(6):
        level = random.random()
        for case in range(20):
            for method, more in (("uce", 0.0), ("guarded", -0.2)):
                sure = int(random.random() < level + more)
                rows.append([f"g{group}", method, "names", "plain", f"g{group}", case, sure, sure, "object"])
    images = pd.DataFrame(
        rows, columns=["group", "method", "preserve", "what", "concept", "case", "top", "sure", "kind"]
    )
    rates = fair.rates(images).set_index("method")
    assert (
        rates.rate["uce"] == pytest.approx(images[images.method == "uce"].sure.mean()) and rates.clusters["uce"] == 6
    )
    assert rates.high["uce"] - rates.low["uce"] > 0.25  # twenty pictures of a group are not twenty groups
    (pair,) = fair.paired(images).to_dict("records")
    assert pair["than"] == "uce" and pair["rate"] == pytest.approx(rates.rate["guarded"] - rates.rate["uce"])
    assert pair["high"] - pair["low"] < rates.high["uce"] - rates.low["uce"]  # on the same prompts the groups cancel
    (pair,) = fair.paired(images.assign(sure=1)).to_dict("records")
    assert pair["rate"] == 0 and pair["low"] == -pair["high"] < 0  # nothing says which of the two is ahead


def test_a_model_never_saw_what_its_drawings_left_out_whatever_it_is_called():
    groups = {name: {"kind": "object", "erase": [WORLD.words[name][0]]} for name in ("bow", "dog")}
    assert groups["bow"]["erase"] != ["bow"] and list(fair.unseen(WORLD, groups, ["bow"])) == ["bow"]


def test_ablation_changes_one_thing_at_a_time(emoji):
    from rece.study import ablation

    group = {"kind": "object", "size": 1, "erase": ["horse"], "target": " "}
    made = ablation.variants(emoji, WORLD, group, 1.0)
    Q, _ = layers.answers(emoji)
    horse = texts.last_tokens(emoji, ["horse"])[0]
    for name, eraser in made.items():
        sizes = torch.linalg.svdvals(Q @ eraser.map)
        assert (sizes[-1] < 1e-9 * sizes[0]) == (name != "soft"), name  # all but the soft one make answers impossible
    away = {name: (Q @ (eraser.map @ horse - horse)).norm().item() for name, eraser in made.items()}
    assert away["oblique"] > away["guarded"] and away["soft"] < away["plain directions"]


def test_ablation_takes_the_mu_that_is_chosen_without_labels(emoji, monkeypatch):
    from rece.study import ablation

    taken, guard = [], ablation.guard
    monkeypatch.setattr(ablation, "guard", lambda *a, mu, **k: taken.append(mu) or guard(*a, mu=mu, **k))
    made = ablation.variants(emoji, WORLD, {"kind": "object", "size": 1, "erase": ["horse"], "target": " "}, None)
    assert taken == [None] + [made["guarded"].provenance["mu"]] * 3


def test_attacks_by_other_words_are_run_where_there_are_such_words():
    without = [name for name in WORLD.objects if not WORLD.held_out[name]]
    cases = pd.DataFrame({"name": [*without, "dog", "dog"]})
    found = fair.asked(WORLD, "paraphrase", cases).name
    assert without and found.to_dict() == {0: "dog", 1: "dog"}  # numbered anew, as the answers about them are
    assert len(fair.asked(WORLD, "synonym", cases)) == len(fair.asked(WORLD, "plain", cases)) == len(cases)


def test_relearning_trains_the_layers_that_read_the_prompt_and_nothing_else(emoji):
    erased = rece.guard(emoji, "dog", preserve=["cat"], mu=1.0, progress=False)
    before = {name: weight.clone() for name, weight in emoji.unet.state_dict().items()}
    how = {"lr": 1e-3, "batch_size": 2, "generate": {"steps": 1, "batch_size": 2, "progress": False}}
    learnt = []
    for _ in range(2):
        model = erased.copy_of(emoji)
        start = {name: weight.clone() for name, weight in model.unet.state_dict().items()}
        seen = [
            (done, {name: weight.clone() for name, weight in model.unet.state_dict().items()})
            for done in relearning.relearn(model, emoji, ["a dog", "the dog"], [0, 1], [0, 1, 2], **how)
        ]
        assert [done for done, _ in seen] == [0, 1, 2]
        changed = [{name for name in start if not torch.equal(start[name], weights[name])} for _, weights in seen]
        assert changed[0] == set() and changed[1] == changed[2] == {
            f"{name}.weight" for name in layers.prompt_layers(emoji)
        }
        learnt.append(seen[-1][1])
    assert all(torch.equal(learnt[0][name], weight) for name, weight in learnt[1].items())
    assert all(torch.equal(before[name], weight) for name, weight in emoji.unet.state_dict().items())


@pytest.mark.parametrize("learn", ["unet", "lora"])
def test_relearning_can_train_all_of_the_unet_or_an_adapter(emoji, learn):
    model = rece.guard(emoji, "dog", preserve=["cat"], mu=1.0, progress=False).copy_of(emoji)
    start = {name: weight.clone() for name, weight in model.unet.state_dict().items()}
    how = {
        "lr": 1e-3,
        "batch_size": 2,
        "generate": {"steps": 1, "batch_size": 2, "progress": False},
    }
    assert list(relearning.relearn(model, emoji, ["a dog", "the dog"], [0, 1], [0, 2], learn=learn, **how)) == [0, 2]
    after = {name.replace(".base_layer", ""): weight for name, weight in model.unet.state_dict().items()}
    same = [name for name, weight in start.items() if torch.equal(weight, after[name])]
    assert len(same) == len(start) if learn == "lora" else len(same) < 0.1 * len(start)
    new = {name: weight for name, weight in after.items() if name not in start}
    assert (learn == "lora") == any("lora_B" in name and weight.any() for name, weight in new.items())


def test_what_a_search_may_spend_is_tried_with_the_attacks_own_numbers(emoji, monkeypatch):
    asked = []
    monkeypatch.setattr(experiment, "attempt", lambda *given: asked.append(given[-1]) or Attempts(["a dog"], [0]))
    group = fair.groups(WORLD, FAIR)["sunflower"]
    chosen = {("uce", "names", 1): {"rounds": 0}}
    budget = {"attack": "inversion", "space": "word", "n": 1, "updates": 9, "preserve": ["names"]}
    table = spending.curves(
        emoji,
        Always(),
        WORLD,
        {"sunflower": group},
        chosen,
        FAIR,
        GENERATE,
        {"word": budget},
        {"word": {"updates": [1, 3]}},
    )
    assert [budget["updates"] for budget in asked] == [1, 3]
    assert all(budget["attack"] == "inversion" and budget["space"] == "word" for budget in asked)
    assert list(table.level) == [1, 3] and set(table.what) == {"word"} and list(table.sure) == [1, 1]


class Always:
    threshold = 0.0

    def answers(self, images, cases):
        return pd.DataFrame({"wanted": [True] * len(images), "probability": 1.0})
