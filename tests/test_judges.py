"""Judges of photographs: NudeNet on a real one, Q16 and classifiers with tiny random weights, and their loader."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from matplotlib.cbook import get_sample_data
from nudenet import NudeDetector, nudenet
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from rece import judges
from rece.judges.classifier import Classifier
from rece.judges.embedded import Judge, Verdict
from rece.judges.nudenet import EXPOSED, FLOOR, NudeNet
from rece.judges.q16 import Q16, convert

FACES = ["FACE_FEMALE", "FACE_MALE"]
# Ten of ImageNet's thousand, as the configs of transformers' models name them, and its two cranes.
IMAGENET = [
    "tench, Tinca tinca",
    "crane",
    "English springer, English springer spaniel",
    "cassette player",
    "chain saw, chainsaw",
    "church, church building",
    "crane",
    "French horn, horn",
    "garbage truck, dustcart",
    "gas pump, gasoline pump, petrol pump, island dispenser",
    "golf ball",
    "parachute, chute",
]


@pytest.fixture(scope="module")
def photo():
    """Grace Hopper in uniform (US Navy, public domain), uint8 (600, 512, 3)."""
    with get_sample_data("grace_hopper.jpg") as file:
        return np.array(Image.open(file).convert("RGB"))


@pytest.fixture(scope="module")
def faces():
    return NudeNet(classes=FACES)


def cases(*labels):
    return pd.DataFrame({"prompt": "a prompt", "label": list(labels)})


def pictures(n, h=40, w=56, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


def success(judge, images):
    found = judge.answers(images, cases(*["x"] * len(images)))
    return list(found.wanted & (found.probability >= judge.threshold))


# NudeNet


def test_nudenet_finds_a_face_and_nothing_on_a_blank_image(faces, photo):
    found = faces.answers(np.stack([photo, np.zeros_like(photo)]), cases("x", "x"))
    assert list(found.columns) == ["label", "probability", "wanted", *FACES, *(f"count_{face}" for face in FACES)]
    assert list(found.label) == ["FACE_FEMALE", "none"] and list(found.wanted) == [True, False]
    assert found.probability[0] == found.FACE_FEMALE[0] > 0.6 and found.probability[1] == 0
    assert list(found.count_FACE_FEMALE) == [1, 0] and not found.count_FACE_MALE.any()


def test_nudenet_takes_rgb_and_agrees_with_the_packages_own_answer_to_a_file(faces, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    box = NudeDetector().detect(str(tmp_path / "photo.png"))[0]
    right, swapped = (faces.answers(image[None], cases("x")) for image in (photo, photo[..., ::-1]))
    assert (right.label[0], right.probability[0]) == (box["class"], box["score"])
    assert abs(swapped.probability[0] - box["score"]) > 0.05
    assert (
        NudeNet(classes=FACES, channels="rgb").answers(photo[None], cases("x")).probability[0]
        == (swapped.probability[0])
    )


def test_nudenet_finds_no_exposed_part_of_a_dressed_person(photo):
    judge = NudeNet()
    assert judge.classes == list(EXPOSED) and len(set(EXPOSED)) == 9 and judge.threshold == 0.6
    assert success(judge, photo[None]) == [False]
    assert judge.answers(photo[None], cases("x")).label[0] == "none"


def test_nudenet_threshold_flips_the_answer_at_the_score(photo):
    score = NudeNet(classes=FACES).answers(photo[None], cases("x")).probability[0]
    for threshold, expected in ((score - 1e-6, True), (score, True), (score + 1e-6, False)):
        judge = NudeNet(threshold, FACES)
        assert success(judge, photo[None]) == [expected]
        assert judge.counts(judge.answers(photo[None], cases("x"))).boxes["FACE_FEMALE"] == expected


def test_nudenet_counts_images_and_boxes(photo):
    judge = NudeNet(0.3, FACES, channels="rgb")
    two = np.concatenate([photo, photo], axis=1)[:, : 2 * photo.shape[1]]
    answers = pd.concat([judge.answers(image[None], cases("x")) for image in (two, photo, np.zeros_like(photo))])
    counts = judge.counts(answers)
    assert list(counts.index) == [*FACES, "any"]
    assert list(counts.loc["FACE_FEMALE"]) == [2, 3, 2 / 3] and list(counts.loc["FACE_MALE"]) == [0, 0, 0]
    assert list(counts.loc["any"]) == [2, 3, 2 / 3]
    overlap = answers.assign(count_FACE_MALE=[1, 0, 1])
    assert list(judge.counts(overlap).loc["any"]) == [3, 5, 1]


def test_nudenet_floor_is_what_the_package_has():
    def boxes(score):
        output = np.zeros((1, 22, 2), "f4")
        output[0, :4, 0], output[0, 5, 0] = (160, 160, 50, 50), score
        return nudenet._postprocess([output], 0, 0, 1, 1, 320, 320, 320, 320)

    assert len(boxes(FLOOR + 1e-3)) == 1 and not boxes(FLOOR - 1e-3)


def test_nudenet_describes_itself(faces):
    found = json.loads(json.dumps(faces.describe()))
    weights = Path(nudenet.__file__).with_name("320n.onnx")
    assert found["sha256"] == judges.sha256(weights) and found["package"] == "nudenet 3.4.2"
    assert (found["threshold"], found["classes"], found["resolution"], found["channels"]) == (0.6, FACES, 320, "bgr")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"threshold": 0.2}, "threshold must be from 0.25.*not 0.2"),
        ({"threshold": 1.5}, "threshold"),
        ({"classes": ["FACE_FEMALE", "EXPOSED_BREAST_F"]}, "classes must be some of .*FACE_FEMALE.*EXPOSED_BREAST_F"),
        ({"classes": []}, "classes"),
        ({"resolution": 300}, "resolution must be a multiple of 32, not 300"),
        ({"channels": "gray"}, "channels"),
    ],
)
def test_nudenet_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        NudeNet(**settings)


def test_judges_refuse_images_of_another_form(faces):
    for images, rows in ((pictures(2), 1), (pictures(0), 0), (pictures(1)[0], 1), (pictures(1) / 255, 1)):
        with pytest.raises(ValueError, match="images"):
            faces.answers(images, cases(*["x"] * rows))


# Q16


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The folder of a tiny random CLIP of width 16."""
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def tiny_clip(folder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = tiny._text_config(32, projection_dim=16)
        vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        vision |= dict(image_size=32, patch_size=8, projection_dim=16, initializer_factor=5.0)
        config = CLIPModel.config_class(text_config=text.to_dict(), vision_config=vision, projection_dim=16)
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def vectors(width=16):
    return torch.randn(2, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def prompts(tmp_path):
    save_file({"prompts": vectors()}, tmp_path / "prompts.safetensors")
    return tmp_path / "prompts.safetensors"


@torch.no_grad()
def test_q16_is_the_softmax_of_a_hundred_cosines(clip, prompts):
    images = pictures(5)
    found = Q16(prompts, clip, batch_size=2).answers(images, cases(*"abcde"))
    model = CLIPModel.from_pretrained(clip).eval()
    processor = CLIPImageProcessor.from_pretrained(clip)
    for i, image in enumerate(images):
        pixels = processor(images=Image.fromarray(image), return_tensors="pt").pixel_values
        x = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
        cosines = [(x @ v / x.norm() / v.norm()).item() for v in vectors()]
        odds = np.exp(100 * (cosines[1] - cosines[0]))
        np.testing.assert_allclose(found.inappropriate[i], odds / (1 + odds), atol=1e-4)
        assert found.label[i] == ("inappropriate" if cosines[1] > cosines[0] else "appropriate")
    assert list(found.columns) == ["label", "probability", "wanted", "inappropriate"]
    assert (found.wanted == (found.label == "inappropriate")).all()
    np.testing.assert_allclose(found.probability, np.where(found.wanted, found.inappropriate, 1 - found.inappropriate))


def test_q16_answers_turn_with_the_prompts(clip, tmp_path):
    for name, both in (("one", vectors()), ("other", vectors().flip(0))):
        save_file({"prompts": both}, tmp_path / f"{name}.safetensors")
    images = pictures(4)
    one, other = (Q16(tmp_path / f"{n}.safetensors", clip).answers(images, cases(*"abcd")) for n in ("one", "other"))
    np.testing.assert_allclose(one.inappropriate, 1 - other.inappropriate, atol=1e-5)
    assert (one.wanted != other.wanted).all()


def test_q16_describes_itself(clip, prompts):
    found = json.loads(json.dumps(Q16(prompts, clip, threshold=0.9).describe()))
    assert found["sha256"] == judges.sha256(clip / "model.safetensors") and found["threshold"] == 0.9
    assert found["prompts_sha256"] == judges.sha256(prompts) and found["revision"] is None
    assert "/" not in found["model"]


def test_q16_bad_settings(clip, prompts, tmp_path):
    with pytest.raises(ValueError, match="threshold must be from 0.5"):
        Q16(prompts, clip, threshold=0.4)
    with pytest.raises(FileNotFoundError, match="prompts: there is no file .*convert"):
        Q16(tmp_path / "none.safetensors", clip)
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="prompts: .*no safetensors file"):
        Q16(tmp_path / "text", clip)
    save_file({"prompts": vectors(768)}, tmp_path / "wide")
    with pytest.raises(ValueError, match="prompts: .*width 768.*width 16"):
        Q16(tmp_path / "wide", clip)


@pytest.mark.parametrize("protocol", range(6))
def test_convert_reads_pickled_arrays(tmp_path, protocol):
    source, out = tmp_path / "prompts.p", tmp_path / "new" / "prompts.safetensors"
    array = vectors(768).numpy().astype("f2")
    for data in (pickle.dumps(array, protocol), pickle.dumps(array, protocol).replace(b"numpy._core", b"numpy.core")):
        if protocol > 2 and b"numpy.core" in data and b"numpy._core" not in data:
            continue  # from protocol 4 on the name's length would have to change with it
        source.write_bytes(data)
        convert(source, out)
        assert torch.equal(load_file(out)["prompts"], torch.from_numpy(array).float())


def test_convert_reads_torch_files(tmp_path):
    for found in (vectors(), torch.nn.Parameter(vectors()), vectors().half()):
        torch.save(found, tmp_path / "prompts.pt")
        convert(tmp_path / "prompts.pt", tmp_path / "out.safetensors")
        assert torch.equal(load_file(tmp_path / "out.safetensors")["prompts"], found.detach().float())


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_convert_executes_nothing(tmp_path):
    source, out, trace = tmp_path / "prompts.p", tmp_path / "out.safetensors", tmp_path / "trace"
    bad = [Malicious(trace), np.array([[Malicious(trace)] * 16] * 2, dtype=object), {"a": Malicious(trace)}]
    for found in bad:
        for dump in (lambda x: source.write_bytes(pickle.dumps(x)), lambda x: torch.save(x, source)):
            dump(found)
            with pytest.raises(ValueError, match="prompts: .*not a pickled array and nothing else"):
                convert(source, out)
            assert not trace.exists() and not out.exists()
    function, arguments = Malicious(trace).__reduce__()
    function(*arguments)  # which is what unpickling would have done
    assert trace.exists()


def test_convert_refuses_other_arrays(tmp_path):
    source, out = tmp_path / "prompts.p", tmp_path / "out.safetensors"
    for found in (np.zeros((3, 16), "f4"), np.zeros(16, "f4"), np.zeros((2, 16), int), np.full((2, 16), np.nan), "no"):
        source.write_bytes(pickle.dumps(found))
        with pytest.raises(ValueError, match="^prompts: "):
            convert(source, out)
    with pytest.raises(FileNotFoundError, match="prompts"):
        convert(tmp_path / "none.p", out)
    assert not out.exists()


# Classifier


def resnet(folder, labels=IMAGENET, always=None):
    """A tiny random ResNet; always: the class it is then sure of, whatever the image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = dict(enumerate(labels)) if labels else {}
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic")
        config.id2label, config.label2id = names, {name: i for i, name in names.items()}
        if not labels:
            config.num_labels = len(IMAGENET)
        model = ResNetForImageClassification(config)
        model.classifier[1].weight.data *= 20
        if always is not None:
            model.classifier[1].weight.data.zero_()
            model.classifier[1].bias.data = 9.0 * torch.arange(len(labels)).eq(always)
    model.save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875).save_pretrained(folder)
    return folder


@torch.no_grad()
def literal(model, processor, images):
    rows = [model(**processor(images=Image.fromarray(image), return_tensors="pt")).logits[0] for image in images]
    return torch.stack(rows).softmax(-1).numpy()


@pytest.mark.parametrize("top", [1, 3])
def test_classifier_is_the_models_softmax(tmp_path, top):
    images, asked = pictures(6), ["tench", "golf ball", "CHURCH", "parachute", "French Horn", "crane"]
    found = Classifier(resnet(tmp_path), top=top, batch_size=4).answers(images, cases(*asked))
    model = ResNetForImageClassification.from_pretrained(tmp_path).eval()
    chance = literal(model, ConvNextImageProcessor.from_pretrained(tmp_path), images)
    assert len({row.argmax() for row in chance}) > 1
    np.testing.assert_allclose(found.probability, chance.max(1), rtol=1e-4)
    for i, numbers in enumerate(([0], [10], [5], [11], [7], [1, 6])):
        assert found.label[i] == IMAGENET[chance[i].argmax()]
        np.testing.assert_allclose(found.of_asked[i], chance[i, numbers].sum(), rtol=1e-4)
        better = (chance[i] > chance[i, numbers].max()).sum()
        assert found["rank"][i] == 1 + better and found.wanted[i] == (better < top)


@pytest.mark.parametrize("asked, number", [("English springer", 2), ("french horn", 7), ("Horn", 7), ("chainsaw", 4)])
def test_classifier_knows_synonyms_whatever_the_capitals(tmp_path, asked, number):
    judge = Classifier(resnet(tmp_path, always=number))
    found = judge.answers(pictures(2), cases(asked, "tench"))
    assert list(found.wanted) == [True, False] and list(found.label) == [IMAGENET[number]] * 2
    assert judge.classes(IMAGENET[number].upper()) == [number]
    assert found.probability[0] > 0.9 and judge.threshold == 0


def test_classifier_both_cranes_are_cranes(tmp_path):
    for number in (1, 6):
        found = Classifier(resnet(tmp_path, always=number)).answers(pictures(1), cases("crane"))
        assert found.wanted[0] and found["rank"][0] == 1


def test_classifier_knows_every_class_of_the_prompt_files(tmp_path):
    files = [Path(f"../shared/prompts/{name}.csv") for name in ("imagenette", "validation_imagenet_prompts")]
    if not all(file.exists() for file in files):
        pytest.skip("the prompt files are not here")
    judge = Classifier(resnet(tmp_path))
    for file in files:
        names = pd.read_csv(file)["class"].unique()
        assert len({tuple(judge.classes(name)) for name in names}) == len(names) == 10


def test_classifier_refuses_labels_that_are_no_class_before_judging(tmp_path, monkeypatch):
    judge = Classifier(resnet(tmp_path))
    monkeypatch.setattr(judge, "network", None)
    with pytest.raises(ValueError, match="label 'golf bal' is no class of .*nearest are golf ball"):
        judge.answers(pictures(2), cases("tench", "golf bal"))
    with pytest.raises(ValueError, match="label 'springer'"):  # a word of a synonym is none
        judge.answers(pictures(1), cases("springer"))


def test_classifier_of_styles_with_labels_of_ones_own(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        config.image_size, config.patch_size, config.num_labels = 32, 8, 3
        ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    images, styles = pictures(3), ["Vincent van Gogh", "Claude Monet", "Pablo Picasso"]
    found = Classifier(tmp_path, labels=styles).answers(images, cases(*styles))
    model = ViTForImageClassification.from_pretrained(tmp_path).eval()
    chance = literal(model, ViTImageProcessor.from_pretrained(tmp_path), images)
    np.testing.assert_allclose(found.of_asked, np.diag(chance), rtol=1e-4)
    assert list(found.label) == [styles[i] for i in chance.argmax(1)]
    with pytest.raises(ValueError, match="no class"):
        Classifier(tmp_path).answers(images, cases(*styles))
    for settings in ({"labels": styles[:2]}, {"labels": "abc"}, {"top": 0}, {"top": 4}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(settings))}"):
            Classifier(tmp_path, **settings)


def test_classifier_describes_itself(tmp_path):
    folder = resnet(tmp_path / "resnet-50")
    found = json.loads(json.dumps(Classifier(folder, top=5).describe()))
    assert found["sha256"] == judges.sha256(folder / "model.safetensors") and found["model"] == "resnet-50"
    assert (found["top"], found["classes"], found["threshold"]) == (5, 12, 0) and "torchvision" in found["note"]


# Models of the hub


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_model_is_one_commit(tmp_path, monkeypatch):
    cached = tmp_path / "models--microsoft--resnet-50" / "snapshots" / COMMIT
    resnet(cached)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    judge = Classifier("microsoft/resnet-50", COMMIT)
    found = judge.describe()
    assert (found["model"], found["revision"]) == ("microsoft/resnet-50", COMMIT) and "torchvision" in found["note"]
    assert found["sha256"] == judges.sha256(cached / "model.safetensors")
    for revision in (None, "main", COMMIT[:7]):
        with pytest.raises(ValueError, match="revision of microsoft/resnet-50 must be a commit"):
            Classifier("microsoft/resnet-50", revision)
    with pytest.raises(FileNotFoundError, match="model: microsoft/resnet-50 at f+ is neither cached"):
        Classifier("microsoft/resnet-50", "f" * 40)


def test_a_model_folder_needs_safetensors_and_no_revision(tmp_path):
    resnet(tmp_path)
    with pytest.raises(ValueError, match="revision must be left out"):
        Classifier(tmp_path, COMMIT)
    with pytest.raises(FileNotFoundError, match="model: there is no folder"):
        Classifier(tmp_path / "none", COMMIT)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        Classifier(tmp_path)


# The loader, and the embedded judge


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working folder inside a checkout, with an embedded judge and a classifier in it."""
    (tmp_path / "params.yaml").touch()
    (tmp_path / "notebooks").mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Judge(["dog", "cat"], ["red", "blue"]).save(tmp_path / "models" / "judge")
    resnet(tmp_path / "models" / "resnet")
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_load(checkout, clip):
    assert judges.load(None) is None
    assert judges.load("models/judge", checkout).objects == ["dog", "cat"]
    assert judges.load({"name": "nudenet", "threshold": 0.45}).threshold == 0.45
    classifier = judges.load({"name": "classifier", "model": "models/resnet", "top": 2}, checkout)
    assert classifier.top == 2 and classifier.describe()["model"] == "resnet"
    save_file({"prompts": vectors()}, checkout / "models" / "q16.safetensors")
    q16 = judges.load({"name": "q16", "prompts": "models/q16.safetensors", "model": str(clip)}, checkout)
    assert q16.describe()["prompts"] == "q16.safetensors"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "nudnet"}, "name must be one of classifier, nudenet, q16.*'nudnet'"),
        ({"threshold": 0.5}, "name must be one of classifier, nudenet, q16"),
        ({}, "name must be one of"),
        (3, "name must be one of .* not 3"),
        (
            {"name": "nudenet", "treshold": 0.5},
            "nudenet has no setting 'treshold'; its settings are threshold, classes",
        ),
        ({"name": "q16", "model": "a/b"}, "q16 needs the setting 'prompts'"),
        ({"name": "classifier", "model": "a/b"}, "revision of a/b"),
    ],
)
def test_load_bad_settings(checkout, settings, message):
    with pytest.raises(ValueError, match=message):
        judges.load(settings, checkout)
    with pytest.raises(FileNotFoundError, match="judge"):
        judges.load("models/none", checkout)


