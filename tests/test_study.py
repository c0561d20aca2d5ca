"""The study's plan and the files between its stages."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

import rece
from rece import attacks
from rece.attacks import Attempts
from rece.emoji import world as worlds
from rece.eraser import Eraser
from rece.judges.embedded import Judge
from rece.study import certified, config, experiment, figures, frontier, plan, results, statistics

WORLD = worlds.load()
SPECS = config.params()["concept"]


def changed(tmp_path, change):
    tree = yaml.safe_load((config.root() / "params.yaml").read_text())
    change(tree)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "params.yaml"


def test_params_yaml_passes_its_own_check():
    assert set(config.params()["concepts"]) <= set(SPECS)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tree: tree["generate"].update(guidence=3), "generate: unknown key 'guidence'"),
        (lambda tree: tree.pop("judge"), "the key 'judge' is missing"),
        (lambda tree: tree["concepts"].append("unicorns"), "concepts lists 'unicorns', but concept has no section"),
        (lambda tree: tree["validation"].append("cow"), "validation lists 'cow', but concept has no section"),
        (lambda tree: tree["attack"].update(budget="seed"), "attack.budget must be one of the budgets in attack"),
        (lambda tree: tree["attack"].update(budget="huge"), "attack.budget must be .* not 'huge'"),
        (lambda tree: tree["concept"]["dog"].update(kind="animal"), "concept.dog.kind must be one of"),
        (lambda tree: tree["concept"]["dog"].pop("target"), "the key 'target' is missing"),
    ],
)
def test_a_wrong_params_yaml_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        config.params(changed(tmp_path, change))


def test_no_caption_contains_a_held_out_word():
    held_out = {word for table in (WORLD.held_out, WORLD.distant) for words in table.values() for word in words}
    for obj in WORLD.objects:
        for style in WORLD.styles:
            for caption in worlds.captions(WORLD, obj, style, 20, seed=1):
                padded = f" {caption.replace(',', ' ,')} "
                found = [word for word in held_out if f" {word} " in padded]
                assert not found, (caption, found)


def test_a_held_out_word_in_a_caption_list_is_refused(tmp_path):
    tree = yaml.safe_load(worlds.WORLD.read_text())
    tree["objects"]["dog"][1].append("tabby")
    (tmp_path / "concepts.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match="tabby"):
        worlds.load(tmp_path / "concepts.yaml")


@pytest.mark.parametrize("name", SPECS)
def test_cases_ask_every_erased_concept_equally_often_with_distinct_seeds(name):
    members = plan.members(WORLD, SPECS[name])
    cases = plan.cases(WORLD, SPECS[name], 10 * len(members), seed=5)
    assert cases.name.value_counts().to_dict() == dict.fromkeys(members, 10)
    assert cases.seed.is_unique
    for case in cases.itertuples():
        assert case.name in case.wanted
        assert WORLD.words[case.name][0] in case.prompt


@pytest.mark.parametrize("name", SPECS)
def test_prompts_of_others_never_ask_for_the_erased_concept(name):
    others = plan.others(WORLD, SPECS[name], 600, seed=5)
    erased = set(plan.members(WORLD, SPECS[name]))
    assert not erased & (set(others.object) | set(others["style"]))
    assert len(others) == 600 and others.seed.is_unique


def test_concepts_that_numbers_are_chosen_on_are_not_reported():
    params = config.params()
    erased = {name for concept in params["concepts"] for name in plan.members(WORLD, SPECS[concept])}
    chosen = {name for concept in params["validation"] for name in plan.members(WORLD, SPECS[concept])}
    assert chosen and not erased & chosen
    assert set(params["sweep_concepts"]) <= set(params["concepts"])


def test_the_control_never_saw_what_is_erased():
    params = config.params()
    erased = {name for concept in params["concepts"] for name in plan.members(WORLD, SPECS[concept])}
    assert erased == set(params["train_control"]["without"])


def test_every_attack_of_every_budget_is_there_and_takes_its_keywords():
    for size in ("quick", "full"):
        lines = config.params()["attack"][size]
        for name, budget in lines.items():
            known = attacks.budget_items(experiment.module(name, budget))
            assert set(budget) - {"attack", "n", "control"} <= set(known), name
        assert {experiment.module(name, budget) for name, budget in lines.items()} == set(attacks.names())


def test_innocents_and_synonyms_leave_the_erased_concepts_out():
    assert len(plan.innocents(WORLD, SPECS["dog"])) == 99 and "dog" not in plan.innocents(WORLD, SPECS["dog"])
    assert len(plan.innocents(WORLD, SPECS["weapon"])) == 94
    assert plan.innocents(WORLD, SPECS["twemoji"]) == ["noto", "openmoji", "fluent", "emojione"]
    assert plan.synonyms(WORLD, SPECS["dog"])["dog"][:2] == ["puppy", "doggy"]
    assert "beagle" in plan.synonyms(WORLD, SPECS["dog"])["dog"]


def test_reported_prompts_share_no_seed_with_one_another():
    params = config.params()
    spans = [(params["attack"]["seed"], params["attack"]["n"]), (params["evaluate"]["seed"], params["evaluate"]["n"])]
    spans.append((params["sweep"]["seed"], max(params["sweep"]["n"], params["sweep"]["preserve_n"])))
    spans.sort()
    assert all(start + n <= following for (start, n), (following, _) in zip(spans, spans[1:], strict=False))


def test_a_concepts_own_numbers_win_over_the_methods():
    spec = {"kind": "object", "erase": ["dog"], "target": "cat", "numbers": {"rece": {"rounds": 2}}}
    assert plan.numbers(spec, "rece", {"rounds": 3, "lamb": 1.0}) == {"target": "cat", "rounds": 2, "lamb": 1.0}
    assert plan.numbers(spec, "uce", {"lamb": 1.0}) == {"target": "cat", "lamb": 1.0}


def test_an_unknown_concept_is_refused():
    with pytest.raises(ValueError, match="'pegasi' is no concept"):
        plan.cases(WORLD, {"kind": "object", "erase": ["pegasi"], "target": " "}, 3, 0)


def test_a_hit_is_wanted_and_as_sure_as_the_study_and_the_judge_ask():
    answers = pd.DataFrame({"wanted": [True, True, True, False], "probability": [0.9, 0.5, 0.4, 1.0]})
    for own, threshold, expected in ((0, 0, [1, 1, 1, 0]), (0, 0.5, [1, 1, 0, 0]), (0.6, 0.5, [1, 0, 0, 0])):
        judge = SimpleNamespace(threshold=own)
        assert plan.hits(judge, answers, threshold).tolist() == expected
    assert plan.hits(SimpleNamespace(threshold=0.5), answers).tolist() == [1, 1, 0, 0]
    assert plan.hits(judge, answers.set_index(pd.Index([3, 1, 2, 0]))).dtype == bool


def test_a_missing_model_folder_is_named():
    with pytest.raises(FileNotFoundError, match="data/emoji-difusion"):
        config.load("data/emoji-difusion")


def test_a_missing_stage_output_names_the_stage(tmp_path, pipe):
    with pytest.raises(FileNotFoundError, match="run the erase stage"):
        results.read_erasers(tmp_path)
    attack, judge = {"n": 2, "seed": 0, "budget": "quick", "quick": {"plain": {}}}, Judge(["dog"], ["noto"])
    with pytest.raises(FileNotFoundError, match="run the attack stage"):
        experiment.draw_attempts({"original": pipe}, tmp_path, attack, WORLD, SPECS["dog"], judge, {}, EVALUATE)
    with pytest.raises(FileNotFoundError, match="dvc repro evaluate"):
        results.gather(tmp_path, ["dog"], "evaluate", "success")
    with pytest.raises(FileNotFoundError, match="correct `control`"):
        config.control(pipe, tmp_path)


def test_a_victim_is_edited_and_leaves_the_original_alone(pipe):
    import torch

    name, layer = next((n, m) for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_k"))
    before, d = layer.weight.detach().clone(), layer.in_features
    edited = experiment.victim(pipe, Eraser(2 * torch.eye(d, dtype=torch.float64)))
    torch.testing.assert_close(edited.unet.get_submodule(name).weight, 2 * before)
    assert torch.equal(layer.weight, before)


EVALUATE = {"threshold": 0.005, "show": 2, "images": None}
GENERATE = {"steps": 1, "guidance": 1.0, "batch_size": 2}
BUDGETS = {
    "plain": {},
    "words": {"attack": "synonym", "n": 3},
    "unlearndiff": {"n": 2, "tokens": 1, "updates": 1, "times": 1, "steps": 1, "batch_size": 2, "control": True},
    "closed_form": {"n": 2},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Attack and evaluate on a tiny pipeline with two erased models and a control."""
    import tiny
    import torch

    folder, pipe, never = tmp_path_factory.mktemp("attempts"), tiny.sd(), tiny.sd(seed=1)
    d = next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_k")).in_features
    erased = {name: Eraser(scale * torch.eye(d, dtype=torch.float64)) for name, scale in (("uce", 0.5), ("rece", 0.1))}
    victims = {"original": pipe, **{name: experiment.victim(pipe, eraser) for name, eraser in erased.items()}}
    victims["control"] = never
    attack = {"n": 4, "seed": 0, "budget": "quick", "quick": BUDGETS}
    for name, budget in experiment.budgets(attack, SPECS["dog"]).items():
        cases = experiment.asked(WORLD, SPECS["dog"], attack, name, budget)
        for source, victim in experiment.sources(name, budget, victims).items():
            experiment.attempt(name, victim, pipe, cases, WORLD, SPECS["dog"], budget).save(
                folder / f"{source}-{name}.safetensors"
            )
    judge = Judge(WORLD.objects, WORLD.styles).eval()
    table, shown = experiment.draw_attempts(victims, folder, attack, WORLD, SPECS["dog"], judge, GENERATE, EVALUATE)
    return {"folder": folder, "victims": victims, "table": table, "shown": shown, "judge": judge}


