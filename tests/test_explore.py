"""The explorable: what it shows of every method under every attack, and its view without a kernel or a browser."""

import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import tiny
import torch

import rece
from rece.course import Lab, explore
from rece.course.explore import ATTACKS, METHODS, Explorer, State, picture, show
from rece.emoji import world
from rece.judges.embedded import Judge
from rece.study import config

SOME = State(method="RECE", rounds=1, log_lamb=1.0)


@pytest.fixture(scope="module")
def lab():
    """A tiny random model, with the judge and the world."""
    return Lab(tiny.sd(), Judge.load(config.root() / "data/judge"), world.load())


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(explore, "STEPS", 2)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_under_every_attack(lab, method, attack):
    state = replace(SOME, method=method, attack=attack)
    result = show(lab, state)
    if attack == "plain":
        before = picture(result)
        for drawn in ("_shown", "_drawn", "_edit"):
            explore._KNOWN[lab.pipe].pop(drawn)
        assert picture(show(lab, state)) == before
        image = PIL.Image.open(BytesIO(before))
        assert image.format == "PNG" and image.width > 800
    assert result.state == state and result.edited.n == 5 and 0 <= result.certified <= result.plain + 1e-6
    assert result.certified >= result.any_embedding - 1e-6
    assert (result.sizes.max() < 1e-9) == (method == "original")
    assert eval(repr(state)) == state


@pytest.mark.parametrize("method", METHODS)
def test_the_line_of_python_gives_the_shown_eraser(lab, method):
    result = show(lab, replace(SOME, method=method))
    eraser = eval(result.code, {"rece": rece, "lab": lab})
    M = torch.eye(lab.pipe.unet.config.cross_attention_dim) if eraser is None else eraser.map
    assert np.allclose(torch.linalg.svdvals(M - torch.eye(len(M))), result.sizes, atol=1e-9)
    word = lab.world.words["church"][0]
    words = [lab.world.words[name][0] for name in lab.world.objects]
    row = rece.certify(lab.pipe, eraser, word, others=words).words.iloc[0]
    found = [result.certified, result.any_embedding, result.plain, result.other]
    wanted = [row.distance, row.embedding, row.edited, row.other]
    assert np.allclose(np.array(wanted) / row.target, found, atol=1e-6)
    assert row.nearest == lab.world.words[result.nearest][0]
    assert list(result.neighbours) == lab.neighbours("church", 2)


def test_the_pictures_are_those_of_the_lab(lab, monkeypatch):
    monkeypatch.setattr(config, "params", lambda: {"generate": explore._settings(lab)})
    result = show(lab, SOME)
    with eval(result.code, {"rece": rece, "lab": lab}).on(lab.pipe):
        images = lab.draw(lab.prompts("church", 5), seed=SOME.seed)
    assert np.abs(images.astype(int) - result.edited.images).mean() < 1  # another batch rounds otherwise
    assert not np.array_equal(images, result.original.images)


def test_an_attack_by_words_asks_the_original_with_the_same_words(lab):
    plain, words, embeds = (show(lab, replace(SOME, attack=attack)) for attack in ("plain", "synonym", "c′"))
    assert np.array_equal(plain.original.images, embeds.original.images)
    assert not np.array_equal(plain.original.images, words.original.images)


def test_numbers_that_a_method_does_not_read_change_nothing(lab, monkeypatch):
    result = show(lab, replace(SOME, method="UCE"))
    monkeypatch.setattr(explore, "generate", lambda *_, **__: pytest.fail("drawn again"))
    state = replace(SOME, method="UCE", rounds=7)
    assert show(lab, state) == replace(result, state=state)


def test_few_results_are_kept(lab, monkeypatch):
    monkeypatch.setattr(explore, "KEPT", 2)
    explore._KNOWN.clear()
    for seed in range(4):
        show(lab, replace(SOME, method="original", seed=seed))
    assert all(len(kept) <= 2 for kept in explore._KNOWN[lab.pipe].values())


@pytest.mark.parametrize(
    "wrong, why",
    [
        ({"method": "magic"}, "method must be one of original, UCE"),
        ({"attack": "magic"}, "attack must be one of plain"),
        ({"rounds": 9}, "rounds must be from 0 to 8"),
        ({"log_lamb": 7.0}, "log_lamb must be"),
        ({"seed": -1}, "seed must be"),
        ({"concept": "nudity"}, "concept must be one of the world's objects"),
        ({"concept": "banana", "attack": "held-out word"}, "banana has no held-out word"),
    ],
)
def test_a_state_that_cannot_be_shown_is_refused(lab, wrong, why):
    with pytest.raises(ValueError, match=why):
        show(lab, replace(SOME, **wrong))


def test_a_pipeline_that_carries_an_eraser_is_refused(lab):
    with rece.Eraser(torch.eye(lab.pipe.unet.config.cross_attention_dim)).on(lab.pipe):
        with pytest.raises(ValueError, match="carries an eraser"):
            show(lab, replace(SOME, method="original"))


def test_a_moved_slider_changes_the_picture(lab):
    view = Explorer(lab, SOME)
    before, words = view.image.value, view.text.value
    assert view.image.tooltip == view.result.says and "description" in view.image.keys  # a browser needs both
    assert before == picture(show(lab, SOME)) and view.result.says in words.replace("&#x27;", "'")
    view.controls["rounds"].value = 3
    assert view.image.value != before and view.result.state == replace(SOME, rounds=3)
    assert "rounds=3" in view.code.value
    view.controls["rounds"].value = 1
    assert view.image.value == before


def test_sliders_wait_for_the_hand_and_unread_ones_rest(lab):
    view = Explorer(lab, SOME)
    sliders = [view.controls[name] for name in ("rounds", "log_lamb", "seed")]
    assert not any(slider.continuous_update for slider in sliders)
    assert all(control.description for control in view.controls.values())
    view.controls["log_lamb"].value = 2.7500000000000004
    assert view.result.state.log_lamb == 2.75
    view.controls["method"].value = "guarded"
    assert [slider.disabled for slider in sliders] == [True, True, False]


def test_what_is_not_possible_is_said_in_the_view(lab):
    view = Explorer(lab, replace(SOME, concept="banana"))
    view.controls["attack"].value = "held-out word"
    assert "banana has no held-out word" in view.text.value
    assert bytes(view.image.value) == b"" and view.code.value == ""  # no picture of another state stays


def test_without_a_kernel_there_is_a_still_picture(lab):
    view = Explorer(lab, SOME)
    shown = view._repr_mimebundle_()
    assert shown["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    alt = re.search(r'<img alt="([^"]+)" src="data:image/png;base64,[^"]+">', shown["text/html"])[1]
    assert "the judge sees church in" in alt and "Neighbours:" in alt
    assert "rece.erase(lab.pipe, &#x27;church&#x27;" in shown["text/html"]
