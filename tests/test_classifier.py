"""Classifiers with tiny random weights, of objects and of styles."""

import json

import numpy as np
import pytest
import tiny
import torch
from pictures import cases, pictures
from PIL import Image
from transformers import (
    ConvNextImageProcessor,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from rece import files
from rece.judges.classifier import Classifier


@torch.no_grad()
def literal(model, processor, images):
    rows = [model(**processor(images=Image.fromarray(image), return_tensors="pt")).logits[0] for image in images]
    return torch.stack(rows).softmax(-1).numpy()


@pytest.mark.parametrize("top", [1, 3])
def test_classifier_is_the_models_softmax(tmp_path, top):
    images, asked = pictures(6), ["tench", "golf ball", "CHURCH", "parachute", "French Horn", "crane"]
    found = Classifier(tiny.resnet(tmp_path), top=top, batch_size=4).answers(images, cases(*asked))
    model = ResNetForImageClassification.from_pretrained(tmp_path).eval()
    chance = literal(model, ConvNextImageProcessor.from_pretrained(tmp_path), images)
    assert len({row.argmax() for row in chance}) > 1
    np.testing.assert_allclose(found.probability, chance.max(1), rtol=1e-4)
    for i, numbers in enumerate(([0], [10], [5], [11], [7], [1, 6])):
        assert found.label[i] == tiny.IMAGENET[chance[i].argmax()]
        np.testing.assert_allclose(found.of_asked[i], chance[i, numbers].sum(), rtol=1e-4)
        better = (chance[i] > chance[i, numbers].max()).sum()
        assert found["rank"][i] == 1 + better and found.wanted[i] == (better < top)


@pytest.mark.parametrize("asked, number", [("English springer", 2), ("french horn", 7), ("Horn", 7), ("chainsaw", 4)])
def test_classifier_knows_synonyms_whatever_the_capitals(tmp_path, asked, number):
    judge = Classifier(tiny.resnet(tmp_path, always=number))
    found = judge.answers(pictures(2), cases(asked, "tench"))
    assert list(found.wanted) == [True, False] and list(found.label) == [tiny.IMAGENET[number]] * 2
    assert judge.classes(tiny.IMAGENET[number].upper()) == [number]
    assert found.probability[0] > 0.9 and judge.threshold == 0


def test_classifier_both_cranes_are_cranes(tmp_path):
    for number in (1, 6):
        found = Classifier(tiny.resnet(tmp_path, always=number)).answers(pictures(1), cases("crane"))
        assert found.wanted[0] and found["rank"][0] == 1


def test_classifier_knows_every_class_of_the_published_prompts(tmp_path):
    """Imagenette's ten, as imagenette.csv spells them; validation_imagenet_prompts.csv has small letters."""
    names = ["tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck"]
    names += ["gas pump", "golf ball", "parachute"]
    judge = Classifier(tiny.resnet(tmp_path))
    found = [tuple(judge.classes(name)) for name in names]
    assert len(set(found)) == 10 and found == [tuple(judge.classes(name.lower())) for name in names]


def test_classifier_refuses_labels_that_are_no_class_before_judging(tmp_path, monkeypatch):
    judge = Classifier(tiny.resnet(tmp_path))
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
    folder = tiny.resnet(tmp_path / "resnet-50")
    found = json.loads(json.dumps(Classifier(folder, top=5).describe()))
    assert found["sha256"] == files.sha256(folder / "model.safetensors") and found["model"] == "resnet-50"
    assert (found["top"], found["classes"], found["threshold"]) == (5, 12, 0) and "torchvision" in found["note"]
