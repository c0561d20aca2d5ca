"""Images depend on prompt, seed and settings, and on nothing else."""

import numpy as np
import pytest
import torch

from rece import texts
from rece.images import generate

PROMPTS = ["a dog", "a cat", "", "a red dog", "my cat", "a dog"]
SEEDS = [3, 1, 4, 15, 9, 2]
QUICK = {"steps": 3, "guidance": 5.0, "batch_size": 4, "progress": False}


def test_order_number_and_sharding_change_no_bit(pipe):
    images = generate(pipe, PROMPTS, SEEDS, **QUICK)
    assert images.dtype == np.uint8 and images.shape == (6, 16, 16, 3)
    order = [5, 2, 0, 4, 1, 3]
    shuffled = generate(pipe, [PROMPTS[i] for i in order], [SEEDS[i] for i in order], **QUICK)
    np.testing.assert_array_equal(shuffled, images[order])
    for shard in ([0, 1, 2, 3, 4], [5], [1, 3]):
        alone = generate(pipe, [PROMPTS[i] for i in shard], [SEEDS[i] for i in shard], **QUICK)
        np.testing.assert_array_equal(alone, images[shard])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_batch_size_moves_a_pixel_by_one_level_at_most(pipe, batch_size):
    images = generate(pipe, PROMPTS, SEEDS, **QUICK)
    other = generate(pipe, PROMPTS, SEEDS, **{**QUICK, "batch_size": batch_size})
    difference = np.abs(images.astype(int) - other)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_seed_and_prompt_matter(pipe):
    images = generate(pipe, ["a dog", "a dog", "a cat"], [1, 2, 1], **QUICK)
    assert (images[0] != images[1]).any() and (images[0] != images[2]).any()


def test_embeds_give_the_images_of_their_prompts(pipe):
    embeds = texts.encode(pipe, PROMPTS)
    assert embeds.dtype == torch.float64
    np.testing.assert_array_equal(
        generate(pipe, seeds=SEEDS, embeds=embeds, **QUICK), generate(pipe, PROMPTS, SEEDS, **QUICK)
    )


def test_the_plain_pipeline_draws_the_same(pipe):
    images = generate(pipe, PROMPTS[:2], SEEDS[:2], **QUICK)
    for image, prompt, seed in zip(images, PROMPTS[:2], SEEDS[:2], strict=True):
        drawn = pipe(prompt, num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(seed))
        assert np.abs(np.asarray(drawn.images[0]).astype(int) - image).max() <= 1


def test_bf16_is_close_and_keeps_what_holds(pipe):
    images = generate(pipe, PROMPTS, SEEDS, bf16=True, **QUICK)
    exact = generate(pipe, PROMPTS, SEEDS, **QUICK)
    assert 0 < np.abs(images.astype(float) - exact).mean() < 8
    np.testing.assert_array_equal(generate(pipe, PROMPTS[2:3], SEEDS[2:3], bf16=True, **QUICK), images[2:3])


def test_sdxl(xl):
    images = generate(xl, PROMPTS[:2], SEEDS[:2], **QUICK)
    assert images.shape == (2, 16, 16, 3)
    with pytest.raises(ValueError, match="embeds is not supported"):
        generate(xl, seeds=[1], embeds=torch.zeros(1, 24, 64), **QUICK)


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_left_as_it_was(pipe, fails, monkeypatch):
    def checker(**inputs):
        raise AssertionError("the safety checker was asked")

    pipe.set_progress_bar_config(desc="mine")
    vars(pipe)["safety_checker"] = checker
    before, config = dict(vars(pipe)), dict(pipe.config)
    if fails:
        monkeypatch.setattr(pipe.unet, "forward", lambda *args, **keywords: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(pipe, ["a dog"], [1], **QUICK)
    else:
        generate(pipe, ["a dog"], [1], **QUICK)
    assert pipe.safety_checker is checker and dict(pipe.config) == config
    assert vars(pipe)["_progress_bar_config"] == before["_progress_bar_config"] and vars(pipe).keys() >= before.keys()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({}, ValueError, "either prompts or embeds"),
        ({"prompts": ["a"], "embeds": torch.zeros(1, 24, 32)}, ValueError, "either prompts or embeds"),
        ({"prompts": "a dog", "seeds": [1] * 5}, TypeError, "prompts must be a list"),
        ({"prompts": ["a dog", 3], "seeds": [1, 2]}, TypeError, "prompts must be a list"),
        ({"prompts": [], "seeds": []}, ValueError, "0 seeds for 0 prompts"),
        ({"prompts": ["a", "b"], "seeds": [1]}, ValueError, "1 seeds for 2 prompts"),
        ({"embeds": torch.zeros(24, 32), "seeds": [1]}, TypeError, "embeds must be"),
        ({"embeds": torch.zeros(1, 24, 32, dtype=torch.long), "seeds": [1]}, TypeError, "embeds must be"),
        ({"embeds": torch.full((1, 24, 32), torch.nan), "seeds": [1]}, ValueError, "embeds holds"),
        ({"prompts": ["a"], "seeds": [1], "steps": 0}, ValueError, "steps and batch_size"),
        ({"prompts": ["a"], "seeds": [1], "batch_size": 0}, ValueError, "steps and batch_size"),
    ],
)
def test_bad_input(pipe, arguments, error, message):
    with pytest.raises(error, match=message):
        generate(pipe, **arguments)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_broken_model_is_noticed(pipe):
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        generate(pipe, ["a dog"], [1], **QUICK)