def test_attacks_that_do_not_look_at_the_victim_run_once(drawn):
    files = sorted(path.stem for path in drawn["folder"].glob("*.safetensors"))
    models = ["control", "rece", "uce"]
    assert files == ["any-plain", "any-words"] + ["control-unlearndiff", "rece-closed_form"] + [
        "rece-unlearndiff",
        "uce-closed_form",
        "uce-unlearndiff",
    ]
    assert models == sorted(set(name.split("-")[0] for name in files) - {"any"})
    assert len(Attempts.load(drawn["folder"] / "any-words.safetensors")) == 3


def test_every_attempt_is_drawn_by_the_models_it_is_meant_for(drawn):
    table = drawn["table"]
    pairs = {
        name: set(zip(part.source, part.method, strict=True)) for name, part in table.groupby("attack", sort=False)
    }
    assert pairs["plain"] == {("any", method) for method in ("original", "uce", "rece", "control")}
    assert pairs["words"] == {("any", method) for method in ("original", "uce", "rece")}
    found = {(source, method) for source in ("uce", "rece") for method in ("original", "uce", "rece")}
    assert pairs["unlearndiff"] == found | {("control", "control")}
    assert pairs["closed_form"] == {("uce", "uce"), ("rece", "rece")}
    assert (table.hit == (table.top1 & (table.probability >= 0.005))).all()


