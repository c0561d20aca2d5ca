"""The benchmark times what it says: the real models' shapes, and two methods that do the same work."""

import json
import sys

import cost
import pytest
import torch
from bench import edit as bench
from bench import guard as bench_guard
from bench import redteam as bench_redteam

from rece import attacks

TINY = [8, 12], [(16, 1, 2)], 2


@pytest.mark.parametrize("name", bench.SHAPES)
def test_the_shapes_are_those_of_the_models(name):
    (unet,) = cost.build(name)["unet"]
    keys = [m for n, m in unet.named_modules() if n.endswith("attn2.to_k")]
    values = [m for n, m in unet.named_modules() if n.endswith("attn2.to_v")]
    blocks, encoders, _ = bench.SHAPES[name]
    assert sorted(m.out_features for m in keys) == sorted(m.out_features for m in values) == sorted(blocks)
    assert {m.in_features for m in keys + values} == {sum(width for width, _, _ in encoders)}
    assert encoders == [(width, layers, heads) for width, layers, heads, _ in cost.MODELS[name][2]]


def test_a_thousand_concepts_are_a_thousand_tokens():
    assert len(bench.names(1000)) == len({*map(str, map(bench.CLIPTokenizerOfWords(), bench.names(1000)))}) == 1000
    assert bench.names(3)[:2] == ["nudity", "concept1"]


def test_the_whole_table_at_a_tiny_shape(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "SHAPES", {"sd14": ([8, 12, 16], [(16, 1, 2), (16, 1, 2)], 2), "sd21": TINY})
    monkeypatch.setattr(bench, "MANY", {"sd14": (1, 3, 12)})
    monkeypatch.setattr(bench, "SIDE", 64)
    monkeypatch.setattr(bench, "COPIED", 2**12)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--json"])
    bench.main()
    printed = capsys.readouterr().out
    assert "sd14: 6 matrices of width 32" in printed and "measured: 2 of 6 layers" in printed
    assert "sd21: 4 matrices of width 16" in printed
    assert all(part in printed for part in ("encode", "gram", "solve", "write back", "GFLOP/s", "peak memory"))
    assert "2 of 6 layers with 1 and 10 concepts" in printed
    report = json.loads((tmp_path / "results" / "bench" / "bench.json").read_text())
    rows = report["sd14"].pop("many")
    assert report["sd14"].keys() == report["sd21"].keys()
    assert {concepts: row["literal extrapolated"] for concepts, row in rows.items()} == {
        "1": False,
        "3": False,
        "12": True,
    }
    assert rows["1"]["literal"] == report["sd14"]["literal"]["total"]
    assert rows["1"]["total"] == report["sd14"]["one map"]["total"]
    per_concept = (rows["3"]["literal"] - rows["1"]["literal"]) / 2
    assert rows["12"]["literal"] == pytest.approx(rows["1"]["literal"] + 11 * per_concept)
    assert list((tmp_path / "results" / "bench").iterdir()) == [tmp_path / "results" / "bench" / "bench.json"]


def test_the_table_of_the_guarded_eraser_at_a_tiny_shape(monkeypatch, capsys):
    assert all(
        bench_guard.SHAPES[name] == (bench.SHAPES[name][0], width) for name, width in [("sd14", 768), ("sdxl", 2048)]
    )
    monkeypatch.setattr(bench_guard, "SHAPES", {"sd14": ([8, 12], 16)})
    monkeypatch.setattr(bench_guard, "COUNTS", (1, 3))
    monkeypatch.setattr(sys, "argv", ["bench.guard"])
    bench_guard.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 2 * len(bench_guard.METHODS) and all(len(line.split()) >= 6 for line in lines)
    pipe = bench_guard.Random([8, 12], 16, "cpu")
    one, other = (bench.texts.encode(pipe, some) for some in (["dog", "cat"], ["cat"]))
    assert torch.equal(one[1], other[0]) and not torch.equal(one[0], one[1])


@pytest.mark.parametrize("concepts", [1, 3])
def test_the_literal_method_of_the_benchmark_makes_the_edit_of_the_one_map(concepts):
    pipe = bench.Standin(*TINY[:2], "cpu")
    before = [weight.clone() for weight in bench.layers.originals(pipe).values()]
    found, steps = bench.literal_method(pipe, 4, concepts)
    assert found["layers"] == 4
    eraser = bench.rece.erase(pipe, bench.names(concepts), rounds=1)
    for step, edited in zip(eraser.history, steps, strict=True):
        for W, now in zip(before, edited, strict=True):
            assert (W.double() @ step - now).norm() < 1e-3 * now.norm()


def test_the_concepts_are_different_and_of_one_word():
    pipe = bench.Standin(*TINY[:2], "cpu")
    assert len(set(bench.names(1000))) == 1000 and bench.names(1) == ["nudity"]
    assert {bench.texts.last_position(pipe, text) for text in bench.names(1000)} == {1}


def test_the_floor_grows_with_the_concepts_and_its_rounds_do_not_in_the_end():
    pipe, rates = bench.Standin(*TINY[:2], "cpu"), {"float32": 1.0, "float64": 1.0, "bytes": float("inf")}
    one, ten, many, twice = (bench.floor(pipe, rates, concepts) for concepts in (1, 10, 1000, 2000))
    assert one["gram"] == many["gram"] and one["write back"] == many["write back"]
    assert many["encode"] * 3 == pytest.approx(one["encode"] * 1002)
    assert one["solve"] < ten["solve"] < many["solve"] < twice["solve"]
    # of all products only two sums over rows, for the start and for the rounds, grow: 8 n d^2
    assert twice["solve"] - many["solve"] == pytest.approx(8 * 77 * 1000 * 16**2)


def test_a_derived_row_is_a_map_of_its_own_so_that_two_sums_over_rows_are_all_a_round_needs():
    random = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    d, C, T = 6, normal(40, 6), normal(40, 6)
    M, G = torch.eye(d) + 0.1 * normal(d, d), bench.rece.solver.gram([normal(20, d)])
    derived = bench.rece.solver.derive(M, G, C, lamb=0.1)
    edit = bench.rece.solver.edit_map(derived, T, lamb=0.1)
    B = M.T @ G
    X = torch.linalg.solve(B @ M + 0.1 * torch.eye(d), B).T
    seen, met = X.T @ (C.T @ C) @ X, X.T @ (C.T @ T)
    by_sums = torch.eye(d) + torch.linalg.solve(0.1 * torch.eye(d) + seen, met - seen).T
    torch.testing.assert_close(by_sums, edit)


def test_the_red_teams_table_at_a_tiny_width():
    found = bench_redteam.certificate(16)
    assert set(found) == {"ours", "literal", "floor"}
    for name, budget in bench_redteam.ATTACKS.items():
        assert set(budget) <= set(attacks.budget_items(name))
