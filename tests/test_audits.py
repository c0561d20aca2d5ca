"""Audits: each draws in the way it says, leaves both models as they were, and repeats itself to the bit."""

from importlib import import_module

import numpy as np
import pytest
import tiny
import torch
from diffusers import EulerDiscreteScheduler
from test_rivals import RIVALS

import rece
from rece import audits, methods, texts
from rece.audits import _sampler, adapter, tina
from rece.images import fingerprint, generate, to_latents
from rece.study import config
from rece.study.relearning import relearn

HOW = {"steps": 4, "guidance": 3.0, "batch_size": 2}
PROMPTS, SEEDS = ["a dog", "red dog", "dog"], [1, 2, 3]
SETTINGS = {
    "image_to_image": {"strengths": (0.5, 1.0)},
    "inpainting": {"sides": (0.5, 1.0)},
    "completion": {"shares": (0.0, 0.5, 1.0)},
    "noise": {"etas": (0.0, 1.0), "scales": (1.0, 1.04)},
    "composition": {"others": [["cat", "sun"]] * 3},
    "tina": {"updates": 2},
    "query": {"score": lambda images: images.mean((1, 2, 3)), "vocabulary": ["cat", "sun", "cup"], "queries": 3},
    "adapter": {"lessons": 2, "updates": 2, "lr": 1e-2, "size": 2},
}


@pytest.fixture
def victim(pipe):
    """The tiny pipeline without "dog"."""
    return rece.erase(pipe, "dog", progress=False).apply(tiny.sd())


def run(name, victim, original, prompts=PROMPTS, seeds=SEEDS, steps=HOW["steps"], **more):
    how = HOW | {"steps": steps}
    return audits.run(name, victim, original, prompts, seeds, generate=how, **(SETTINGS[name] | more))


def test_every_audit_is_tried_here_and_says_what_it_holds():
    assert sorted(SETTINGS) == audits.names()
    for name in SETTINGS:
        held = import_module(f"rece.audits.{name}").HOLDS
        line = next(line for line in audits.__doc__.splitlines() if line.strip().startswith(held))
        assert name in line


@pytest.mark.parametrize("name", SETTINGS)
def test_an_audit_draws_pictures_repeats_itself_and_changes_no_model(victim, pipe, name):
    before = fingerprint(victim), fingerprint(pipe)
    first, second = run(name, victim, pipe), run(name, victim, pipe)
    assert (fingerprint(victim), fingerprint(pipe)) == before
    assert len(first) >= 2 and list(first) == list(second)
    for level, images in first.items():
        assert images.dtype == np.uint8 and images.shape == generate(pipe, ["a"] * 3, SEEDS, **HOW).shape
        assert (images == second[level]).all()
    levels = list(first.values())
    assert any((one != levels[0]).any() for one in levels[1:])


@pytest.mark.parametrize("method", [name for name, (_, _, may) in RIVALS.items() if may is None])
def test_a_hook_acts_under_every_audit_and_keeps_nothing_of_the_one_before(pipe, method):
    """Audits call the model in their own ways, one after the other, with batches of other sizes."""
    hooked = methods.run(method, pipe, "dog", **RIVALS[method][0]).apply(tiny.sd())
    first = {name: run(name, hooked, pipe, steps=2) for name in SETTINGS}
    for name in reversed(SETTINGS):
        for level, images in run(name, hooked, pipe, steps=2).items():
            assert (images == first[name][level]).all(), (name, level)
    plain = run("noise", pipe, pipe, steps=2)
    assert any((images != plain[level]).any() for level, images in first["noise"].items()), "it acts"
    taught = {"lr": 1e-3, "batch_size": 2, "generate": HOW | {"progress": False}}
    for learn in ("readers", "unet", "lora"):
        assert list(relearn(adapter.apart(hooked), pipe, PROMPTS, SEEDS, [0, 2], learn=learn, **taught)) == [0, 2]
    drawn = run("completion", hooked, pipe, steps=2)
    assert all((images == first["completion"][level]).all() for level, images in drawn.items()), "it is as it was"


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("adapter", "composition")])
def test_a_prompt_gives_the_same_whatever_others_there_are(victim, pipe, name):
    every, one = run(name, victim, pipe), run(name, victim, pipe, PROMPTS[2:], SEEDS[2:])
    for level, images in one.items():
        assert (images[0] == every[level][2]).all(), level


