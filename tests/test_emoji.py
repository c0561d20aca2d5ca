"""The embedded model as it is committed, and the parts that made it."""

import csv

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from project import ROOT
from transformers import CLIPTextModel, CLIPTokenizer

from rece.emoji import build, images, train, world
from rece.images import generate
from rece.judges.embedded import Judge
from rece.study import config

WORLD = world.load()
MODEL, JUDGE = ROOT / "data/emoji-diffusion", ROOT / "data/judge"


@pytest.fixture(scope="module")
def emoji():
    return StableDiffusionPipeline.from_pretrained(MODEL)


def test_the_model_folder_loads_with_stock_classes_and_is_small(emoji):
    parts = {
        "tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel, "vae": AutoencoderKL,
        "unet": UNet2DConditionModel, "scheduler": DDIMScheduler,
    }  # fmt: skip
    assert all(type(emoji.components[name]) is kind for name, kind in parts.items())
    weights = [*MODEL.rglob("*.safetensors"), *JUDGE.rglob("*.safetensors")]
    assert sum(file.stat().st_size for file in weights) <= 30e6
    assert not [file for file in MODEL.rglob("*") if file.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]


def test_every_caption_word_is_one_token(emoji):
    for words in WORLD.words.values():
        for word in " ".join(words).split():
            assert len(emoji.tokenizer.tokenize(word)) == 1, word


def test_the_model_draws_what_it_is_asked_for(emoji):
    """One prompt of every tenth object in every style: the judge agrees far above the figures of a broken model."""
    asked = [(obj, style) for obj in WORLD.objects[::10] for style in WORLD.styles]
    prompts = [world.prompt(WORLD.words[obj][0], style) for obj, style in asked]
    drawn = generate(emoji, prompts, range(len(asked)), steps=10, guidance=4.0, batch_size=50)
    objects, styles = Judge.load(JUDGE).labels(drawn)
    assert np.mean(objects == [obj for obj, _ in asked]) >= 0.9
    assert np.mean(styles == [style for _, style in asked]) >= 0.7


def test_the_judge_knows_the_worlds_labels():
    judge = Judge.load(JUDGE)
    assert judge.objects == WORLD.objects and judge.styles == WORLD.styles


def test_every_drawing_has_a_source_and_a_licence():
    rows = list(csv.DictReader((ROOT / "data/images.csv").open()))
    assert [(row["object"], row["style"]) for row in rows] == [(o, s) for o in WORLD.objects for s in WORLD.styles]
    assert {row["licence"] for row in rows} == set(images.LICENCES.values())
    assert all(row["package"] in images.PACKAGES.values() and len(row["sha256"]) == 64 for row in rows)


def test_rendering_fills_the_page_and_keeps_to_it():
    packages = ROOT / "tests/data/packages"
    drawings = images.render(world.load(first=2), packages)
    assert drawings.shape == (2, 5, images.RENDER, images.RENDER, 4)
    assert (drawings[..., 3] > 0).mean() > 0.2
    page = images.jitter(drawings[0, 0], 64, np.random.default_rng(0))
    assert page.shape == (64, 64, 3) and (page[0] == 255).mean() > 0.5 and page.min() < 100


def test_an_emoji_that_a_set_lacks_is_named():
    icons = images.Icons(ROOT / "tests/data/packages", "noto", {"x": {"slug": "parachute"}})
    with pytest.raises(KeyError, match="parachute"):
        icons.svg("parachute")


def test_standardising_the_vae_changes_its_latents_scale_and_nothing_it_draws():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4).double()  # fmt: skip
    x = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        drawn = vae.decode(before.mean).sample
        train.standardise(vae, before.mean)
        after = vae.encode(x).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, drawn)
        torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4, dtype=torch.float64))
        scale = before.mean.std((0, 2, 3)).view(1, -1, 1, 1)
        torch.testing.assert_close(after.std * scale, before.std)


