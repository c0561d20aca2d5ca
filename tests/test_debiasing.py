"""Debiasing: the literal target, the loop that finds it, undo, and bad input."""

import literal
import numpy as np
import pytest
import torch

import rece
from rece import layers, texts
from rece.judges.embedded import Judge
from rece.study import config

QUICK = dict(images=4, steps=1, guidance=1.0, batch_size=2)


def weights(pipe):
    return {name: weight.clone() for name, weight in layers.originals(pipe).items()}


def token(pipe, text):
    return texts.encode(pipe, [text])[0][texts.last_positions(pipe, text)]


def test_a_model_that_shows_the_desired_shares_is_left_alone(pipe):
    eraser = rece.debias(pipe, "doctor", ["male", "female"], lambda _: ["male", "female"] * 2, **QUICK)
    assert eraser.map.equal(torch.eye(32, dtype=torch.float64))
    assert eraser.provenance["debiased"] and eraser.provenance["seen"] == [[[0.5, 0.5]]]


def test_the_edit_is_the_literal_one_for_the_weights_that_the_loop_added_up(pipe):
    pipe.to(torch.float64)
    found = iter([["male"] * 4, ["male"] * 3 + ["female"], ["female"] * 4, ["male", "male", "female", "male"]])
    before = weights(pipe)
    with pytest.warns(UserWarning, match="not within max_diff 0.3 after max_iterations 2"):
        made = rece.debias(
            pipe,
            ["doctor", "cook"],
            ["male", "female"],
            lambda _: next(found),
            desired=[0.25, 0.75],
            preserve=["sun"],
            max_diff=0.3,
            max_iterations=2,
            **QUICK,
        )
    alphas = [[0.25 - 1, 0.75 - 0], [0.25 - 0.75, 0.75 - 0.25]]
    assert np.allclose(made.provenance["alphas"], [np.zeros((2, 2)), alphas])
    assert np.allclose(made.provenance["seen"], [[[1, 0], [0.75, 0.25]], [[0, 1], [0.75, 0.25]]])
    pairs = []
    for text, (first, second) in zip(["doctor", "cook"], alphas, strict=True):
        c = token(pipe, text)
        pairs.append((c, c + first * token(pipe, "male") + second * token(pipe, "female")))
    edited = literal.edit(before.values(), pairs, [token(pipe, "sun")], 0.5, 1.0, 1.0)
    for W0, W in zip(before.values(), edited, strict=True):
        assert (W - W0).norm() > 1e-2 * W0.norm()
        assert (W0 @ made.map - W).norm() <= 1e-9 * W.norm()
    assert all(weight.equal(before[name]) for name, weight in weights(pipe).items())


def test_the_loop_moves_what_the_embedded_model_draws():
    pipe, judge = config.load("data/emoji-diffusion"), Judge.load(config.root() / "data/judge")
    noto, twemoji = (judge.styles.index(style) for style in ("noto", "twemoji"))

    def labels(images):
        styles = judge.classify(images).styles
        return np.where(styles[:, noto] > styles[:, twemoji], "noto", "twemoji")

    settings = dict(images=16, steps=6, guidance=4.0, batch_size=8, max_diff=0.2)
    made = rece.debias(pipe, "horse", ["noto", "twemoji"], labels, **settings)
    seen = [share for [[share, _]] in made.provenance["seen"]]
    assert seen[0] < 0.2 and abs(seen[-1] - 0.5) < 0.2 and made.provenance["debiased"]


def test_a_judge_that_fails_leaves_the_model_as_it_was(pipe):
    before = weights(pipe)
    with pytest.raises(ValueError, match="labels must return one of the attributes"):
        rece.debias(pipe, "doctor", ["male", "female"], lambda _: ["other"] * 4, **QUICK)
    assert layers.fused(pipe) is None
    assert all(weight.equal(before[name]) for name, weight in weights(pipe).items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(concept=""), "concept must be"),
        (dict(attributes=["male"]), "attributes must be"),
        (dict(attributes="male"), "attributes must be"),
        (dict(desired=[0.5]), "desired must be"),
        (dict(desired=[0.9, 0.9]), "desired must be"),
        (dict(max_iterations=0), "max_iterations"),
        (dict(lamb=0.0), "lamb"),
        (dict(max_diff=-1.0), "max_diff"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(pipe, change, message):
    def labels(images):
        raise AssertionError("drawn")

    with pytest.raises((ValueError, TypeError), match=message):
        rece.debias(pipe, **{"concept": "doctor", "attributes": ["male", "female"], "labels": labels} | change)