def test_wrong_settings_are_refused_before_anything_is_drawn(victim, pipe, xl, monkeypatch):
    monkeypatch.setattr("diffusers.StableDiffusionPipeline.__call__", lambda *_, **__: pytest.fail("drawn"))
    wrong = {
        "image_to_image": [{"strengths": (0.0,)}, {"strengths": (1.1,)}],
        "inpainting": [{"sides": (2.0,)}, {"sides": (0.1,)}],
        "completion": [{"shares": (-1.0,)}, {"shares": (0.1,)}],
        "noise": [{"etas": ()}],
        "composition": [{"others": [["cat"]]}, {"others": ["cat", "sun", "cup"]}],
        "tina": [{"updates": -1}],
        "query": [{"vocabulary": []}, {"vocabulary": "cat"}],
        "adapter": [{"rank": 0}],
    }
    for name, several in wrong.items():
        for settings in several:
            with pytest.raises((ValueError, TypeError), match=next(iter(settings))):
                run(name, victim, pipe, **settings)
    with pytest.raises(ValueError, match="generate must hold steps, guidance and batch_size"):
        audits.run("noise", victim, pipe, PROMPTS, SEEDS, generate={})
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        audits.run("noise", victim, pipe, PROMPTS, SEEDS, generate=HOW | {"batch_size": 0})
    with pytest.raises(ValueError, match="seeds must be one number per prompt"):
        run("noise", victim, pipe, PROMPTS, [1])
    with pytest.raises(ValueError, match="there is no audit"):
        audits.run("os", victim, pipe, PROMPTS, SEEDS, generate=HOW)
    with pytest.raises(TypeError, match="pipe must be a"):
        run("noise", xl, pipe)


def near(one, two):
    """Equal up to rounding: hardly any pixel moves by more than a level."""
    return np.abs(one.astype(int) - two.astype(int)).max() <= 2


def test_completion_is_one_model_or_the_other_at_its_ends(victim, pipe):
    found = run("completion", victim, pipe)
    assert near(found["0.0"], generate(victim, PROMPTS, SEEDS, **HOW))
    assert near(found["1.0"], generate(pipe, PROMPTS, SEEDS, **HOW))
    assert not near(found["0.5"], found["0.0"]) and not near(found["0.5"], found["1.0"])


def test_noise_as_it_should_be_is_plain_drawing(victim, pipe):
    found = run("noise", victim, pipe)
    assert list(found) == ["0.0 1.0", "0.0 1.04", "1.0 1.0", "1.0 1.04"]
    assert near(found["0.0 1.0"], generate(victim, PROMPTS, SEEDS, **HOW))


def test_more_noise_than_ddim_knows_still_draws_pictures(pipe):
    how = HOW | {"steps": 10}
    found = audits.run("noise", pipe, pipe, ["a dog"], [1], generate=how, scales=(1.0,))
    assert len(found) == 6 and all(images.std() > 1 for images in found.values())
    with pytest.raises(ValueError, match="values that are not finite: lower eta or guidance"):
        _sampler.decode(pipe, torch.full((1, 4, 8, 8), torch.nan))


def test_latents_are_clipped_only_where_the_pipeline_clips_them(pipe):
    assert not _sampler.scheduler(pipe, 4).config.clip_sample
    pipe.scheduler = EulerDiscreteScheduler()
    assert not _sampler.scheduler(pipe, 4).config.clip_sample


