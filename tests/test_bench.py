"""The benchmark times what it says: the real models' shapes, and two methods that do the same work."""

import inspect
import sys
from importlib import import_module

import pytest
import torch
from diffusers import UNet2DConditionModel

from rece import bench, bench_redteam

CROSS = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
UNETS = {
    "sd14": dict(cross_attention_dim=768, attention_head_dim=8),
    "sdxl": dict(
        cross_attention_dim=2048,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", CROSS[0], CROSS[0]),
        up_block_types=(CROSS[1], CROSS[1], "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}


@pytest.mark.parametrize("name", UNETS)
def test_the_shapes_are_those_of_the_models(name):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[name])
    keys = [m for n, m in unet.named_modules() if n.endswith("attn2.to_k")]
    values = [m for n, m in unet.named_modules() if n.endswith("attn2.to_v")]
    blocks, encoders, _ = bench.SHAPES[name]
    assert sorted(m.out_features for m in keys) == sorted(m.out_features for m in values) == sorted(blocks)
    assert {m.in_features for m in keys + values} == {sum(width for width, _, _ in encoders)}


def test_the_whole_table_at_a_tiny_shape(monkeypatch, capsys):
    monkeypatch.setattr(bench, "SHAPES", {"sd14": ([8, 12, 16], [(16, 1, 2), (16, 1, 2)], 2)})
    monkeypatch.setattr(sys, "argv", ["bench", "--model", "sd14"])
    bench.main()
    printed = capsys.readouterr().out
    assert "sd14: 6 matrices of width 32" in printed and "measured: 2 of 6 layers" in printed
    assert all(part in printed for part in ("encode", "gram", "solve", "write back", "GFLOP/s", "peak memory"))


def test_the_literal_method_of_the_benchmark_makes_the_edit_of_the_one_map():
    pipe = bench.Standin([8, 12], [(16, 1, 2)], "cpu")
    before = [weight.clone() for weight in bench.textspace.originals(pipe).values()]
    found, steps = bench.literal_method(pipe, 4)
    assert found["layers"] == 4
    eraser = bench.rece.erase(pipe, "nudity", rounds=1)
    for step, edited in zip(eraser.history, steps, strict=True):
        for W, now in zip(before, edited, strict=True):
            assert (W.double() @ step - now).norm() < 1e-3 * now.norm()


def test_the_red_teams_table_at_a_tiny_width():
    found = bench_redteam.certificate(16)
    assert 0 < found["floor"] < found["ours"] < found["literal"]
    for name, budget in bench_redteam.ATTACKS.items():
        assert set(budget) <= set(inspect.signature(import_module(f"rece.attacks.{name}").attack).parameters)
