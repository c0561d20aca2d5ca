"""What should stay as it is, scored: accuracy, CLIP score, LPIPS and FID of the kept prompts."""

import cv2
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image
from study import GENERATE, QUICK, SIZES, WORLD, Bright, attacked, evaluation, kept, spec_of, victims_of
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

import rece
from rece.__main__ import main
from rece.images import generate
from rece.judges.classifier import Classifier
from rece.study import config, experiment, plan, preservation, statistics

LPIPS = {"net": "alex", "size": 64, "interpolation": "bilinear"}


def images_of(pipe, source):
    table = plan.from_file(source)
    return generate(pipe, list(table.prompt), list(table.seed), **GENERATE)


def test_accuracy_is_of_each_rows_own_label(tmp_path, pipe):
    labels = ["English springer", "tench", "French horn", "golf ball"]
    for folder in (None, tmp_path / "images"):
        spec = {"erase": ["english springer"]}
        source = kept(tmp_path, "four", list("abcd"), ["accuracy"], **{"class": labels}) | {
            "without": "english springer"
        }
        spec["kept"] = {"others": source}
        for number, share in ((0, 1 / 3), (2, 0), (7, 1 / 3)):
            judge = Classifier(tiny.resnet(tmp_path / "resnet", always=number))
            table = preservation.kept_sets({"original": pipe}, spec, judge, GENERATE, evaluation(folder, accuracy={}))
            (row,) = table.to_dict("records")
            assert (row["value"], row["n"], row["score"], row["set"]) == (share, 3, "accuracy", "others")
            assert (row["low"], row["high"]) == statistics.wilson(round(3 * share), 3)


@torch.no_grad()
def test_clip_scores_are_means_with_normal_intervals(tmp_path, pipe):
    clip, victims = tiny.clip(tmp_path / "clip"), victims_of(pipe)
    source = kept(tmp_path, "coco", ["a dog", "the moon", "a red car by the sea", "x", "a man"], ["clip"])
    table = preservation.kept_sets(
        victims, {"erase": ["dog"], "kept": {"coco": source}}, None, GENERATE, evaluation(clip={"model": str(clip)})
    )
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPImageProcessor.from_pretrained(clip)
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    for row in table.itertuples():
        cosines = []
        for image, prompt in zip(images_of(victims[row.method], source), plan.from_file(source).prompt, strict=True):
            ids = tokenizer([prompt], truncation=True, max_length=24, return_tensors="pt").input_ids
            pixels = processor(images=Image.fromarray(image), return_tensors="pt").pixel_values
            cosines.append(
                (model(input_ids=ids, pixel_values=pixels).logits_per_image / model.logit_scale.exp()).item()
            )
        literal = np.maximum(0, 100 * np.array(cosines))
        half = 1.96 * np.sqrt(((literal - literal.mean()) ** 2).sum() / 4 / 5)
        np.testing.assert_allclose(
            [row.value, row.low, row.high], literal.mean() + np.array([0, -half, half]), atol=1e-3
        )
    assert list(table.method) == ["original", "uce"] and table.value.nunique() == 2 and (table.n == 5).all()
    assert list(table) == ["set", "method", "score", "value", "low", "high", "n"]


def test_lpips_is_from_the_originals_images(tmp_path, pipe, squares):
    source, victims = kept(tmp_path, "art", ["a dog", "a cat", "a big red dog"], ["lpips"]), victims_of(pipe)
    common = (victims, {"erase": ["dog"], "kept": {"own": source}}, None, GENERATE)
    one, two = (
        preservation.kept_sets(*common, evaluation(folder, lpips=LPIPS)) for folder in (None, tmp_path / "images")
    )
    pd.testing.assert_frame_equal(one, two)
    made, before = (
        np.stack([cv2.resize(image, (64, 64), interpolation=cv2.INTER_LINEAR) for image in images_of(each, source)])
        for each in (victims["uce"], pipe)
    )
    literal = np.square(made / 127.5 - before / 127.5).mean((1, 2, 3))
    assert list(one.method) == ["original", "uce"] and one.value[0] == 0 < literal.min()
    np.testing.assert_allclose(one.value[1], literal.mean(), rtol=1e-4)