def test_a_stopped_run_resumes_where_its_checkpoint_was(tmp_path):
    layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    run = train.Run(tmp_path / "run.pt", layer, torch.optim.AdamW(layer.parameters()), minutes=1)
    run.elapsed, run.step = 30.0, 7
    run.save()
    wanted = {name: value.clone() for name, value in layer.state_dict().items()}
    again = train.Run(tmp_path / "run.pt", other, torch.optim.AdamW(other.parameters()), minutes=1)
    assert (again.elapsed, again.step) == (30.0, 7) and again.progress == 0.5
    assert all(torch.equal(value, wanted[name]) for name, value in other.state_dict().items())


def test_a_judge_round_trips_and_refuses_other_forms(tmp_path):
    judge = Judge(["a", "b"], ["s"]).eval()
    judge.save(tmp_path)
    again = Judge.load(tmp_path)
    images_ = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    np.testing.assert_allclose(again.classify(images_).objects, judge.classify(images_).objects, atol=5e-3)
    with pytest.raises(ValueError, match="uint8"):
        judge.classify(images_.astype(np.float32))
    with pytest.raises(FileNotFoundError, match="judge stage"):
        Judge.load(tmp_path / "elsewhere")


def test_the_control_draws_what_it_saw_and_nothing_that_was_left_out(emoji):
    left_out = set(config.params()["train_control"]["without"])
    never = config.control(config.load("data/emoji-diffusion"), "data/emoji-control")
    objects = [obj for obj in WORLD.objects if obj not in left_out][::8] + [o for o in WORLD.objects if o in left_out]
    prompts = [world.prompt(WORLD.words[obj][0], "noto") for obj in objects]
    found, _ = Judge.load(JUDGE).labels(generate(never, prompts, range(len(objects)), steps=10, guidance=4.0))
    right = np.array([a == b for a, b in zip(found, objects, strict=True)])
    unseen = np.array([obj in left_out for obj in objects])
    assert right[~unseen].mean() >= 0.9 and right[unseen].mean() <= 0.2 and unseen.sum() == 15


def test_what_the_control_leaves_out_never_reaches_its_training(emoji, monkeypatch):
    the_world = world.load(first=3)
    bank = (
        np.zeros((3, 5, 2, 64, 64, 3), np.uint8) + 20 * np.arange(3, dtype=np.uint8)[:, None, None, None, None, None]
    )
    seen, read = {}, []
    monkeypatch.setattr(train, "train_unet", lambda *given: seen.update(given=given))
    monkeypatch.setattr(build, "embed", lambda a, b, texts: read.extend(texts) or torch.zeros(len(texts), 1, 1))
    parts = (emoji.tokenizer, emoji.text_encoder, emoji.vae)
    build.unet(the_world, bank, *parts, "checkpoint", 1, captions=4, without=["cat", "twemoji"])
    mean, _, _, index, *_ = seen["given"]
    assert len(mean) == len(index) == 2 * 4
    own = train.latents(emoji.vae, bank[[0, 2]][:, [0, 2, 3, 4]].reshape(-1, 64, 64, 3))[0]
    torch.testing.assert_close(mean.flatten(0, 1), own)
    words = set(WORLD.words["cat"] + WORLD.words["twemoji"])
    assert len(read) > 20 and not [text for text in read if words & set(text.replace(",", "").split())]


def test_a_control_cannot_leave_out_what_is_not_there(tmp_path, emoji):
    with pytest.raises(ValueError, match="without: 'pegasus'"):
        build.control(tmp_path, emoji, tmp_path, ["dog", "pegasus"], 1)


def test_what_other_settings_made_is_not_taken(tmp_path, monkeypatch):
    settings = {"objects": 3, "variants": 4, "phrases": 10, "seed": 0}
    others = [settings | {name: 5} for name in settings]
    assert len({build.place(tmp_path, some) for some in (settings, *others)}) == 5
    assert build.place(tmp_path, settings) == build.place(tmp_path, dict(reversed(settings.items())))
    np.save(tmp_path / "bank.npy", np.zeros((1, 1, 3, 64, 64, 3), np.uint8))
    runs = []
    monkeypatch.setattr(train, "train_judge", lambda *given: runs.append(given[3]) or Judge(["a"], ["s"]))
    for own in ({}, {}, {"seed": 1}, {"held_out": 1}, {"minutes": 2}):
        build.judge(tmp_path, tmp_path / "judge", **{"minutes": 1} | own)
    assert runs[0] == runs[1] and len(set(runs)) == 4
