"""The command line: what the library does, one line per mistake, nothing overwritten, nothing loaded too early."""

import inspect
import os
import re
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import rece
from rece import loading
from rece.__main__ import main
from rece.sharing import export

COMMANDS = ["erase", "apply", "lora", "weights", "import", "certify", "draw", "push", "show"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny pipeline's folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny-model"
    tiny.sd().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def dog(model, tmp_path, capsys):
    """An eraser file of "dog" for the tiny pipeline."""
    assert main(["erase", model, "dog", "-o", str(tmp_path / "dog.safetensors")]) == 0
    capsys.readouterr()
    return tmp_path / "dog.safetensors"


def fails(arguments, capsys):
    """The one line that a failing command prints, without its start."""
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and out == ""
    return err.removeprefix("error: ")


def test_erase_is_the_librarys(model, dog):
    loaded = loading.load(model)
    expected = rece.erase(loaded, "dog")
    found = rece.Eraser.load(dog)
    assert torch.equal(found.map, expected.map) and found.provenance == expected.provenance


def test_every_option_of_erase_arrives(model, tmp_path):
    (tmp_path / "kept.txt").write_text("sun\n\nmoon \n", encoding="utf-8")
    command = ["erase", model, "dog", "big cat", "-o", str(tmp_path / "new" / "e.safetensors"), "--dtype", "float64"]
    command += ["--target", "animal", " ", "--preserve", "cup", "--preserve-file", str(tmp_path / "kept.txt")]
    command += ["--rounds", "2", "--lamb", "0.2", "--preserve-scale", "0.3", "--derive-lamb", "0.4", "--uce-lamb", "5"]
    command += ["--anchored", "--relative", "--set", "reg=target", "erase_scale=2", "--set", "preserve_uce=[a, b]"]
    command += ["uce_tokens=last", "pooled=false"]
    assert main(command) == 0
    expected = rece.erase(
        loading.load(model, dtype="float64"),
        ["dog", "big cat"],
        target=["animal", " "],
        preserve=["cup", "sun", "moon"],
        rounds=2,
        lamb=0.2,
        preserve_scale=0.3,
        derive_lamb=0.4,
        uce_lamb=5.0,
        anchored=True,
        relative=True,
        reg="target",
        erase_scale=2,
        preserve_uce=["a", "b"],
        uce_tokens="last",
        pooled=False,
    )
    found = rece.Eraser.load(tmp_path / "new" / "e.safetensors")
    assert torch.equal(found.map, expected.map) and found.provenance == expected.provenance


def test_rounds_auto_and_its_others(model, tmp_path):
    command = ["erase", model, "dog", "-o", str(tmp_path / "e.safetensors"), "--rounds", "auto", "--others", "sun"]
    assert main([*command, "--anchored"]) == 0
    expected = rece.erase(loading.load(model), "dog", rounds="auto", others=["sun"], anchored=True)
    assert torch.equal(rece.Eraser.load(tmp_path / "e.safetensors").map, expected.map)


def test_set_knows_every_keyword_of_erase(model, tmp_path, capsys):
    known = fails(["erase", model, "dog", "-o", str(tmp_path / "e.safetensors"), "--set", "lambda=1"], capsys)
    keywords = [name for name, one in inspect.signature(rece.erase).parameters.items() if one.kind is one.KEYWORD_ONLY]
    assert keywords and all(name in known for name in keywords) and "not 'lambda=1'" in known


def test_apply_writes_a_whole_pipeline(model, dog, tmp_path, capsys):
    command = ["apply", model, str(dog), "-o", str(tmp_path / "out"), "--licence", "mit", "--base-model", "a/b"]
    assert main(command) == 0
    edited, pipe = loading.load(tmp_path / "out"), loading.load(model)
    rece.Eraser.load(dog).apply(pipe)
    for name, W in edited.unet.state_dict().items():
        assert torch.equal(W, pipe.unet.state_dict()[name])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "base_model: a/b" in card


def test_lora_and_weights(model, dog, tmp_path, capsys):
    assert main(["lora", model, str(dog), "-o", str(tmp_path / "lora"), "--rank", "3"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("warning: rank 3 of ") and err.count("\n") == 1
    assert sorted(os.listdir(tmp_path / "lora")) == ["README.md", "pytorch_lora_weights.safetensors"]
    assert "# tiny-model without dog" in (tmp_path / "lora" / "README.md").read_text()
    assert main(["weights", model, str(dog), "-o", str(tmp_path / "uce.safetensors")]) == 0
    pipe = loading.load(model)
    export.save_weights(rece.Eraser.load(dog), pipe, tmp_path / "own.safetensors")
    assert (tmp_path / "uce.safetensors").read_bytes() == (tmp_path / "own.safetensors").read_bytes()


def test_import_finds_the_eraser_and_refuses_what_is_none(model, dog, tmp_path, capsys):
    assert main(["weights", model, str(dog), "-o", str(tmp_path / "uce.safetensors")]) == 0
    assert main(["import", model, str(tmp_path / "uce.safetensors"), "-o", str(tmp_path / "back.safetensors")]) == 0
    back, own = (rece.Eraser.load(tmp_path / name).map for name in ("back.safetensors", "dog.safetensors"))
    assert (back - own).norm() < 1e-3 * (own - torch.eye(32)).norm()
    weights = load_file(tmp_path / "uce.safetensors")
    draw = torch.Generator().manual_seed(0)
    trained = {name: W + torch.randn(W.shape, generator=draw) for name, W in weights.items()}
    save_file(trained, tmp_path / "esd.safetensors")
    capsys.readouterr()
    command = ["import", model, str(tmp_path / "esd.safetensors"), "-o", str(tmp_path / "esd-map.safetensors")]
    assert main(command) == 1
    err = capsys.readouterr().err
    assert "warning: no eraser explains" in err and "error: nothing written, as the file is more than an eraser" in err
    assert not (tmp_path / "esd-map.safetensors").exists()
    assert main([*command, "--approximate"]) == 0
    assert rece.Eraser.load(tmp_path / "esd-map.safetensors").provenance["recovered"]["exact"] is False


def test_certify_prints_what_the_library_proves(model, dog, capsys):
    assert main(["certify", model, str(dog), "dog", "--others", "sun", "cup", "--synonyms", "puppy"]) == 0
    out = capsys.readouterr().out
    made = rece.certify(loading.load(model), rece.Eraser.load(dog), "dog", others=["sun", "cup"], synonyms=["puppy"])
    (word,) = made.words.itertuples()
    assert f"{word.distance:.4g}" in out and f"{word.synonym:.4g}" in out and word.nearest in out
    assert f"passed: {'yes' if made.passed else 'no'}" in out
    assert main(["certify", model, str(dog)]) == 0
    assert f"{word.distance:.4g}" in capsys.readouterr().out
    assert main(["certify", model, "dog", "sun"]) == 0
    out = capsys.readouterr().out
    assert "passed" not in out and "dog" in out and "sun" in out


def test_show_needs_no_model(model, dog, tmp_path, capsys):
    assert main(["show", str(dog)]) == 0
    out = capsys.readouterr().out
    eraser = rece.Eraser.load(dog)
    for name, value in {"width": 32, "rank": eraser.rank, "lamb": 0.1, "base_model": "tiny-model"}.items():
        assert any(line.split() == [name, str(value)] for line in out.splitlines())
    assert "'dog' → ' '" in out and f"torch {torch.__version__}" in out
    assert ["pooled", "map", "none"] in [line.split() for line in out.splitlines()]
    rece.Eraser(torch.eye(2), pooled=torch.eye(3)).save(tmp_path / "pooled.safetensors")
    (eraser @ eraser).save(tmp_path / "two.safetensors")
    eraser.save_lora(tmp_path, pipe=loading.load(model))
    rece.Eraser(torch.eye(2), {"concepts": ["nurse"], "attributes": ["a", "b"]}).save(tmp_path / "fair.safetensors")
    for name, words in {
        "two.safetensors": ["edit 1", "edit 2"],
        "pooled.safetensors": ["pooled map  width 3"],
        "pytorch_lora_weights.safetensors": ["LoRA", "lora_rank", "'dog'"],
        "fair.safetensors": ["'nurse'", "'a', 'b'"],
    }.items():
        assert main(["show", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words)


def test_nothing_is_overwritten_without_force_and_nothing_is_loaded_before(model, dog, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("loaded the model first"))
    before = dog.read_bytes()
    assert "dog.safetensors exists" in fails(["erase", model, "cat", "-o", str(dog)], capsys)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    assert "full exists" in fails(["lora", model, str(dog), "-o", str(full)], capsys)
    (tmp_path / "x.safetensors").mkdir()
    assert "is a folder: choose" in fails(["weights", model, str(dog), "-o", str(tmp_path / "x.safetensors")], capsys)
    assert "is a file: choose" in fails(["apply", model, str(dog), "-o", str(dog), "--force"], capsys)
    assert "ends in .safetensors" in fails(["erase", model, "cat", "-o", str(tmp_path / "e.pt")], capsys)
    assert "no eraser file at" in fails(["apply", model, str(tmp_path / "no"), "-o", str(tmp_path / "y")], capsys)
    monkeypatch.undo()
    assert dog.read_bytes() == before
    assert main(["erase", model, "cat", "-o", str(dog), "--force"]) == 0
    assert rece.Eraser.load(dog).provenance["concepts"] == ["cat"]


MISTAKES = {
    "no folder": (["erase", "{tmp}/none", "dog"], "there is no folder '.*none', and it is no hub id"),
    "no revision": (
        ["erase", "owner/name", "dog"],
        "revision must be the full commit hash .* or is the folder missing",
    ),
    "a branch": (["erase", "owner/name", "dog", "--revision", "main"], "revision must be the full commit hash"),
    "offline": (["erase", "owner/name", "dog", "--revision", "0" * 40], "cannot be loaded: .*HF_HUB_OFFLINE is set"),
    "folder and revision": (["erase", "{model}", "dog", "--revision", "0" * 40], "revision belongs to hub ids"),
    "no pipeline": (["erase", "{tmp}", "dog"], "holds no model_index.json"),
    "dtype": (["erase", "{model}", "dog", "--dtype", "int8"], "dtype must be one of float32"),
    "device": (["erase", "{model}", "dog", "--device", "toaster"], "device must be one of torch's"),
    "blank": (["erase", "{model}", " "], "concept must be a text"),
    "rounds": (["erase", "{model}", "dog", "--rounds", "few"], "rounds must be a whole number, 0 or more, or"),
    "lamb": (["erase", "{model}", "dog", "--lamb", "-1"], "lamb must be a positive finite number"),
    "targets": (["erase", "{model}", "dog", "--target", "a", "b"], "2 targets for 1 concepts"),
    "twice": (["erase", "{model}", "dog", "--lamb", "1", "--set", "lamb=2"], "--set lamb is given by --lamb too"),
    "preserve file": (["erase", "{model}", "dog", "--preserve-file", "{tmp}/no"], "No such file"),
    "weights": (["import", "{model}", "{tmp}/no.safetensors"], "no weights file at"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(model, tmp_path, capsys, case):
    command, message = MISTAKES[case]
    command = [word.format(tmp=tmp_path, model=model) for word in command]
    line = fails([*command, "-o", str(tmp_path / "out.safetensors")], capsys)
    assert re.search(message, line), line
    assert os.listdir(tmp_path) == []


def test_files_that_are_not_ours_are_told(tmp_path, model, capsys):
    save_file({"map": torch.eye(2)}, tmp_path / "a.safetensors")
    assert "is no file of ours" in fails(["show", str(tmp_path / "a.safetensors")], capsys)
    assert "no file at" in fails(["show", str(tmp_path / "b.safetensors")], capsys)
    rece.Eraser(torch.eye(32)).save(tmp_path / "c.safetensors")
    assert "CONCEPT must be given" in fails(["certify", model, str(tmp_path / "c.safetensors")], capsys)


def test_debug_shows_the_traceback_and_usage_errors_are_two(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["show", str(tmp_path / "b.safetensors"), "--debug"])
    for command in (
        [],
        ["erase"],
        ["erase", "model", "dog"],
        ["nonsense"],
        ["lora", "a", "b", "-o", "c", "--rank", "x"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2


def test_help_needs_neither_torch_nor_diffusers():
    code = "import sys, rece.__main__ as m\ntry: m.main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'pandas', 'yaml')))"
    for arguments, words in ((["--help"], COMMANDS), (["draw", "--help"], ["--part", "--workers"])):
        shown = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert shown.returncode == 0 and shown.stderr == "" and all(word in shown.stdout for word in words)
    shown = subprocess.run([sys.executable, "-m", "rece", "lora"], capture_output=True, text=True)
    assert shown.returncode == 2 and "MODEL" in shown.stderr


def test_push_uploads_privately_unless_told_otherwise(tmp_path, capsys, monkeypatch):
    asked = []

    def push_to_hub(*given, **keywords):
        asked.append((given, keywords))
        return "https://hub/commit"

    command = ["push", str(tmp_path), "me/dog"]
    assert "has no README.md" in fails(command, capsys)
    (tmp_path / "README.md").write_text("card")
    assert "HF_HUB_OFFLINE is set" in fails(command, capsys)
    monkeypatch.setattr(export, "push_to_hub", push_to_hub)
    assert main(command) == 0 and main([*command, "--public", "--branch", "v1"]) == 0
    assert capsys.readouterr().out == "https://hub/commit\n" * 2
    assert asked == [
        ((tmp_path, "me/dog"), {"private": True, "revision": None}),
        ((tmp_path, "me/dog"), {"private": False, "revision": "v1"}),
    ]
