"""From cases to tables: which attempts are drawn by which models, and what is written down."""

import json
from operator import itemgetter

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from study import GENERATE, QUICK, WORLD, Bright, attacked, evaluation, spec_of, victims_of, write

from rece.attacks import Attempts
from rece.eraser import Eraser
from rece.images import generate
from rece.judges.classifier import Classifier
from rece.judges.embedded import Judge
from rece.study import config, experiment, results, statistics

SPECS = config.params()["concept"]
EVALUATE = {"threshold": 0.005, "show": 2, "images": None}
BUDGETS = {
    "plain": {},
    "words": {"attack": "synonym", "n": 3},
    "unlearndiff": {"n": 2, "tokens": 1, "updates": 1, "times": 1, "steps": 1, "batch_size": 2, "control": True},
    "closed_form": {"n": 2},
}


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
    name, layer = next((n, m) for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_k"))
    before, d = layer.weight.detach().clone(), layer.in_features
    edited = Eraser(2 * torch.eye(d, dtype=torch.float64)).copy_of(pipe)
    torch.testing.assert_close(edited.unet.get_submodule(name).weight, 2 * before)
    assert torch.equal(layer.weight, before)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Attack and evaluate on a tiny pipeline with two erased models and a control."""
    folder, pipe, never = tmp_path_factory.mktemp("attempts"), tiny.sd(), tiny.sd(seed=1)
    d = next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_k")).in_features
    erased = {name: Eraser(scale * torch.eye(d, dtype=torch.float64)) for name, scale in (("uce", 0.5), ("rece", 0.1))}
    victims = {"original": pipe, **{name: eraser.copy_of(pipe) for name, eraser in erased.items()}}
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


def test_shown_images_are_read_back_as_they_were_written(drawn, tmp_path):
    results.write_images(tmp_path, drawn["shown"])
    again = results.read_images(tmp_path)
    assert again.keys() == drawn["shown"].keys()
    for key, pair in drawn["shown"].items():
        assert all(np.array_equal(read, written) for read, written in zip(again[key], pair, strict=True))


def test_tables_count_what_was_drawn(drawn):
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
    table, tokenizer = drawn["table"], drawn["victims"]["original"].tokenizer
    n = results.write_prompts(tmp_path / "prompts.jsonl", table, "dog", BUDGETS, tokenizer, 0.005)
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert len(lines) == n == 3 + 3 * 2  # synonyms, and two prompts for each of two erased models and the control
    for line in lines:
        assert tokenizer(line["prompt"]).input_ids == line["token_ids"] and line["prompt"] != line["asked"]
    first = next(line for line in lines if line["found_against"] == "uce")
    assert set(first["shows"]) == {"original", "uce", "rece"} and first["budget"] == BUDGETS["unlearndiff"]


def test_further_sets_are_drawn_as_they_are(tmp_path):
    spec = spec_of(tmp_path)
    assert experiment.budgets(QUICK) == experiment.budgets(QUICK, {"asked": {"own": {}}}) == QUICK["quick"]
    found = experiment.budgets(QUICK, spec)
    assert list(found) == ["plain", "closed_form", "plain_more"]
    assert found["plain_more"] == {"attack": "plain", "asked": spec["asked"]["more"]}
    assert list(experiment.budgets(QUICK, spec | {"attacks": ["plain"]})) == ["plain", "plain_more"]
    prompts = {name: list(experiment.asked(WORLD, spec, QUICK, name, budget).prompt) for name, budget in found.items()}
    assert prompts["plain"] == ["a dog", "", "the dog", "my dog"] and prompts["plain_more"] == ["a hot dog", "x"]
    assert prompts["closed_form"] == prompts["plain"][:3]


def test_images_of_folders_are_those_of_memory_and_drawn_once(tmp_path, pipe, spy):
    spec, victims = spec_of(tmp_path), victims_of(pipe)
    attacked(tmp_path, spec, victims)
    common = (victims, tmp_path, QUICK, WORLD, spec, Bright(), GENERATE)
    table, shown = experiment.draw_attempts(*common, evaluation())
    assert len(spy) == 12 + 3  # four and two texts by two models, three embeddings by one
    spy.clear()
    for _ in range(2):
        again, shown_again = experiment.draw_attempts(*common, evaluation(tmp_path / "images"))
        assert len(spy) == 12 + 3
        pd.testing.assert_frame_equal(again, table)
        assert shown.keys() == shown_again.keys()
        for key, (images, hits) in shown.items():
            np.testing.assert_array_equal(shown_again[key][0], images)
            assert list(shown_again[key][1]) == list(hits)
    names = {path.stem for path in (tmp_path / "images/dog/uce/any-plain").glob("*.png")}
    assert names == {"7", "8", "9", "10"}  # the file's own
    assert table.probability.nunique() > 9 and (table.hit == (table.top1 & (table.probability >= 0.3))).all()
    assert list(table.columns) == experiment.DRAWN
    counts = table.groupby(["method", "attack", "source"]).size().to_dict()
    plain = {(method, f"plain{more}", "any"): n for method in victims for more, n in (("", 4), ("_more", 2))}
    assert counts == plain | {("uce", "closed_form", "uce"): 3}
    assert (
        table[table.attack == "plain_more"].own_prompts.all() and not table[table.attack == "plain"].own_prompts.any()
    )


@pytest.mark.parametrize("folder", [None, "images"])
def test_every_row_is_drawn_with_its_own_guidance_and_size(tmp_path, pipe, spy, folder):
    own = {"evaluation_guidance": [7.0, None, 3.0, 7.0], "sd_image_width": [16, None, 24, 16]}
    own |= {"evaluation_seed": [5, 2**32, 7, 8], "sd_image_height": [16, None, 8, 16]}
    spec = spec_of(tmp_path)
    spec["asked"] = {"own": {"file": write(tmp_path / "own.csv", ["a dog", "", "the dog", "my dog"], **own)}}
    attack, judge, seen = QUICK | {"quick": {"plain": {}, "closed_form": {"lamb": 0.1}}}, Bright(), []

    def answers(images, cases):
        seen.extend(zip(cases.seed, images, strict=True))
        return Bright().answers(images, cases)

    judge.answers, victims = answers, victims_of(pipe)
    attacked(tmp_path, spec, victims, attack)
    images = evaluation(folder and tmp_path / folder)
    table, shown = experiment.draw_attempts(victims, tmp_path, attack, WORLD, spec, judge, GENERATE, images)
    expected = {5: ("a dog", 7.0, 16, 16), 2**32: ("", 4.0, None, None), 7: ("the dog", 3.0, 24, 8)}
    expected |= {8: ("my dog", 7.0, 16, 16)}
    drawn = sorted(((prompt, *other) for prompt, _, *other in spy if prompt is not None), key=itemgetter(0))
    assert drawn == sorted([*expected.values()] * 2, key=itemgetter(0))
    embeds = Attempts.load(tmp_path / "uce-closed_form.safetensors").embeds
    runs = [(pipe, None), (victims["uce"], None), (victims["uce"], embeds)]
    assert len(seen) == 4 * len(runs)
    for run, (model, embedded) in enumerate(runs):
        pictures = dict(seen[4 * run : 4 * run + 4])
        for row, (seed, (prompt, guidance, width, height)) in enumerate(expected.items()):
            asked = {"prompts": [prompt]} if embedded is None else {"embeds": embedded[[row]]}
            settings = GENERATE | {"guidance": guidance, "width": width, "height": height}
            np.testing.assert_array_equal(pictures[seed], generate(model, seeds=[seed], **asked, **settings)[0])
        light = [pictures[seed].mean() / 255 for seed in expected]
        np.testing.assert_allclose(table.probability[4 * run : 4 * run + 4], light)
        assert list(table.seed[4 * run : 4 * run + 4]) == list(expected)
    np.testing.assert_array_equal(shown["original", "plain"][0], np.stack([dict(seen[:4])[5], dict(seen[:4])[2**32]]))


def test_an_empty_prompt_goes_all_the_way(tmp_path, pipe):
    """I2P has one, case 2260."""
    spec, victims = spec_of(tmp_path), victims_of(pipe)
    spec["known"] = {"pairs": str(tmp_path / "pairs.csv")}
    (tmp_path / "pairs.csv").write_text("sensitive prompt,normal prompt\na dog,a\nmy dog,my cat\n")
    attack = QUICK | {"quick": {"plain": {}, "concept_vector": {}, "closed_form": {}}}
    attacked(tmp_path, spec, victims, attack)
    common = (victims, tmp_path, attack, WORLD, spec, Bright(), GENERATE)
    table, _ = experiment.draw_attempts(*common, evaluation(tmp_path / "images"))
    assert (
        table[table.attack == "plain"].groupby("method").prompt.apply(list).map(lambda texts: texts[1]) == ""
    ).all()
    success = statistics.success(table).set_index(["method", "attack"])
    assert (success.n["uce", "plain"], success.prompts["uce", "plain"]) == (4, 4)
    union = statistics.union(table).set_index(["method", "scope"])
    assert union.n["uce", "all"] == 4 and union.attacks.to_dict() == {
        ("original", "words"): 1, ("uce", "words"): 1, ("original", "text"): 1, ("uce", "text"): 1,
        ("original", "all"): 2, ("uce", "all"): 3,
    }  # fmt: skip
    some = table[table.method == "uce"].pivot(index="case", columns="attack", values="hit")
    assert union.successes["uce", "all"] == some.drop(columns="plain_more").any(axis=1).sum()
    renamed = table.assign(attack=table.attack.replace({"plain": "empty"}))
    results.write_prompts(tmp_path / "x.jsonl", renamed, "dog", {"empty": {}, "plain_more": {}}, pipe.tokenizer, 0.0)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines if line["attack"] == "empty"] == ["a dog", "", "the dog", "my dog"]


def test_without_a_judge_nothing_is_drawn_and_tables_have_their_columns(tmp_path, pipe, spy):
    spec = spec_of(tmp_path)
    drawn, shown = experiment.draw_attempts(
        {"original": pipe}, tmp_path, QUICK, WORLD, spec, None, GENERATE, evaluation(tmp_path / "images")
    )
    assert len(drawn) == 0 and list(drawn) == experiment.DRAWN and shown == {} and not spy
    assert statistics.detections(drawn, None) == {}
    tables = {
        "success": statistics.success(drawn),
        "union": statistics.union(drawn),
        "transfer": statistics.transfer(drawn),
    }
    results.write_tables(tmp_path, **tables)
    results.write_images(tmp_path, shown)
    assert results.read_images(tmp_path) == {}
    results.write_settings(tmp_path / "settings.json", None, evaluation(), GENERATE, "sd")
    assert json.loads((tmp_path / "settings.json").read_text())["judge"] is None
    for name, columns in (("success", statistics.SUCCESS), ("union", ["method", "scope"]), ("transfer", ["attack"])):
        written = pd.read_csv(tmp_path / f"{name}.csv")
        assert len(written) == 0 and list(written)[: len(columns)] == columns
    assert results.write_prompts(tmp_path / "p.jsonl", drawn, "dog", {}, pipe.tokenizer, 0.0) == 0


def test_two_concepts_never_share_images_by_mistake(tmp_path, pipe):
    spec, attack = spec_of(tmp_path), QUICK | {"quick": {"plain": {}}}
    for scale, victims in ((1, victims_of(pipe)), (2, victims_of(pipe, ["dog", "cat"]))):
        attacked(tmp_path, spec, victims, attack)
        common = (tmp_path, attack, WORLD, spec, Bright(), GENERATE, evaluation(tmp_path / "images"))
        if scale == 1:
            experiment.draw_attempts(victims, *common)
        else:
            with pytest.raises(ValueError, match="images/dog/uce/any-plain holds another run .weights is"):
                experiment.draw_attempts(victims, *common)


def test_objects_count_whatever_the_capitals(tmp_path, pipe):
    """imagenette.csv has "English springer" and robust_imagenette.csv "english springer"."""
    sets = {}
    for name, label in (("imagenette", "English springer"), ("robust", "english springer")):
        labels = {"class": [label, "tench", label]}
        sets[name] = {"file": write(tmp_path / f"{name}.csv", list("abc"), evaluation_seed=[1, 2, 3], **labels)}
    spec = {"kind": "object", "erase": ["english springer"], "target": " "}
    spec["asked"] = {name: source | {"label": "english springer"} for name, source in sets.items()}
    victims, attack = victims_of(pipe, "english springer"), QUICK | {"quick": {"plain": {}}}
    attacked(tmp_path, spec, victims, attack)
    for number, hits in ((tiny.IMAGENET.index("English springer, English springer spaniel"), 2), (0, 0)):
        judge = Classifier(tiny.resnet(tmp_path / "resnet", always=number))
        table, _ = experiment.draw_attempts(victims, tmp_path, attack, WORLD, spec, judge, GENERATE, evaluation())
        assert set(table.label) == {tiny.IMAGENET[number]} and {"of_asked", "rank"} <= set(table)
        assert (statistics.success(table).successes == hits).all() and len(statistics.success(table)) == 4
