"""Which prompts a study asks: cases of the embedded world, and rows of published files."""

from types import SimpleNamespace

import pandas as pd
import pytest
from study import WORLD, write

from rece import attacks
from rece.study import config, experiment, plan

PARAMS = config.params()
SPECS = PARAMS["concept"]


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


def test_an_unknown_concept_is_refused():
    with pytest.raises(ValueError, match="'pegasi' is no concept"):
        plan.cases(WORLD, {"kind": "object", "erase": ["pegasi"], "target": " "}, 3, 0)


def test_concepts_that_numbers_are_chosen_on_are_not_reported():
    params = config.params()
    erased = {name for concept in params["concepts"] for name in plan.members(WORLD, SPECS[concept])}
    chosen = {name for concept in params["validation"] for name in plan.members(WORLD, SPECS[concept])}
    assert chosen and not erased & chosen
    assert set(params["sweep_concepts"]) <= set(params["concepts"])


def test_the_control_never_saw_what_is_erased():
    params = config.params()
    erased = {name for concept in params["concepts"] for name in plan.members(WORLD, SPECS[concept])}
    assert erased <= set(params["train_control"]["without"])


def test_every_attack_of_every_budget_is_there_and_takes_its_keywords():
    for size in ("quick", "full"):
        lines = config.params()["attack"][size]
        for name, budget in lines.items():
            known = attacks.budget_items(experiment.module(name, budget))
            assert set(budget) - {"attack", "n", "control"} <= set(known), name
        assert {experiment.module(name, budget) for name, budget in lines.items()} == set(attacks.names())


def test_reported_prompts_share_no_seed_with_one_another():
    params = config.params()
    spans = [(params["attack"]["seed"], params["attack"]["n"]), (params["evaluate"]["seed"], params["evaluate"]["n"])]
    spans.append((params["sweep"]["seed"], max(params["sweep"]["n"], params["sweep"]["preserve_n"])))
    spans.sort()
    assert all(start + n <= following for (start, n), (following, _) in zip(spans, spans[1:], strict=False))


def test_innocents_and_synonyms_leave_the_erased_concepts_out():
    assert len(plan.innocents(WORLD, SPECS["dog"])) == 99 and "dog" not in plan.innocents(WORLD, SPECS["dog"])
    assert len(plan.innocents(WORLD, SPECS["weapon"])) == 94
    assert plan.innocents(WORLD, SPECS["twemoji"]) == ["noto", "openmoji", "fluent", "emojione"]
    assert plan.synonyms(WORLD, SPECS["dog"])["dog"][:2] == ["puppy", "doggy"]
    assert "beagle" in plan.synonyms(WORLD, SPECS["dog"])["dog"]


def test_a_concepts_own_numbers_win_over_the_methods():
    spec = {"kind": "object", "erase": ["dog"], "target": "cat", "numbers": {"rece": {"rounds": 2}}}
    assert plan.numbers(spec, "rece", {"rounds": 3, "lamb": 1.0}) == {"target": "cat", "rounds": 2, "lamb": 1.0}
    assert plan.numbers(spec, "uce", {"lamb": 1.0}) == {"target": "cat", "lamb": 1.0}


def test_a_hit_is_wanted_and_as_sure_as_the_study_and_the_judge_ask():
    answers = pd.DataFrame({"wanted": [True, True, True, False], "probability": [0.9, 0.5, 0.4, 1.0]})
    for own, threshold, expected in ((0, 0, [1, 1, 1, 0]), (0, 0.5, [1, 1, 0, 0]), (0.6, 0.5, [1, 0, 0, 0])):
        judge = SimpleNamespace(threshold=own)
        assert plan.hits(judge, answers, threshold).tolist() == expected
    assert plan.hits(SimpleNamespace(threshold=0.5), answers).tolist() == [1, 1, 0, 0]
    assert plan.hits(judge, answers.set_index(pd.Index([3, 1, 2, 0]))).dtype == bool


@pytest.fixture
def objects(tmp_path):
    labels = ["English springer", "tench", "english springer", "church", "tench, church"]
    return write(tmp_path / "objects.csv", list("abcde"), evaluation_seed=range(5), **{"class": labels})


@pytest.mark.parametrize(
    "wanted, prompts",
    [
        ({}, "abcde"),
        ({"label": "english springer"}, "ac"),
        ({"label": "ENGLISH SPRINGER", "n": 1}, "a"),
        ({"without": "Tench"}, "acd"),
        ({"label": "church", "without": "tench"}, "d"),
        ({"n": 2}, "ab"),
    ],
)
def test_rows_are_chosen_by_label_question_and_number(objects, wanted, prompts):
    table = plan.from_file({"file": objects, **wanted})
    assert "".join(table.prompt) == prompts and list(table.index) == list(range(len(prompts)))
    assert table.attrs["repairs"] == []


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"label": "springer"}, "label: no row has 'springer'; there are .*English springer"),
        ({"without": "horn"}, "label: no row has 'horn'"),
        ({"n": 0}, "no prompt of .* is left"),
    ],
)
def test_rows_that_cannot_be_chosen(objects, wanted, message):
    with pytest.raises(ValueError, match=message) as error:
        plan.from_file({"file": objects, **wanted})
    assert "\n" not in str(error.value)


def test_a_prompt_file_that_is_missing_says_how_to_get_it():
    with pytest.raises(FileNotFoundError, match="dvc --cd .*data/paper/prompts pull none.csv.dvc"):
        plan.from_file({"file": "data/paper/prompts/none.csv"})


def test_all_artists_of_a_file_are_preserved_but_the_erased(tmp_path):
    artists = ["Claude Monet", "VAN GOGH", "Vincent van Gogh", "Claude Monet", "Goya"]
    file = write(tmp_path / "artists.csv", list("abcde"), evaluation_seed=range(5), artist=artists)
    spec = {"erase": ["Van Gogh", "goya"], "target": "art", "preserve": file}
    found = plan.numbers(spec | {"numbers": {"rece": {"rounds": 1}}}, "rece", {"rounds": 3, "preserve": ["x"]})
    assert found == {"target": "art", "rounds": 1, "preserve": ["Claude Monet", "Vincent van Gogh"]}
    assert plan.numbers(spec | {"numbers": {"uce": {"preserve": []}}}, "uce", {}) == {"target": "art", "preserve": []}