def test_tables_count_what_was_drawn(drawn, tmp_path):
    table = drawn["table"].copy()
    table["hit"] = np.random.default_rng(0).random(len(table)) < 0.5
    success = statistics.success(table)
    own = table[(table.method == "uce") & (table.attack == "unlearndiff") & (table.source == "uce")]
    row = success[(success.method == "uce") & (success.attack == "unlearndiff")].iloc[0]
    assert (row.n, row.successes, row.prompts) == (2, own.hit.sum(), own.asked.nunique())
    transfer = statistics.transfer(table)
    crossed = table[(table.method == "rece") & (table.source == "uce") & (table.attack == "unlearndiff")]
    row = transfer[(transfer.source == "uce") & (transfer.method == "rece")].iloc[0]
    assert row.successes == crossed.hit.sum() and "control" not in set(transfer.source)
    union = statistics.union(table).set_index(["method", "scope"])
    for scope, kinds in {"words": ["plain", "words"], "text": ["plain", "words", "unlearndiff"]}.items():
        mine = table[(table.method == "uce") & table.attack.isin(kinds) & table.source.isin(["any", "uce"])]
        n = mine.groupby("attack").case.count().min()
        hit = [mine[mine.case == case].hit.any() for case in range(n)]
        assert (union.loc[("uce", scope)].n, union.loc[("uce", scope)].successes) == (n, sum(hit))
    both = statistics.pooled(pd.concat([success, success]), ["method", "attack"])
    assert (both.successes.to_numpy() == 2 * success.successes.to_numpy()).all()
    assert both.iloc[0].low == statistics.wilson(2 * success.iloc[0].successes, 2 * success.iloc[0].n)[0]


def test_found_prompts_are_written_with_what_they_showed(drawn, tmp_path):
    import json

    table, tokenizer = drawn["table"], drawn["victims"]["original"].tokenizer
    n = results.write_prompts(tmp_path / "prompts.jsonl", table, "dog", BUDGETS, tokenizer, 0.005)
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert len(lines) == n == 3 + 3 * 2  # synonyms, and two prompts for each of two erased models and the control
    for line in lines:
        assert tokenizer(line["prompt"]).input_ids == line["token_ids"] and line["prompt"] != line["asked"]
    first = next(line for line in lines if line["found_against"] == "uce")
    assert set(first["shows"]) == {"original", "uce", "rece"} and first["budget"] == BUDGETS["unlearndiff"]