def test_the_embedded_judge_answers_each_case_with_the_head_it_asks(monkeypatch):
    judge = Judge(["dog", "knife", "bomb"], ["noto", "twemoji"])
    objects = np.array([[0.9, 0.1, 0.0], [0.3, 0.3, 0.4], [0.0, 1.0, 0.0], [0.2, 0.6, 0.2]], "f4")
    styles = np.array([[1.0, 0.0], [0.2, 0.8], [0.1, 0.9], [0.7, 0.3]], "f4")
    monkeypatch.setattr(judge, "classify", lambda images: Verdict(objects, styles))
    asked = pd.DataFrame(
        {"wanted": [["dog"], ["knife", "bomb"], ["noto"], ["noto"]], "judged": ["object", "object", "style", "style"]},
        index=[7, 3, 5, 1],
    )
    found = judge.answers(pictures(4), asked)
    assert list(found.columns) == ["label", "probability", "wanted"] and list(found.index) == [0, 1, 2, 3]
    assert list(found.label) == ["dog", "bomb", "twemoji", "noto"] and list(found.wanted) == [True, True, False, True]
    np.testing.assert_array_equal(found.probability, np.array([0.9, 0.4, 0.9, 0.7], "f4"))


def test_the_embedded_judge_answers_about_images_and_describes_itself(checkout):
    judge, images = judges.load("models/judge", checkout), pictures(4, 32, 32)
    asked = pd.DataFrame({"wanted": [["dog"], ["red"]] * 2, "judged": ["object", "style"] * 2})
    found, (objects, styles) = judge.answers(images, asked), judge.labels(images)
    assert list(found.label) == [objects[0], styles[1], objects[2], styles[3]] and judge.threshold == 0
    assert list(found.wanted) == [objects[0] == "dog", styles[1] == "red", objects[2] == "dog", styles[3] == "red"]
    described = json.loads(json.dumps(judge.describe()))
    assert described["sha256"] == judges.sha256(checkout / "models" / "judge" / "model.safetensors")
    assert (described["objects"], described["styles"]) == (["dog", "cat"], ["red", "blue"])
