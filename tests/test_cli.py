"""The command line: what the library does, one line per mistake, nothing overwritten, nothing loaded too early."""

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields
from importlib import metadata
from multiprocessing import get_context

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from project import ROOT
from safetensors.torch import load_file, save_file

import rece
from rece import cluster, erasing, images, loading, methods
from rece.__main__ import KEYWORDS, main
from rece.edits import Edit
from rece.sharing import export, show

COMMANDS = ["erase", "guard", "apply", "lora", "weights", "import", "certify", "draw", "push", "show"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny pipeline's folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny-model"
    tiny.sd().save_pretrained(folder)
    return folder


@pytest.fixture
def dog(model, tmp_path, capsys):
    """An eraser file of "dog" for the tiny pipeline."""
    run("erase", model, "dog", "-o", tmp_path / "dog.safetensors")
    capsys.readouterr()
    return tmp_path / "dog.safetensors"


@pytest.fixture
def guarded(model, tmp_path, capsys):
    """A guarded eraser's file of "dog" for the tiny pipeline."""
    run("guard", model, "dog", "-o", tmp_path / "guarded.safetensors", "--preserve", "cat", "hat")
    capsys.readouterr()
    return tmp_path / "guarded.safetensors"


@pytest.fixture
def erased(model, tmp_path):
    """A function: the eraser that the command makes with these words."""

    def make(*words):
        run("erase", model, "-o", tmp_path / "e.safetensors", "--force", *words)
        return rece.Eraser.load(tmp_path / "e.safetensors")

    return make


@pytest.fixture
def fails(capsys):
    """A function: the one line that a failing command prints, without its start."""

    def line(*words):
        capsys.readouterr()
        run(*words, code=1)
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1 and out == ""
        return err.removeprefix("error: ")

    return line


def run(*words, code=0):
    assert main([str(word) for word in words]) == code


def same(found, expected):
    """Whether two erasers are equal, but for the report that `rece erase` adds."""
    report = {"report": found.provenance["report"]}
    return torch.equal(found.map, expected.map) and found.provenance == expected.provenance | report


def test_erase_is_the_librarys(model, dog):
    assert same(rece.Eraser.load(dog), rece.erase(loading.load(model), "dog"))


def test_every_option_of_erase_arrives(model, tmp_path):
    (tmp_path / "kept.txt").write_text("sun\n\nmoon \n", encoding="utf-8")
    words = ["--target", "animal", " ", "--preserve", "cup", "--preserve-file", tmp_path / "kept.txt"]
    words += (
        "--rounds 2 --lamb 0.2 --preserve-scale 0.3 --derive-lamb 0.4 --start-lamb 5 --anchored --relative".split()
    )
    words += ["--set", "each.reg=target", "each.erase_scale=2", "--set", "start.preserve=[a, b]", "start.tokens=last"]
    words += ["pooled=false", "--dtype", "float64", "-o", tmp_path / "new" / "e.safetensors"]
    run("erase", model, "dog", "big cat", *words)
    expected = rece.erase(
        loading.load(model, dtype="float64"),
        ["dog", "big cat"],
        target=["animal", " "],
        preserve=["cup", "sun", "moon"],
        rounds=2,
        start={"lamb": 5.0, "preserve": ["a", "b"], "tokens": "last"},
        each={"lamb": 0.2, "preserve_scale": 0.3, "derive_lamb": 0.4, "reg": "target", "erase_scale": 2},
        anchored=True,
        relative=True,
        pooled=False,
    )
    assert same(rece.Eraser.load(tmp_path / "new" / "e.safetensors"), expected)


def test_guard_is_the_librarys_and_every_option_arrives(model, guarded, tmp_path):
    expected = rece.guard(loading.load(model), "dog", preserve=["cat", "hat"])
    assert same(rece.Eraser.load(guarded), expected)
    (tmp_path / "kept.txt").write_text("sun\n", encoding="utf-8")
    words = ["--synonyms", "puppy", "hound", "--target", "cat", "--preserve", "cup", "--mu", 0.7, "--rank", 3]
    words += ["--preserve-file", tmp_path / "kept.txt", "--oblique", 0.5, "--dtype", "float64", "--force"]
    run("guard", model, "dog", *words, "-o", guarded)
    settings = {"synonyms": ["puppy", "hound"], "target": "cat", "preserve": ["cup", "sun"], "mu": 0.7, "rank": 3}
    expected = rece.guard(loading.load(model, dtype="float64"), "dog", **settings, oblique=0.5)
    assert same(rece.Eraser.load(guarded), expected)
    keywords = [name for name, one in inspect.signature(rece.guard).parameters.items() if one.kind is one.KEYWORD_ONLY]
    assert {*keywords} == {*settings, "oblique", "pooled", "progress"}


def test_guard_prints_its_report(model, tmp_path, capsys):
    many = [a + b for a in "abc" for b in "oe"]
    run(
        "guard",
        model,
        "dog",
        *many,
        "-o",
        tmp_path / "e.safetensors",
        "--preserve",
        *"cat hat sun moon cup car".split(),
    )
    out = capsys.readouterr().out
    made = rece.Eraser.load(tmp_path / "e.safetensors").provenance
    report = made["report"]
    guards = sorted(report["guard"].items(), key=lambda one: one[1])
    told = ", ".join(f"{text!r} {number:.2f}" for text, number in guards[:5])
    assert f"guard: {told} … 7 in all. No embedding comes nearer to a concept than this share" in out
    text, number = max(report["moved"].items(), key=lambda one: one[1])
    assert f"move {report['drift']:.2f} of their distance to ' ' on average (mu {made['mu']:.3g})" in out
    assert f"of those nearest to a concept: {text!r} {number:.2f}, " in out and out.count("\n") == 3


def test_rounds_auto_and_its_others(model, erased):
    expected = rece.erase(loading.load(model), "dog", rounds="auto", others=["sun"], anchored=True)
    assert torch.equal(erased("dog", "--rounds", "auto", "--others", "sun", "--anchored").map, expected.map)


def test_set_knows_every_keyword_of_erase(model, tmp_path, fails):
    known = fails("erase", model, "dog", "-o", tmp_path / "e.safetensors", "--set", "lambda=1")
    keywords = [name for name, one in inspect.signature(rece.erase).parameters.items() if one.kind is one.KEYWORD_ONLY]
    numbers = {"start": erasing.Start, "each": erasing.Round}
    keywords = [name for name in keywords if name not in numbers]
    keywords += [f"{group}.{field.name}" for group, kind in numbers.items() for field in fields(kind)]
    assert sorted(keywords) == sorted(KEYWORDS) and "not 'lambda=1'" in known
    assert all(name in known for name in keywords)


def test_apply_writes_a_whole_pipeline(model, dog, tmp_path):
    run("apply", model, dog, "-o", tmp_path / "out", "--licence", "mit", "--base-model", "a/b")
    edited, pipe = loading.load(tmp_path / "out"), loading.load(model)
    rece.Eraser.load(dog).apply(pipe)
    for name, W in edited.unet.state_dict().items():
        assert torch.equal(W, pipe.unet.state_dict()[name])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "base_model: a/b" in card


def test_lora_and_weights(model, dog, tmp_path, capsys):
    run("lora", model, dog, "-o", tmp_path / "lora", "--rank", 3)
    err = capsys.readouterr().err
    assert err.startswith("warning: rank 3 of ") and err.count("\n") == 1
    assert sorted(os.listdir(tmp_path / "lora")) == ["README.md", "pytorch_lora_weights.safetensors"]
    assert "# tiny-model without dog" in (tmp_path / "lora" / "README.md").read_text()
    run("weights", model, dog, "-o", tmp_path / "uce.safetensors")
    export.save_weights(rece.Eraser.load(dog), loading.load(model), tmp_path / "own.safetensors")
    assert (tmp_path / "uce.safetensors").read_bytes() == (tmp_path / "own.safetensors").read_bytes()


def test_import_finds_the_eraser_and_refuses_what_is_none(model, dog, tmp_path, capsys):
    run("weights", model, dog, "-o", tmp_path / "uce.safetensors")
    run("import", model, tmp_path / "uce.safetensors", "-o", tmp_path / "back.safetensors")
    back, own = (rece.Eraser.load(path).map for path in (tmp_path / "back.safetensors", dog))
    assert (back - own).norm() < 1e-3 * (own - torch.eye(32)).norm()
    draw = torch.Generator().manual_seed(0)
    weights = load_file(tmp_path / "uce.safetensors").items()
    trained = {name: W + torch.randn(W.shape, generator=draw) for name, W in weights}
    save_file(trained, tmp_path / "esd.safetensors")
    capsys.readouterr()
    command = ["import", model, tmp_path / "esd.safetensors", "-o", tmp_path / "esd-map.safetensors"]
    run(*command, code=1)
    err = capsys.readouterr().err
    assert "warning: no eraser explains" in err and "error: nothing written, as the file is more than an eraser" in err
    assert not (tmp_path / "esd-map.safetensors").exists()
    run(*command, "--approximate")
    assert rece.Eraser.load(tmp_path / "esd-map.safetensors").provenance["recovered"]["exact"] is False


def test_certify_prints_what_the_library_proves(model, dog, capsys):
    run("certify", model, dog, "dog", "--others", "sun", "cup", "--synonyms", "puppy")
    out = capsys.readouterr().out
    made = rece.certify(loading.load(model), rece.Eraser.load(dog), "dog", others=["sun", "cup"], synonyms=["puppy"])
    (word,) = made.words.itertuples()
    assert f"{word.distance:.4g}" in out and f"{word.synonym:.4g}" in out and word.nearest in out
    assert f"passed: {'yes. No prompt' if made.passed else 'no. That no prompt'}" in out
    run("certify", model, dog)
    assert f"{word.distance:.4g}" in capsys.readouterr().out
    run("certify", model, "dog", "sun")
    out = capsys.readouterr().out
    assert "passed" not in out and "dog" in out and "sun" in out


INVERTIBLE = "Some embedding is answered exactly as a concept was"


def test_certify_says_what_any_embedding_reaches(model, guarded, tmp_path, capsys):
    """0 after an invertible edit; the guard after a guarded one, and what is left of it in the dtype of the file."""
    pipe, eraser = loading.load(model, dtype="bfloat16"), rece.Eraser.load(guarded)
    made = rece.certify(pipe, eraser, "dog", shipped="bfloat16")
    (word,) = made.words.itertuples()
    run("certify", model, guarded, "--dtype", "bfloat16")
    out = capsys.readouterr().out
    assert f"{word.embedding:.4g}" in out and f"{word.shipped:.4g}" in out and INVERTIBLE not in out
    assert all(f"\n{column}: no " in out for column in ("distance", "embedding", "shipped"))
    shares = f"distance {made.relative:.3g}, embedding {made.guarded:.3g}, shipped {word.shipped / word.target:.3g}"
    assert f"share: of the distance to the target, at least: {shares}." in out
    run(
        "erase", model, "dog", "--rounds", 1, "--start-lamb", 5, "--lamb", 2, "-o", tmp_path / "invertible.safetensors"
    )
    capsys.readouterr()
    run("certify", model, tmp_path / "invertible.safetensors")
    assert f"{INVERTIBLE}: the map is invertible." in capsys.readouterr().out
    run("certify", model, "dog")
    out = capsys.readouterr().out
    assert f"{INVERTIBLE}: nothing was edited." in out and "shipped" not in out


def test_certify_reads_weights_and_loras_as_they_are_shipped(model, guarded, tmp_path, capsys):
    pipe, eraser = loading.load(model), rece.Eraser.load(guarded)
    export.save_weights(eraser, pipe, tmp_path / "own.safetensors")
    export.save_folder(eraser, pipe, tmp_path / "lora")
    draw = torch.Generator().manual_seed(0)
    other = {
        name: W + 0.1 * torch.randn(W.shape, generator=draw)
        for name, W in load_file(tmp_path / "own.safetensors").items()
    }
    torch.save(other, tmp_path / "esd.pt")
    layers = {name.removesuffix(".weight"): W for name, W in other.items()}
    for file, shipped, concepts in (
        ("own.safetensors", "float32", []),
        ("lora", "float64", []),
        ("lora/pytorch_lora_weights.safetensors", "float64", ["dog", "cat"]),
        ("esd.pt", layers, ["dog"]),
    ):
        run("certify", model, tmp_path / file, *concepts)
        out = capsys.readouterr().out
        edit = None if isinstance(shipped, dict) else eraser
        words = rece.certify(pipe, edit, concepts or ["dog"], shipped=shipped).words
        for word in words.itertuples():
            told = re.search(rf"\n *{word.concept} +(\S+) +(\S+)\n", out).groups()
            assert [*map(float, told)] == pytest.approx([word.shipped, word.target], rel=1e-3)
        assert "embedding:" not in out and "distance:" not in out and "shipped: no embedding up to ten" in out
        least = float(re.search("at least: shipped (.*)\\.\n", out)[1])
        assert least == pytest.approx((words.shipped / words.target).min(), rel=1e-2) and "got round" not in out


def test_certify_of_weights_that_change_nothing_says_so(model, tmp_path, capsys):
    pipe = loading.load(model)
    export.save_weights(rece.Eraser(torch.eye(32)), pipe, tmp_path / "same.safetensors")
    run("certify", model, tmp_path / "same.safetensors", "dog")
    assert "Some embedding is answered as a concept was: these weights can be got round." in capsys.readouterr().out


def test_certify_tells_files_from_concepts(model, tmp_path, fails, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dog").mkdir()
    for missing in ("esd.pt", "none.safetensors"):
        assert f"no file at {missing}" in fails("certify", model, missing, "dog")
    assert "holds no pytorch_lora_weights.safetensors" in fails("certify", model, model, "dog")
    assert "holds no pytorch_lora_weights.safetensors" in fails("certify", model, tmp_path / "dog", "dog")
    run("certify", model, "dog")  # a folder of that name is no file
    assert INVERTIBLE in capsys.readouterr().out
    save_file({"down.weight": torch.eye(2)}, "misspelt.safetensors")
    assert "has no weight named 'down.weight'" in fails("certify", model, "misspelt.safetensors", "dog")
    save_file({"map": torch.eye(2)}, "list.safetensors", {"rece": "[]"})
    assert "CONCEPT must be given" in fails("certify", model, "list.safetensors")
    save_file({"map": torch.eye(2)}, "deep.safetensors", {"rece": "[" * 10**5})
    assert "is not a whole safetensors file" in fails("certify", model, "deep.safetensors", "dog")


def test_certify_of_families_without_a_bound_for_prompts(tmp_path, capsys):
    tiny.sdxl().save_pretrained(tmp_path / "xl")
    run("guard", tmp_path / "xl", "dog", "-o", tmp_path / "e.safetensors", "--preserve", "cat")
    capsys.readouterr()
    run("certify", tmp_path / "xl", tmp_path / "e.safetensors")
    out = capsys.readouterr().out
    made = rece.certify(loading.load(tmp_path / "xl"), rece.Eraser.load(tmp_path / "e.safetensors"), "dog")
    assert "distance:" not in out and f"{made.words.embedding.item():.4g}" in out and INVERTIBLE not in out


def test_show_needs_no_model(model, dog, tmp_path, capsys):
    eraser, pipe = rece.Eraser.load(dog), loading.load(model)
    run("show", dog)
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    for name, value in {"width": 32, "rank": eraser.rank, "relative": False, "base_model": "tiny-model"}.items():
        assert [name, str(value)] in lines
    assert "'dog' → ' '" in out and f"torch {metadata.version('torch')}" in out and ["pooled", "map", "none"] in lines
    rece.Eraser(torch.eye(2), pooled=torch.eye(3)).save(tmp_path / "pooled.safetensors")
    (eraser @ eraser).save(tmp_path / "two.safetensors")
    eraser.save_lora(tmp_path, pipe=pipe)
    rece.Eraser(torch.eye(2), {"concepts": ["nurse"], "attributes": ["a", "b"]}).save(tmp_path / "fair.safetensors")
    export.save_folder(eraser, pipe, tmp_path / "whole", "pipeline")
    export.save_folder(eraser, pipe, tmp_path / "lora")
    for name, words in {
        "two.safetensors": ["edit 1", "edit 2"],
        "pooled.safetensors": ["pooled map  width 3"],
        "pytorch_lora_weights.safetensors": ["LoRA", "lora_rank", "'dog'"],
        "fair.safetensors": ["'nurse'", "'a', 'b'"],
        "whole": ["edited pipeline", "'dog' → ' '"],
        "lora": ["LoRA", "'dog' → ' '"],
    }.items():
        run("show", tmp_path / name)
        out = capsys.readouterr().out
        assert all(word in out for word in words)
    run("erase", tmp_path / "whole", "cat", "--rounds", 0, "-o", tmp_path / "c.safetensors")
    assert "holds a model that was edited before" in capsys.readouterr().err


def test_nothing_is_overwritten_without_force_and_nothing_is_loaded_before(model, dog, tmp_path, fails, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("loaded the model first"))
    before = dog.read_bytes()
    for name in ("full", "x.safetensors"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for words, output, message in (
        (["erase", model, "cat"], dog, "dog.safetensors exists"),
        (["lora", model, dog], tmp_path / "full", "full exists"),
        (["weights", model, dog, "--force"], tmp_path / "x.safetensors", "is a folder: choose"),
        (["apply", model, dog, "--force"], dog, "is a file: choose"),
        (["erase", model, "cat"], tmp_path / "e.pt", "ends in .safetensors"),
        (["apply", model, tmp_path / "no"], tmp_path / "y", "no eraser file at"),
    ):
        assert message in fails(*words, "-o", output)
    monkeypatch.undo()
    assert dog.read_bytes() == before
    run("erase", model, "cat", "-o", dog, "--force")
    assert rece.Eraser.load(dog).provenance["concepts"] == ["cat"]


MISTAKES = {
    "erase {tmp}/none dog": "MODEL: there is no folder '.*none'$",
    "erase owner/name dog": "there is no folder 'owner/name'; .* with --revision",
    "erase owner/name dog --revision main": "revision must be its full commit hash",
    "erase owner/name dog --revision {hash}": "cannot be loaded: .*HF_HUB_OFFLINE is set",
    "erase {model} dog --revision {hash}": "revision belongs to hub ids",
    "erase {tmp} dog": "lies in .*, which the command reads",
    "erase {model} dog --device toaster": "device must be one that this machine has",
    "erase {model} ' '": "concept must be a text",
    "erase {model} dog --rounds few": "rounds must be a whole number, 0 or more, or",
    "erase {model} dog --rounds ²": "rounds must be a whole number, 0 or more, or",
    "erase {model} dog --rounds 2.5": "rounds must be a whole number, 0 or more, or",
    "erase {model} dog --rounds true": "rounds must be a whole number, 0 or more, or",
    "erase {model} dog --lamb -1": "lamb must be a positive number, not -1.0",
    "erase {model} dog --set each.lamb=true": "lamb must be a positive number, not True",
    "erase {model} dog --target a b": "2 targets for 1 concepts",
    "erase {model} dog --lamb 1 --set each.lamb=2": "each.lamb is given twice",
    "erase {model} dog --set pooled=maybe": "pooled must be true or false, not 'maybe'",
    "erase {model} dog --set target=5": "target must be a text or a list of texts, not 5",
    "erase {model} dog --set start.tokens=lst": 'start.tokens must be "rest" or "last"',
    "erase {model} dog --set preserve=[a": r"'\[a' is no YAML value",
    "erase {model} dog --set each.reg=!!python/name:os.system": "is no YAML value",
    "erase {model} dog --preserve-file {tmp}/no": "No such file",
    "import {model} {tmp}/no.safetensors": "no weights file at",
    "guard {tmp}/none dog": "MODEL: there is no folder '.*none'$",
    "guard {model} ' '": "concept must be a text",
    "guard {model} dog --mu 0": "mu must be a positive number, not 0.0",
    "guard {model} dog --mu nan": "mu must be a positive number, not nan",
    "guard {model} dog bus --synonyms puppy": "--synonyms are those of one concept",
    "guard {model} dog --target a b": "2 targets for 1 concepts",
    "guard {model} dog --preserve-file {tmp}/no": "No such file",
    "erase {model} d\udcffg": r"concept: 'd\\udcffg' holds '\\udcff', an invisible character: leave it out",
}


def test_bytes_that_are_no_text_are_no_prompt(model, tmp_path, fails):
    line = fails("draw", model, "d\udcffg", "-o", tmp_path / "out.png")
    assert "prompt: 'd\\udcffg' holds bytes that are no text in UTF-8" in line


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(model, tmp_path, fails, command):
    words = shlex.split(command.format(tmp=tmp_path, model=model, hash="0" * 40))
    line = fails(*words, "-o", tmp_path / "out.safetensors")
    assert re.search(MISTAKES[command], line.strip()), line
    assert os.listdir(tmp_path) == []


def test_files_that_are_not_ours_are_told(tmp_path, model, fails):
    save_file({"map": torch.eye(2)}, tmp_path / "a.safetensors")
    (tmp_path / "list.safetensors").write_bytes(b"x" * 100)
    save_file({"map": torch.eye(2)}, tmp_path / "five.safetensors", {"rece": "5"})
    save_file({"map": torch.eye(2)}, tmp_path / "deep.safetensors", {"rece": "[" * 10**5})
    for name in ("a", "list", "five", "deep"):
        assert "is no file of ours" in fails("show", tmp_path / f"{name}.safetensors")
    assert "is no folder of" in fails("show", model)
    assert "no file at" in fails("show", tmp_path / "b.safetensors")
    rece.Eraser(torch.eye(32)).save(tmp_path / "c.safetensors")
    assert "CONCEPT must be given" in fails("certify", model, tmp_path / "c.safetensors")


def test_numbers_of_set_are_read_as_python_reads_them(erased):
    made = erased("dog", "--rounds", 0, "--set", "each.erase_scale=1e-3", "start.lamb=2").provenance
    assert made["each"]["erase_scale"] == 1e-3 and made["start"]["lamb"] == 2 and made["rounds"] == 0


def test_a_list_is_repeated_or_in_one_go_and_ends_at_the_next_option(erased):
    forms = (
        ["dog", "--preserve", "a", "b"],
        ["--preserve", "a", "--preserve", "b", "--", "dog"],
        ["dog", "--preserve=a", "b"],
    )
    for words in forms:
        made = erased("--rounds", 0, *words).provenance
        assert made["preserve"] == ["a", "b"] and made["concepts"] == ["dog"]


def test_certify_reads_changed_weights_and_says_that_hooks_have_none(model, tmp_path, fails, capsys):
    for method in ("speed", "sld"):
        run("erase", model, "dog", "--method", method, "-o", tmp_path / f"{method}.safetensors")
    assert main(["certify", str(model), str(tmp_path / "speed.safetensors"), "dog"]) == 0
    assert "shipped" in capsys.readouterr().out
    assert "holds hooks, which act while the model runs" in fails(
        "certify", model, tmp_path / "sld.safetensors", "dog"
    )


def test_a_composed_eraser_says_what_its_parts_erase(model, tmp_path, pipe, capsys):
    both = rece.erase(pipe, "dog", target="cat", rounds=0) @ rece.erase(pipe, "bus", rounds=0)
    both.save(tmp_path / "both.safetensors")
    assert main(["certify", str(model), str(tmp_path / "both.safetensors")]) == 0
    assert re.search(r"\bdog\b(.|\n)*\bbus\b", capsys.readouterr().out)


def test_a_long_prompt_is_drawn(model, tmp_path):
    words = ["draw", str(model), "a dog " * 70, "-o", str(tmp_path / "a.png"), "--steps", "1", "--quiet"]
    assert main(words) == 0 and (tmp_path / "a.png").is_file()


def test_texts_to_keep_are_utf8_with_or_without_a_mark(model, tmp_path, erased, fails):
    (tmp_path / "kept.txt").write_bytes("\ufeffcat\n".encode())
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes("Café".encode("latin-1"))
    command = ["erase", model, "dog", "-o", tmp_path / "e.safetensors", "--preserve-file"]
    assert "holds no text" in fails(*command, tmp_path / "empty.txt")
    assert "is not a UTF-8 text file" in fails(*command, tmp_path / "latin.txt")
    made = erased("dog", "--rounds", 0, "--preserve-file", tmp_path / "kept.txt")
    assert made.provenance["preserve"] == ["cat"]


def test_an_output_that_is_an_input_is_refused(model, dog, fails):
    before = dog.read_bytes()
    for command in (
        ["apply", model, dog, "-o", model],
        ["weights", model, dog, "-o", dog],
        ["weights", model, dog, "-o", model / "unet" / "diffusion_pytorch_model.safetensors"],
    ):
        assert "which the command reads" in fails(*command, "--force")
    assert "is not part of this export" in fails("lora", model, dog, "-o", dog.parent, "--force")
    assert dog.read_bytes() == before


def test_a_file_cannot_steer_the_terminal(tmp_path, capsys, fails):
    note = {"rece": '{"a\\u001b[31m": "line\\nlamb 0.1 \\u001b]0;x\\u0007"}'}
    save_file({"map": torch.eye(2, dtype=torch.float64)}, tmp_path / "evil.safetensors", note)
    run("show", tmp_path / "evil.safetensors")
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\\x1b[31m" in out and "line\\nlamb" in out
    assert "\\x1b" in fails("show", tmp_path / "\x1b[31m")


def test_unexpected_errors_are_one_line_that_names_them(fails, monkeypatch):
    monkeypatch.setattr(show, "rows", lambda _: {}["key"])
    assert fails("show", "file") == "KeyError: 'key' (--debug shows where)\n"


def test_debug_shows_the_traceback_and_usage_errors_are_two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        run("show", "b.safetensors", "--debug")
    for command in (
        "",
        "erase",
        "erase model dog",
        "nonsense",
        "lora a b -o c --rank x",
        "erase model dog -o x.safetensors --dtype int8",
        "guard model dog",
        "guard model dog -o x.safetensors --rank 0",
        "guard model dog -o x.safetensors --oblique 1.5",
        "guard model dog -o x.safetensors --mu much",
        "draw model a.csv -o x --part 3/2",
        "draw model a.csv -o x --part 1/2 --workers 2",
        "draw model a.csv -o x --seed 2",
        "draw model dog -o x.png --workers 2",
    ):
        run(*command.split(), code=2)
    assert os.listdir(tmp_path) == []


def heavy(*words, code=0):
    """Which heavy modules a run of the command imports; its exit code must be `code`."""
    names = ("torch", "diffusers", "transformers", "pandas", "rich")
    program = f"import sys, rece.__main__ as m\nassert m.main(sys.argv[1:]) == {code}\n"
    program += f"print('\\nheavy:', *[name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("heavy:")[1].split()


def test_help_show_and_version_import_nothing_heavy(dog):
    for words in (["--help"], ["draw", "--help"], ["--version"], ["show", dog]):
        assert heavy(*words) == []
    shown = subprocess.run([sys.executable, "-m", "rece", "lora"], capture_output=True, text=True)
    assert shown.returncode == 2 and "MODEL" in shown.stderr


def test_wrong_settings_are_refused_before_anything_heavy_is_imported(tmp_path):
    command = ["erase", "data/emoji-difusion", "dog", "-o", tmp_path / "e.safetensors"]
    for wrong in (["--set", "start.tokns=last"], ["--set", "each.lamb=0"], ["--rounds", "few"], []):
        assert heavy(*command, *wrong, code=1) == []
    for wrong in (["--mu", "0"], ["bus", "--synonyms", "puppy"], []):
        assert heavy("guard", *command[1:], *wrong, code=1) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command, capsys):
    run(command, "--help")
    assert f"Example:\n    rece {command} " in capsys.readouterr().out


def test_version_and_commands_are_told(capsys, monkeypatch):
    run("--version")
    assert capsys.readouterr().out.strip() == metadata.version("rece")

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    run("--version")
    assert "is not installed" in capsys.readouterr().out
    run("--help")
    out = capsys.readouterr().out
    assert all(word in out for word in [*COMMANDS, "--show-completion", "130 interrupted"])


def test_draw_makes_one_picture_of_one_prompt(model, dog, tmp_path, capsys, fails):
    out = tmp_path / "new" / "dog.png"
    command = ["draw", model, "a dog", "-o", out, "--steps", 2, "--guidance", 4]
    run(*command, "--seed", 3, "--eraser", dog)
    assert capsys.readouterr().out == f"{out}\n" and os.listdir(out.parent) == ["dog.png"]
    pipe = loading.load(model, eraser=dog)
    expected = images.generate(pipe, ["a dog"], [3], steps=2, guidance=4.0, batch_size=1)[0]
    assert np.array_equal(np.asarray(Image.open(out)), expected)
    assert "dog.png exists" in fails(*command)
    run(*command, "--force")
    assert not np.array_equal(np.asarray(Image.open(out)), expected)
    assert "ends in .png, not" in fails(*command[:3], "-o", tmp_path / "folder")


@pytest.fixture
def prompts(tmp_path):
    """A file of six prompts with a blank line."""
    (tmp_path / "prompts.csv").write_text("prompt,seed\n\n" + "".join(f"a dog,{seed}\n" for seed in range(6)))
    return tmp_path / "prompts.csv"


def test_draw_makes_a_folder_of_a_table(model, prompts, tmp_path, capsys, fails, monkeypatch):
    asked = []
    monkeypatch.setattr(images, "draw", lambda *given, **keywords: asked.append((given, keywords)))
    command = ["draw", model, prompts, "-o", tmp_path / "out"]
    run(*command)
    run(*command, *"--part 2/3 --steps 7 --batch-size 4 --bf16 --quiet".split())
    assert "note: " in capsys.readouterr().err
    (pipe, table, folder), keywords = asked[0]
    assert list(table.seed) == list(range(6)) and folder == tmp_path / "out" and pipe.unet is not None
    assert keywords == dict(steps=50, guidance=7.5, batch_size=8, bf16=False, part=(1, 1), progress=True)
    assert asked[1][1] == dict(steps=7, guidance=7.5, batch_size=4, bf16="auto", part=(2, 3), progress=False)
    assert "must be a folder" in fails(*command[:3], "-o", tmp_path / "x.png")
    assert "is missing" in fails("draw", model, "none.csv", "-o", tmp_path / "out")


def test_draw_that_is_stopped_goes_on_to_the_same_files(model, prompts, tmp_path, capfd, monkeypatch):
    generate, asked = images.generate, []

    def drawn(folder, sign=None):
        """Runs the command. The signal comes when it begins to draw its second batch.

        A process in the background begins with SIGINT ignored.
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def counting(*given, seeds, **settings):
            asked.append(seeds)
            if sign and len(asked) == 2:
                os.kill(os.getpid(), sign)
            return generate(*given, seeds=seeds, **settings)

        asked.clear()
        monkeypatch.setattr(images, "generate", counting)
        command = f"draw {model} {prompts} --steps 1 --batch-size 2 --quiet --device cpu -o {tmp_path / folder}"
        return main(command.split())

    def ended(folder, *signs):
        """The exit codes of processes that run the command at the same time."""
        processes = [get_context("fork").Process(target=lambda one=one: sys.exit(drawn(folder, one))) for one in signs]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]

    def bits(folder):
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir() if path.name[0] != "."}

    assert drawn("whole") == 0 and asked == [[0, 1], [2, 3], [4, 5]]
    signs = {"killed": (signal.SIGKILL, -9), "ended": (signal.SIGTERM, 130), "interrupted": (signal.SIGINT, 130)}
    for folder, (sign, code) in signs.items():
        assert ended(folder, sign) == [code] and sorted(bits(folder)) == ["0.png", "1.png", "run.json"]
        err = capfd.readouterr().err
        assert drawn(folder) == 0 and asked == [[2, 3], [4, 5]] and bits(folder) == bits("whole")
    assert err.endswith("interrupted: run the same command again\n") and "Traceback" not in err
    assert ended("two", None, None) == [0, 0] and bits("two") == bits("whole")


def test_draw_shares_a_table_among_workers(model, prompts, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    asked = []

    class Client:
        def __init__(self, cluster=None, scheduler_file=None):
            asked.append((cluster, scheduler_file))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def scheduler_info(self, n_workers):
            return {"workers": {"a": 1, "b": 2, "c": 3}}

    def draw_parts(load, table, folder, client, parts, **settings):
        asked.append((load["model"], len(table), folder, parts, settings["batch_size"]))

    monkeypatch.setattr(distributed, "Client", Client)
    monkeypatch.setattr(cluster, "local_cluster", nullcontext)
    monkeypatch.setattr(cluster, "draw_parts", draw_parts)
    run("draw", model, prompts, "-o", tmp_path / "out", "--workers", 2)
    run("draw", model, prompts, "-o", tmp_path / "out", "--scheduler-file", "file")
    drawn = [(str(model), 6, tmp_path / "out", parts, 8) for parts in (8, 12)]
    assert asked == [(2, None), drawn[0], (None, "file"), drawn[1]]


def test_push_uploads_privately_unless_told_otherwise(tmp_path, capsys, fails, monkeypatch):
    asked = []

    def push_to_hub(*given, **keywords):
        asked.append((given, keywords))
        return "https://hub/commit"

    assert "has no README.md" in fails("push", tmp_path, "me/dog")
    (tmp_path / "README.md").write_text("card")
    assert "HF_HUB_OFFLINE is set" in fails("push", tmp_path, "me/dog")
    monkeypatch.setattr(export, "push_to_hub", push_to_hub)
    run("push", tmp_path, "me/dog")
    run("push", tmp_path, "me/dog", "--public", "--branch", "v1")
    assert capsys.readouterr().out == "https://hub/commit\n" * 2
    assert asked == [
        ((tmp_path, "me/dog"), {"private": True, "revision": None}),
        ((tmp_path, "me/dog"), {"private": False, "revision": "v1"}),
    ]


def test_erase_by_a_method_of_another_kind(model, tmp_path, capsys, fails, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(  # a worker in this process; test_cluster has workers in their own
        cluster,
        "local_cluster",
        lambda n: distributed.LocalCluster(n_workers=n, threads_per_worker=1, processes=False, dashboard_address=None),
    )
    file, numbers = tmp_path / "esd.safetensors", ["--set", "iterations=1", "steps=2", "lr=1e-4"]
    run("erase", model, "dog", "--method", "esd_x", *numbers, "-o", file)
    made = Edit.load(file)
    expected = methods.run("esd_x", loading.load(model), "dog", iterations=1, steps=2, lr=1e-4)
    assert made.provenance == expected.provenance
    assert all(torch.equal(change, expected.changes[name]) for name, change in made.changes.items())
    run("show", file)
    assert "changes of weights" in capsys.readouterr().out
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,seed\na dog,0\n", encoding="utf-8")
    run("draw", model, table, "--eraser", file, "--steps", 1, "--quiet", "-o", tmp_path / "drawn")
    run("draw", model, table, "--eraser", file, "--steps", 1, "--quiet", "--workers", 1, "-o", tmp_path / "shared")
    shared, drawn = ((tmp_path / folder / "0.png").read_bytes() for folder in ("shared", "drawn"))
    run("draw", model, table, "--steps", 1, "--quiet", "-o", tmp_path / "original")
    assert shared == drawn != (tmp_path / "original" / "0.png").read_bytes()
    assert "is no map" in fails("apply", model, file, "-o", tmp_path / "folder")
    given = ["erase", model, "dog", "-o", tmp_path / "x.safetensors", "--method"]
    assert "rounds: method esd_x takes no such keyword; it takes target" in fails(*given, "esd_x", "--rounds", 2)
    assert "method must be one of adavd" in fails(*given, "esd_q")
    run(*given, "uce", "--start-lamb", 5)
    assert rece.Eraser.load(tmp_path / "x.safetensors").provenance["start"]["lamb"] == 5


def test_a_preset_is_named_and_what_is_given_goes_before_it(model, tmp_path, capsys, fails):
    file = tmp_path / "e.safetensors"
    run("erase", model, "dog", "--preset", "sd1-style", "--set", "each.lamb=0.5", "rounds=0", "-o", file)
    made, expected = rece.Eraser.load(file), {"lamb": 0.5, "erase_scale": 1.0, "preserve_scale": 1.0, "tokens": "rest"}
    assert "note: preset sd1-style: RECE's code, for an artist" in capsys.readouterr().err
    assert made.provenance["target"] == ["art"] and made.provenance["rounds"] == 0
    assert made.provenance["start"] | expected | {"preserve_scale": 0.1} == made.provenance["start"]
    assert (made.provenance["each"]["lamb"], made.provenance["each"]["derive_lamb"]) == (0.5, 0.001)
    assert "--preset must be one of sd1-nudity," in fails(
        "erase", model, "dog", "--preset", "best", "-o", tmp_path / "x.safetensors"
    )


def test_erase_says_what_is_left_and_notices_a_typo(tmp_path, capsys):
    for word in ("dog", "dgo"):
        run("erase", ROOT / "data/emoji-diffusion", word, "--relative", "-o", tmp_path / f"{word}.safetensors")
    said = capsys.readouterr()
    assert "left: 'dog' 0." in said.out and "drift: other texts move 0." in said.out
    assert (
        re.search(r"note: 'dgo' is read in \d pieces. Near to it, .*'dog' ", said.err)
        and "'dog' is read" not in said.err
    )
    report = rece.Eraser.load(tmp_path / "dog.safetensors").provenance["report"]
    assert list(report["left"]) == ["dog"] and len(report["moved"]) == 5 and 0 < report["drift"] < 1