def test_frontier_measures_every_eraser_of_the_grid():
    import tiny

    pipe, judge = tiny.sd(), Judge(WORLD.objects, WORLD.styles).eval()
    erase = {"uce": {"rounds": 0}, "rece": {"rounds": 1}, "anchored": {"rounds": 1}}
    grid = {
        "uce": [{"start.lamb": [0.5, 5.0]}],
        "rece": [{"each.lamb": [0.1], "rounds": [1, "auto"]}],
        "anchored": [{"rounds": [2]}, {"rounds": [1]}],
    }
    sweep = {
        "n": 2,
        "preserve_n": 2,
        "seed": 0,
        "threshold": 0.5,
        "grid": grid,
        "attacks": {"plain": {}, "closed_form": {}},
    }
    table = frontier.frontier(pipe, judge, WORLD, SPECS["dog"], erase, sweep, GENERATE)
    assert list(table.method) == ["uce", "uce", "rece", "rece", "anchored", "anchored"]
    assert list(table.lamb[:2]) == [0.5, 5.0] and list(table["auto"]) == [False, False, False, True, False, False]
    assert table.certified.iloc[-2] > table.certified.iloc[0] > 0 and (table.text_attack == "plain").all()


def test_certificates_follow_the_rounds(pipe):
    erasers = {"uce": rece.erase(pipe, "dog", rounds=0), "rece": rece.erase(pipe, "dog", rounds=2)}
    table = certified.certificates(pipe, erasers, WORLD, {**SPECS["dog"], "target": " "})
    assert list(zip(table.method, table["round"], strict=True)) == [("original", 0), ("uce", 0)] + [
        ("rece", n) for n in range(3)
    ]
    assert table.distance.iloc[0] < 1e-3 * table.target.iloc[0] and table.distance.iloc[1] == table.distance.iloc[2]
    assert table.other.notna().all() and table.nearest.nunique() == 1


def test_figures_are_drawn(drawn, tmp_path, pipe):
    images = drawn["shown"]["uce", "plain"][0]
    results.write_images(tmp_path, drawn["shown"])
    again = results.read_images(tmp_path)
    for key, (images, hits) in drawn["shown"].items():
        assert np.array_equal(again[key][0], images) and np.array_equal(again[key][1], hits)
    success = statistics.success(drawn["table"]).assign(concept="dog", kind="object")
    random = np.random.default_rng(0)
    points = pd.DataFrame({"method": ["uce", "rece"] * 4, "certified": random.random(8), "text": random.random(8)})
    points["embedding"], points["concept"], points["kind"] = 1 - points.certified, "dog", ["object", "style"] * 4
    found = statistics.correlations(points)
    for scope in ("pooled", "within"):
        assert found["embedding"][scope]["rho"] == pytest.approx(-1) == found["embedding"][scope]["high"]
    apart = pd.DataFrame({"concept": ["a"] * 4 + ["b"] * 4, "certified": [1, 2, 3, 4, 11, 12, 13, 14]})
    apart["text"], apart["embedding"] = [4, 3, 2, 1, 9, 8, 7, 6], 0.0
    told = statistics.correlations(apart)
    assert told["text"]["pooled"]["rho"] > 0.4 and told["text"]["within"]["rho"] == pytest.approx(-1)
    assert np.isnan(told["embedding"]["pooled"]["rho"])
    front = pd.DataFrame({"concept": "dog", "method": ["uce", "rece", "rece"], "text": [0.5, 0.2, 0.3]})
    front["kept"] = [0.9, 0.8, 0.7]
    front["embedding"] = [1.0, 0.5, 0.1]
    for name in ("text", "embedding", "kept"):
        front[f"{name}_low"], front[f"{name}_high"] = front[name] - 0.1, front[name] + 0.1
    for n, figure in enumerate(
        [
            figures.rates(success),
            figures.heatmap(success),
            figures.grid(*results.by_method(drawn["shown"]), title="dog"),
            figures.frontier(front),
            figures.certificate(points, found),
            figures.transfer(statistics.transfer(drawn["table"])),
            figures.rows({"a": images, "b": images[:1]}, {"a": np.array([True, False])}),
            figures.distances({"uce": rece.certify(pipe, None, "dog", others=["cat"], synonyms=["puppy"]).words}),
            figures.singular_values({"dog": {"uce": np.array([1.0, 0.1])}}),
        ]
    ):
        figures.save(figure, tmp_path / "figures" / f"{n}.png")
        assert (tmp_path / "figures" / f"{n}.png").stat().st_size > 5000