@pytest.fixture
def photographs(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in (3, 42, 356, 203564):
        colours = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / f"photos/COCO_val2014_{number:012}.jpg")
    return tmp_path / "photos"


def test_fid_is_from_the_photographs_of_the_same_ids(tmp_path, pipe, photographs, monkeypatch):
    def toy(feature, antialias, **settings):
        assert feature == 2048 and antialias
        return FrechetInceptionDistance(feature=tiny.Means(), **settings)

    monkeypatch.setattr("rece.judges.scores.FrechetInceptionDistance", toy)
    source = kept(tmp_path, "coco", ["a", "b", "c"], ["fid"], coco_id=[203564, 3, 42])
    spec = {"erase": ["dog"], "kept": {"coco": source}}
    settings = {"reference": str(photographs), "size": 24, "resize": "bicubic"}
    table = preservation.kept_sets({"original": pipe}, spec, None, GENERATE, evaluation(fid=settings))
    assert table[["low", "high"]].isna().all(axis=None) and list(table.n) == [3]
    real, made = [], []
    for number in (3, 42, 203564):
        with Image.open(photographs / f"COCO_val2014_{number:012}.jpg") as file:
            real.append(np.asarray(file.convert("RGB").resize((24, 24), Image.Resampling.BICUBIC)).mean((0, 1)))
    for image in images_of(pipe, source):
        made.append(np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC)).mean((0, 1)))
    real, made = np.array(real), np.array(made)
    mixed = np.linalg.eigvals(np.cov(made.T) @ np.cov(real.T))
    literal = np.square(made.mean(0) - real.mean(0)).sum() + np.trace(np.cov(made.T)) + np.trace(np.cov(real.T))
    literal -= 2 * np.sqrt(mixed.astype(complex)).real.sum()
    np.testing.assert_allclose(table.value, literal, rtol=1e-3)


def test_each_set_is_drawn_once_and_the_photographs_are_read_once(tmp_path, pipe, photographs, spy, grey, monkeypatch):
    log = []
    monkeypatch.setattr(
        "rece.judges.scores.FrechetInceptionDistance",
        lambda feature, antialias, **settings: FrechetInceptionDistance(feature=tiny.Means(log), **settings),
    )
    source = kept(tmp_path, "coco", ["a", "b", "c"], ["accuracy", "clip", "fid"], coco_id=[203564, 3, 42])
    settings = evaluation(accuracy={}, clip={}, fid={"reference": str(photographs), "size": 24})
    spec = {"erase": ["dog"], "kept": {"coco": source}}
    table = preservation.kept_sets(victims_of(pipe), spec, Bright(), GENERATE, settings)
    assert len(spy) == 2 * 3 == len(table)
    assert [shape[0] for shape in log] == [3] * 3  # the photographs, then the images of each method