def test_one_other_prompt_is_drawn_as_itself(victim, pipe):
    found = run("composition", victim, pipe)
    assert near(found["1"], generate(victim, ["cat"] * 3, SEEDS, **HOW))
    same = run("composition", victim, pipe, others=[["cat", "cat"]] * 3)
    assert near(same["2"], same["1"])


def test_composition_keeps_a_hooks_momentum(pipe):
    hooked = methods.run("sld", pipe, "dog", warm_up=0.0, momentum=5.0, beta=0.5).apply(tiny.sd())
    same = run("composition", hooked, pipe, others=[["cat", "cat"]] * 3)
    assert near(same["2"], same["1"])


def test_little_noise_keeps_the_picture_and_all_anew_forgets_it():
    """On the embedded model, whose VAE gives back what it read."""
    model, asked = config.load("data/emoji-diffusion"), ["a dog", "a church"]
    shown = generate(model, asked, [1, 2], **HOW).astype(float)

    def far(name, **settings):
        found = audits.run(name, model, model, asked, [1, 2], generate=HOW, **settings)
        return [np.abs(images - shown) for images in found.values()]

    little, anew = (one.mean() for one in far("image_to_image", strengths=(0.25, 1.0)))
    assert little < 0.5 * anew
    middle, whole = (one[:, :8, :8].mean() for one in far("inpainting", sides=(0.5, 1.0)))
    assert middle < 0.5 * whole


def test_tinas_inversion_is_undone_by_drawing_again(pipe):
    """Noise that more updates have refined leads back nearer to the latents."""
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    empty = _sampler.encoded(pipe, [""])
    away = {}
    for updates in (0, 50):
        with torch.no_grad():
            noise = tina.inverted(pipe, z, empty, 5, updates, 1e-2)
            away[updates] = (tina.again(pipe, noise, empty, 5) - z).norm().item()
    assert away[50] < 0.5 * away[0]


def test_a_text_side_edit_that_keeps_the_empty_prompt_has_the_originals_success_without_text(pipe):
    """No bit of an inversion without text tells such an edit from the original."""
    M = methods.run("double_projections", pipe, "dog", preserve=["cup"]).map
    E = texts.encode(pipe, [""])[0]
    basis = torch.linalg.svd(E)[2][: torch.linalg.matrix_rank(E)]
    keep = basis.T @ basis
    exact = keep + M @ (torch.eye(len(M)).double() - keep)
    edited = rece.Eraser(exact).apply(tiny.sd())
    first, second = run("tina", pipe, pipe), run("tina", edited, pipe)
    assert all(near(first[level], second[level]) for level in first)


def test_more_queries_never_show_less(victim, pipe):
    found = run("query", victim, pipe, queries=6)
    score = SETTINGS["query"]["score"]
    assert (score(found["6"]) >= score(found["1"])).all() and (score(found["6"]) > score(found["1"])).any()


def test_an_adapter_learns_and_is_carried_over(victim, pipe):
    taught = adapter.apart(pipe)
    adapter.add(taught.unet, 2)
    shown = generate(pipe, ["a dog"] * 2, [0, 1], **HOW)
    latents, embeds = to_latents(pipe, shown), _sampler.encoded(pipe, ["a dog"] * 2)
    plain = generate(pipe, PROMPTS, SEEDS, **HOW)
    assert (generate(taught, PROMPTS, SEEDS, **HOW) == plain).all(), "at first it does nothing"
    learnt = [one for name, one in taught.unet.named_parameters() if "lora_" in name]
    next(done for done in adapter.learn(taught, learnt, latents, embeds, 1e-2, 2) if done == 20)
    assert (generate(taught, PROMPTS, SEEDS, **HOW) != plain).any()
    found = run("adapter", victim, pipe)
    assert (found["0"] == generate(victim, PROMPTS, SEEDS, **HOW)).all()
    assert (found["2"] != found["0"]).any()
