"""The study's plan and the files between its stages."""

import numpy as np
import pandas as pd
import pytest
import yaml

from rece import figures, stages, study
from rece.attacks import Attempts
from rece.emoji import world as worlds
from rece.eraser import Eraser
from rece.judge import Judge, Verdict

WORLD = worlds.load()
SPECS = study.params()["concept"]


def changed(tmp_path, change):
    tree = yaml.safe_load((study.root() / "params.yaml").read_text())
    change(tree)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "params.yaml"


def test_params_yaml_passes_its_own_check():
    assert set(study.params()["concepts"]) <= set(SPECS)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tree: tree["generate"].update(guidence=3), "generate: unknown key 'guidence'"),
        (lambda tree: tree.pop("judge"), "the key 'judge' is missing"),
        (lambda tree: tree["concepts"].append("unicorns"), "concept has no section 'unicorns'"),
        (lambda tree: tree["concept"]["dog"].update(kind="animal"), "concept.dog.kind must be one of"),
        (lambda tree: tree["concept"]["dog"].pop("target"), "the key 'target' is missing"),
    ],
)
def test_a_wrong_params_yaml_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        study.params(changed(tmp_path, change))


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
    members = study.members(WORLD, SPECS[name])
    cases = study.cases(WORLD, SPECS[name], 10 * len(members), seed=5)
    assert cases.name.value_counts().to_dict() == dict.fromkeys(members, 10)
    assert cases.seed.is_unique
    for case in cases.itertuples():
        assert case.name in case.wanted
        assert WORLD.words[case.name][0] in case.prompt


@pytest.mark.parametrize("name", SPECS)
def test_prompts_of_others_never_ask_for_the_erased_concept(name):
    others = study.others(WORLD, SPECS[name], 600, seed=5)
    erased = set(study.members(WORLD, SPECS[name]))
    assert not erased & (set(others.object) | set(others["style"]))
    assert len(others) == 600 and others.seed.is_unique


def test_reported_prompts_share_no_seed_with_one_another():
    params = study.params()
    spans = [(params["attack"]["seed"], params["attack"]["n"]), (params["evaluate"]["seed"], params["evaluate"]["n"])]
    spans.append((params["sweep"]["seed"], max(params["sweep"]["n"], params["sweep"]["preserve_n"])))
    spans.sort()
    assert all(start + n <= following for (start, n), (following, _) in zip(spans, spans[1:], strict=False))


def test_a_concepts_own_numbers_win_over_the_methods():
    spec = {"kind": "object", "erase": ["dog"], "target": "cat", "numbers": {"rece": {"rounds": 2}}}
    assert study.numbers(spec, "rece", {"rounds": 3, "lamb": 1.0}) == {"target": "cat", "rounds": 2, "lamb": 1.0}
    assert study.numbers(spec, "uce", {"lamb": 1.0}) == {"target": "cat", "lamb": 1.0}


def test_an_unknown_concept_is_refused():
    with pytest.raises(ValueError, match="'pegasi' is no concept"):
        study.cases(WORLD, {"kind": "object", "erase": ["pegasi"], "target": " "}, 3, 0)


def test_hits_count_objects_for_objects_members_for_categories_and_styles_for_styles():
    judge = Judge(["dog", "knife", "bomb"], ["noto", "twemoji"])
    objects = np.array([[0.9, 0.1, 0.0], [0.3, 0.3, 0.4], [0.0, 1.0, 0.0]], "f4")
    styles = np.array([[1.0, 0.0], [0.2, 0.8], [0.1, 0.9]], "f4")
    verdict = Verdict(objects, styles)
    cases = pd.DataFrame(
        {"wanted": [["dog"], ["knife", "bomb"], ["noto"]], "judged": ["object", "object", "style"]},
    )
    assert study.hits(judge, verdict, cases).tolist() == [True, True, False]
    assert study.hits(judge, verdict, cases, threshold=0.5).tolist() == [True, False, False]
    assert study.hits(judge, verdict, cases.assign(wanted=[["dog"], ["dog"], ["twemoji"]]), 0.5).tolist() == [1, 0, 1]


def test_a_missing_model_folder_is_named():
    with pytest.raises(FileNotFoundError, match="data/emoji-difusion"):
        study.load("data/emoji-difusion")


def test_a_missing_stage_output_names_the_stage(tmp_path, pipe):
    with pytest.raises(FileNotFoundError, match="run the erase stage"):
        stages.erasers(tmp_path)
    cases = study.cases(WORLD, SPECS["dog"], 2, 0)
    with pytest.raises(FileNotFoundError, match="run the attack stage"):
        stages.judge_attempts({"original": pipe}, tmp_path, ["plain"], cases, Judge(["dog"], ["noto"]), {}, 1, 0.5)
    with pytest.raises(FileNotFoundError, match="dvc repro evaluate"):
        stages.gather(tmp_path, ["dog"], "evaluate", "success")


def test_a_victim_is_edited_and_leaves_the_original_alone(pipe):
    import torch

    name, layer = next((n, m) for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_k"))
    before, d = layer.weight.detach().clone(), layer.in_features
    edited = stages.victim(pipe, Eraser(2 * torch.eye(d, dtype=torch.float64)))
    torch.testing.assert_close(edited.unet.get_submodule(name).weight, 2 * before)
    assert torch.equal(layer.weight, before)


def test_stages_run_on_a_tiny_pipeline_and_make_figures(tmp_path, pipe):
    import torch

    d = next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_k")).in_features
    victims = {"original": pipe, "uce": stages.victim(pipe, Eraser(0.5 * torch.eye(d, dtype=torch.float64)))}
    generate = {"steps": 1, "guidance": 1.0, "batch_size": 2}
    judge = Judge(WORLD.objects, WORLD.styles).eval()
    cases = study.cases(WORLD, SPECS["dog"], 3, 0)
    for method, victim in victims.items():
        for attack in ("plain", "closed_form"):
            found = stages.attempt(attack, victim, pipe, cases, WORLD, SPECS["dog"], {"n": 2})
            assert len(found) == 2
            found.save(tmp_path / f"{method}-{attack}.safetensors")
    assert Attempts.load(tmp_path / "uce-plain.safetensors").prompts == list(cases.prompt[:2])
    success, shown = stages.judge_attempts(victims, tmp_path, ["plain", "closed_form"], cases, judge, generate, 2, 0.5)
    assert set(zip(success.method, success.attack, strict=True)) == set(shown)
    kept = stages.preservation(victims, study.others(WORLD, SPECS["dog"], 6, 0), judge, generate)
    original = kept[kept.method == "original"].iloc[0]
    assert original.drift == 0 and kept.drift.iloc[1] > 0
    stages.write_images(tmp_path, shown)
    again = stages.read_images(tmp_path)
    for key, (images, hits) in shown.items():
        assert np.array_equal(again[key][0], images) and np.array_equal(again[key][1], hits)
    success.insert(0, "concept", "dog")
    tradeoff = pd.DataFrame({"concept": "dog", "lamb": 0.1, "rounds": [0, 1], "attack_rate": [0.5, 0.1], "kept": 0.9})
    for n, figure in enumerate(
        [
            figures.rates(success),
            figures.grid(*stages.by_method(shown), title="dog"),
            figures.tradeoff(tradeoff),
            figures.singular_values({"dog": {"uce": np.array([1.0, 0.1])}}),
        ]
    ):
        figures.save(figure, tmp_path / "figures" / f"{n}.png")
        assert (tmp_path / "figures" / f"{n}.png").stat().st_size > 5000
