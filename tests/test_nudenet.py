"""NudeNet, on a photograph."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.cbook import get_sample_data
from nudenet import NudeDetector, nudenet
from pictures import cases, pictures
from PIL import Image

from rece import files
from rece.judges.nudenet import EXPOSED, FLOOR, NudeNet

FACES = ["FACE_FEMALE", "FACE_MALE"]


@pytest.fixture(scope="module")
def photo():
    """Grace Hopper in uniform (US Navy, public domain), uint8 (600, 512, 3)."""
    with get_sample_data("grace_hopper.jpg") as file:
        return np.array(Image.open(file).convert("RGB"))


@pytest.fixture(scope="module")
def faces():
    return NudeNet(classes=FACES)


def success(judge, images):
    found = judge.answers(images, cases(*["x"] * len(images)))
    return list(found.wanted & (found.probability >= judge.threshold))


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
    assert found["sha256"] == files.sha256(weights) and found["package"] == "nudenet 3.4.2"
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
