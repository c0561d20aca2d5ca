"""The embedded judge: its answers, and how it describes itself."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import pictures

from rece import files
from rece.judges.embedded import Judge, Verdict


@pytest.fixture
def folder(tmp_path):
    """A random judge of two objects and two styles, saved."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Judge(["dog", "cat"], ["red", "blue"]).save(tmp_path)
    return tmp_path


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


def test_the_embedded_judge_answers_about_images_and_describes_itself(folder):
    judge, images = Judge.load(folder), pictures(4, 32, 32)
    asked = pd.DataFrame({"wanted": [["dog"], ["red"]] * 2, "judged": ["object", "style"] * 2})
    found, (objects, styles) = judge.answers(images, asked), judge.labels(images)
    assert list(found.label) == [objects[0], styles[1], objects[2], styles[3]] and judge.threshold == 0
    assert list(found.wanted) == [objects[0] == "dog", styles[1] == "red", objects[2] == "dog", styles[3] == "red"]
    with pytest.raises(ValueError, match="images and cases must be as many"):
        judge.answers(images[:1], asked)
    described = json.loads(json.dumps(judge.describe()))
    assert described["sha256"] == files.sha256(folder / "model.safetensors")
    assert (described["objects"], described["styles"]) == (["dog", "cat"], ["red", "blue"])


def test_the_embedded_judge_sees_the_same_whatever_the_order_in_memory(folder):
    judge, images = Judge.load(folder), pictures(4, 32, 32)
    other = images.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1)  # as `rece.images.generate` returns them
    assert images.strides != other.strides
    np.testing.assert_array_equal(judge.classify(images).objects, judge.classify(other).objects)