def test_without_photographs_fid_is_left_out_and_the_rest_stays(tmp_path, pipe, grey):
    source = kept(tmp_path, "coco", ["a", "b"], ["clip", "fid"], coco_id=[1, 2])
    spec = {"erase": ["dog"], "kept": {"coco": source}}
    for settings in ({"reference": None, "size": 299}, {}):
        table = preservation.kept_sets({"original": pipe}, spec, None, GENERATE, evaluation(clip={}, fid=settings))
        assert list(table.score) == ["clip"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s, t: s["scores"].pop("clip"), "kept.coco: no settings for 'clip' in evaluate.scores"),
        (lambda s, t: s.update(scores=None), "kept.first: no settings for 'accuracy'"),
        (
            lambda s, t: (t / "photos/COCO_val2014_000000000042.jpg").unlink(),
            "lacks the images of 1 ids, the first 42",
        ),
        (lambda s, t: (t / "photos/000000000003.png").write_bytes(b""), "more than one image of id 3: "),
        (lambda s, t: s["scores"]["fid"].update(reference="nowhere"), "folder: .*nowhere is not a folder"),
        (lambda s, t: kept(t, "coco", ["a", "b", "c"], []), "kept.coco: fid needs a column coco_id"),
        (lambda s, t: (t / "coco.csv").unlink(), "coco.csv is missing"),
        (lambda s, t: s.update(judge=None), "kept.coco: accuracy needs a judge"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_drawn(tmp_path, pipe, photographs, spy, change, message):
    settings = evaluation(clip={}, fid={"reference": str(photographs)}, accuracy={}) | {"judge": Bright()}
    first = kept(tmp_path, "first", ["a"], ["accuracy"])
    source = kept(tmp_path, "coco", ["a", "b", "c"], ["clip", "fid", "accuracy"], coco_id=[3, 42, 203564])
    change(settings, tmp_path)
    judge = settings.pop("judge")
    sets = {"coco": source} if judge is None else {"first": first, "coco": source}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        preservation.kept_sets({"original": pipe}, {"erase": ["dog"], "kept": sets}, judge, GENERATE, settings)
    assert "\n" not in str(error.value) and not spy


def test_the_originals_photographs_serve_all_concepts(tmp_path, pipe, spy, grey):
    source = kept(tmp_path, "coco", ["a", "b"], ["clip"], coco_id=[1, 2])
    values = []
    for concept in ("dog", "cat"):
        victims, spec = victims_of(pipe, concept), {"erase": [concept], "kept": {"coco": source}}
        table = preservation.kept_sets(victims, spec, None, GENERATE, evaluation(tmp_path / "images", clip={}))
        values.append(table.set_index("method").value)
    assert len(spy) == 2 + 2 * 2  # the original's once, each eraser's
    assert values[0].original == values[1].original and values[0].uce != values[1].uce
    folders = [path.parent.relative_to(tmp_path / "images").as_posix() for path in tmp_path.glob("images/**/run.json")]
    assert sorted(folders) == ["cat/uce/kept-coco", "dog/uce/kept-coco", "original/coco"]


def test_the_command_fills_the_folders_that_the_evaluation_finds(tmp_path, spy, grey):
    tiny.sd().save_pretrained(tmp_path / "sd")
    model = {"model": str(tmp_path / "sd"), "scheduler": "LMSDiscreteScheduler", "device": "cpu"}
    rece.erase(config.load(model), "dog", rounds=1, progress=False).save(tmp_path / "erasers/rece.safetensors")
    spec = spec_of(tmp_path, evaluation_guidance=7.0, **SIZES)
    spec |= {"asked": {"own": spec["asked"]["more"]}}
    spec["kept"] = {"coco": kept(tmp_path, "coco", ["a", "b", "c"], ["clip"], coco_id=[1, 2, 3])}
    files = {"any-plain": spec["asked"]["own"]["file"], "kept-coco": spec["kept"]["coco"]["file"]}
    for what, prompts in files.items():
        command = ["draw", model["model"], prompts, "--scheduler", model["scheduler"], "--device", "cpu", "--quiet"]
        command += ["--eraser", tmp_path / "erasers/rece.safetensors", "-o", tmp_path / f"images/dog/rece/{what}"]
        settings = ["--steps", GENERATE["steps"], "--guidance", GENERATE["guidance"], "--batch-size", 2]
        assert main([str(word) for word in [*command, *settings]]) in (None, 0)
    assert len(spy) == 5
    victims, attack = experiment.victims(config.load(model), tmp_path / "erasers"), QUICK | {"quick": {"plain": {}}}
    attacked(tmp_path, spec, victims, attack)
    scores = evaluation(tmp_path / "images", clip={})
    experiment.draw_attempts(victims, tmp_path, attack, WORLD, spec, Bright(), GENERATE, scores)
    table = preservation.kept_sets(victims, spec, None, GENERATE, scores)
    assert len(spy) == 5 + 5 and list(table.method) == ["original", "rece"]  # the original's alone were missing
