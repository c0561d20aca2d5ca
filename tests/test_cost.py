"""Counted work: the published models' sizes to the number, hand counts, and how work scales."""

import re

import cost
import pandas as pd
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from project import PAPER
from torch.utils.flop_counter import FlopCounterMode

PARAMETERS = {  # of the files that the Hub serves
    "sd14": {"text": 123_060_480, "unet": 859_520_964, "vae": 83_653_863},
    "sd21": {"text": 340_387_840, "unet": 865_910_724, "vae": 83_653_863},
    "sdxl": {"text": 123_060_480 + 694_659_840, "unet": 2_567_463_684, "vae": 83_653_863},
}


def tiny() -> UNet2DConditionModel:
    """A UNet of convolutions and of attention to the prompt, with no attention between pixels."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            cross_attention_dim=24,
            attention_head_dim=8,
            norm_num_groups=8,
        )


def work(unet: UNet2DConditionModel, batch: int = 1, edge: int = 8, width: int = 24) -> dict[str, float]:
    """FLOP of convolutions and of everything else in one forward."""
    given = torch.empty(batch, 4, edge, edge, device="meta"), 1, torch.empty(batch, 77, width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(*given)
    assert counter.get_total_flops() == cost.counted(unet, *given)
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    return {"convolutions": convolutions, "rest": counter.get_total_flops() - convolutions}


@pytest.mark.parametrize("kind", cost.MODELS)
def test_the_models_have_the_published_numbers_of_parameters(kind):
    assert {part: found["parameters"] for part, found in cost.parts(kind).items()} == PARAMETERS[kind]


def test_the_layers_that_read_the_prompt_hold_19_million_numbers_in_stable_diffusion_1():
    (unet,) = cost.build("sd14")["unet"]
    readers = [p.numel() for name, p in unet.named_parameters() if "attn2.to_k" in name or "attn2.to_v" in name]
    assert len(readers) == 32 and sum(readers) == 19_169_280


def test_a_product_and_a_convolution_count_as_by_hand():
    linear, conv = torch.nn.Linear(5, 7, device="meta"), torch.nn.Conv2d(3, 4, 3, padding=1, device="meta")
    assert cost.counted(linear, torch.empty(11, 5, device="meta")) == 2 * 11 * 5 * 7
    assert cost.counted(conv, torch.empty(2, 3, 8, 8, device="meta")) == 2 * 2 * 8 * 8 * 4 * 3 * 9


def test_a_whole_unet_counts_as_the_sum_of_its_layers_and_attention_by_hand():
    unet, expected = cost.build("sd14")["unet"][0], 0

    def add(layer, given, output):
        nonlocal expected
        per_output = layer.weight.numel() // layer.weight.shape[0]  # multiply-adds of one number of the output
        expected += 2 * output.numel() * per_output

    def attend(layer, given, named, output):
        nonlocal expected
        pixels, width = output.shape[1], layer.to_q.out_features
        seen = named.get("encoder_hidden_states")
        expected += 2 * 2 * pixels * (pixels if seen is None else seen.shape[1]) * width  # Q K^T, and its use on V

    for module in unet.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(add)
        elif hasattr(module, "to_q"):
            module.register_forward_hook(attend, with_kwargs=True)
    given = torch.empty(1, 4, 64, 64, device="meta"), 1, torch.empty(1, 77, 768, device="meta")
    found = cost.counted(unet, *given)
    assert found == expected == cost.parts("sd14")["unet"]["flop"]
    unet.set_attn_processor(AttnProcessor())  # products written out, instead of one fused operator
    assert cost.counted(unet, *given) == found


def test_without_attention_it_is_the_339_billion_multiply_adds_often_quoted():
    (unet,) = cost.build("sd14")["unet"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(torch.empty(1, 4, 64, 64, device="meta"), 1, torch.empty(1, 77, 768, device="meta"))
    attention = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    assert (counter.get_total_flops() - attention) / 2 == pytest.approx(338.75e9, rel=1e-3)


def test_twice_the_batch_is_twice_the_work_and_twice_the_edge_four_times_the_convolutions():
    unet = tiny()
    once, batch, edge = work(unet), work(unet, batch=2), work(unet, edge=16)
    assert batch == {kind: 2 * flop for kind, flop in once.items()}
    assert edge["convolutions"] == 4 * once["convolutions"]
    assert once["rest"] < edge["rest"]


def test_attention_between_pixels_makes_large_images_dearer_than_their_pixels():
    small, large = (cost.parts("sd14", size)["unet"]["flop"] for size in (512, 1024))
    assert small == cost.parts("sd14")["unet"]["flop"] and large > 4 * small


@pytest.mark.parametrize("weights, forwards", [("frozen", 1.08), ("learnt", 2.0)])
def test_a_backward_costs_no_more_than_it_is_counted_as(weights, forwards):
    (unet,) = cost.build("sd14")["unet"]
    unet.requires_grad_(weights == "learnt")
    prompt = torch.empty(1, 77, 768, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        loss = unet(torch.empty(1, 4, 64, 64, device="meta"), 1, prompt).sample.sum()
        forward = counter.get_total_flops()
        loss.backward()
    backward = counter.get_total_flops() - forward
    assert backward == pytest.approx(forwards * forward, rel=0.01) and backward <= cost.BACKWARD * forward


def test_an_image_is_its_prompt_its_steps_and_its_decoding():
    text, unet, vae = (part["flop"] for part in cost.parts("sd21").values())
    assert cost.image_flop("sd21", steps=7, guided=False) == text + 7 * unet + vae
    assert cost.image_flop("sd21", steps=7) == 2 * (text + 7 * unet) + vae
    assert cost.image_flop("sd14") < cost.image_flop("sd21") < cost.image_flop("sdxl")


def test_hours_follow_images_and_rate():
    second = cost.image_flop("sd14", steps=10)
    assert cost.gpu_hours(3600, "sd14", rate=second, steps=10) == pytest.approx(1)
    assert cost.gpu_hours(7200, "sd14", rate=4 * second, steps=10) == pytest.approx(0.5)
    assert cost.gpu_hours(0, "sd14", rate=second) == 0


def test_the_attacks_cost_what_their_budgets_say():
    unet = cost.parts("sd14")["unet"]["flop"]
    image = cost.image_flop("sd14")
    dear, beside = cost.attack_flop("UnlearnDiffAtk"), cost.attack_flop("P4D, in its loop")
    assert dear == pytest.approx(2000 * 3 * unet + 51 * image, rel=0.02)  # the text encoder is the rest
    assert beside - dear == pytest.approx(2000 * unet)
    assert cost.attack_flop("Ring-A-Bell") - image == 600_000 * cost.parts("sd14")["text"]["flop"]


def test_the_tables(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cost", "--gpu", "H100", "--share", "0.5", "--steps", "20"])
    cost.main()
    printed = capsys.readouterr().out
    assert "assumed, not measured: one H100 at 50% of 989 TFLOP/s = 494 TFLOP/s" in printed
    assert all(name in printed for name in [*cost.MODELS, *cost.EXPERIMENTS, *cost.ATTACKS])
    table = cost.experiments_table("sd14", 1e14, steps=20)
    pd.testing.assert_series_equal(table.loc["all"], table.drop("all").sum(), check_names=False)
    assert table.loc["nudity, red-team set", "edited"] == 142 * 2
    monkeypatch.setattr("sys.argv", ["cost", "--share", "0"])
    with pytest.raises(SystemExit):
        cost.main()
    assert "--share must be a positive finite number" in capsys.readouterr().err


def test_the_experiments_have_the_published_numbers_of_prompts():
    rows = re.findall(r"^\| (\S+)\.csv \| ([0-9]+) \|", (PAPER / "prompts/README.md").read_text(), re.MULTILINE)
    count = {name: int(number) for name, number in rows}
    artists = count["big_artist_prompts"] + count["short_niche_art_prompts"]
    published = [count["nudity"], count["i2p"], count["i2p"], artists, count["imagenette"], count["coco_30k"]]
    assert [first for first, _ in cost.EXPERIMENTS.values()] == published
    assert cost.ATTACKS["UnlearnDiffAtk"]["prompts"] == count["nudity"]


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: cost.image_flop("sd3"), "kind must be one of sd14"),
        (lambda: cost.image_flop("sd14", steps=0), "steps must be"),
        (lambda: cost.image_flop("sd14", size=500), "size must be a positive multiple of 64"),
        (lambda: cost.gpu_hours(10, "sd14", rate=0), "rate must be"),
        (lambda: cost.gpu_hours(-1, "sd14", rate=1e14), "images must be"),
        (lambda: cost.attack_flop("PEZ"), "name must be one of UnlearnDiffAtk"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named):
        call()
