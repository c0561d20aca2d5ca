"""The command line: what the library does, one line per mistake, nothing overwritten, nothing loaded too early."""

import inspect
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields
from importlib import metadata

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import rece
from rece import cluster, erasing, images, loading
from rece.__main__ import KEYWORDS, main
from rece.sharing import export, show

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
    command += [
        "--rounds",
        "2",
        "--lamb",
        "0.2",
        "--preserve-scale",
        "0.3",
        "--derive-lamb",
        "0.4",
        "--start-lamb",
        "5",
    ]
    command += ["--anchored", "--relative", "--set", "each.reg=target", "each.erase_scale=2"]
    command += ["--set", "start.preserve=[a, b]"]
    command += ["start.tokens=last", "pooled=false"]
    assert main(command) == 0
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
    numbers = {"start": erasing.Start, "each": erasing.Round}
    keywords = [name for name in keywords if name not in numbers]
    keywords += [f"{group}.{field.name}" for group, kind in numbers.items() for field in fields(kind)]
    assert sorted(keywords) == sorted(KEYWORDS) and "not 'lambda=1'" in known
    assert all(name in known for name in keywords)


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
    assert f"passed: {'yes. No prompt' if made.passed else 'no. It is not proven'}" in out
    assert main(["certify", model, str(dog)]) == 0
    assert f"{word.distance:.4g}" in capsys.readouterr().out
    assert main(["certify", model, "dog", "sun"]) == 0
    out = capsys.readouterr().out
    assert "passed" not in out and "dog" in out and "sun" in out


def test_show_needs_no_model(model, dog, tmp_path, capsys):
    assert main(["show", str(dog)]) == 0
    out = capsys.readouterr().out
    eraser = rece.Eraser.load(dog)
    for name, value in {"width": 32, "rank": eraser.rank, "relative": False, "base_model": "tiny-model"}.items():
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
    export.save_folder(eraser, loading.load(model), tmp_path / "whole", "pipeline")
    export.save_folder(eraser, loading.load(model), tmp_path / "lora")
    for name, word in (("whole", "edited pipeline"), ("lora", "LoRA")):
        assert main(["show", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert word in out and "'dog' → ' '" in out
    assert main(["erase", str(tmp_path / "whole"), "cat", "--rounds", "0", "-o", str(tmp_path / "c.safetensors")]) == 0
    assert "holds a model that was edited before" in capsys.readouterr().err


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
    "no folder": (["erase", "{tmp}/none", "dog"], "MODEL: there is no folder '.*none'$"),
    "a folder or the hub": (["erase", "owner/name", "dog"], "there is no folder 'owner/name'; .* with --revision"),
    "a branch": (["erase", "owner/name", "dog", "--revision", "main"], "revision must be its full commit hash"),
    "offline": (["erase", "owner/name", "dog", "--revision", "0" * 40], "cannot be loaded: .*HF_HUB_OFFLINE is set"),
    "folder and revision": (["erase", "{model}", "dog", "--revision", "0" * 40], "revision belongs to hub ids"),
    "no pipeline": (["erase", "{tmp}", "dog"], "lies in .*, which the command reads"),
    "device": (["erase", "{model}", "dog", "--device", "toaster"], "device must be one of torch's"),
    "blank": (["erase", "{model}", " "], "concept must be a text"),
    "rounds": (["erase", "{model}", "dog", "--rounds", "few"], "rounds must be a whole number, 0 or more, or"),
    "odd rounds": (["erase", "{model}", "dog", "--rounds", "²"], "rounds must be a whole number, 0 or more, or"),
    "lamb": (["erase", "{model}", "dog", "--lamb", "-1"], "lamb must be a positive number, not -1.0"),
    "targets": (["erase", "{model}", "dog", "--target", "a", "b"], "2 targets for 1 concepts"),
    "twice": (["erase", "{model}", "dog", "--lamb", "1", "--set", "each.lamb=2"], "each.lamb is given twice"),
    "no switch": (["erase", "{model}", "dog", "--set", "pooled=maybe"], "pooled must be true or false, not 'maybe'"),
    "no text": (["erase", "{model}", "dog", "--set", "target=5"], "target must be a text or a list of texts, not 5"),
    "no token form": (
        ["erase", "{model}", "dog", "--set", "start.tokens=lst"],
        'start.tokens must be "rest" or "last"',
    ),
    "no YAML": (["erase", "{model}", "dog", "--set", "preserve=[a"], "'\\[a' is no YAML value"),
    "no object": (["erase", "{model}", "dog", "--set", "each.reg=!!python/name:os.system"], "is no YAML value"),
    "preserve file": (["erase", "{model}", "dog", "--preserve-file", "{tmp}/no"], "No such file"),
    "weights": (["import", "{model}", "{tmp}/no.safetensors"], "no weights file at"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(model, tmp_path, capsys, case):
    command, message = MISTAKES[case]
    command = [word.format(tmp=tmp_path, model=model) for word in command]
    line = fails([*command, "-o", str(tmp_path / "out.safetensors")], capsys)
    assert re.search(message, line.strip()), line
    assert os.listdir(tmp_path) == []


def test_files_that_are_not_ours_are_told(tmp_path, model, capsys):
    save_file({"map": torch.eye(2)}, tmp_path / "a.safetensors")
    (tmp_path / "list.safetensors").write_bytes(b"x" * 100)
    save_file({"map": torch.eye(2)}, tmp_path / "five.safetensors", {"rece": "5"})
    save_file({"map": torch.eye(2)}, tmp_path / "deep.safetensors", {"rece": "[" * 10**5})
    for name in ("a", "list", "five", "deep"):
        assert "is no file of ours" in fails(["show", str(tmp_path / f"{name}.safetensors")], capsys)
    assert "is no folder of" in fails(["show", model], capsys)
    assert "no file at" in fails(["show", str(tmp_path / "b.safetensors")], capsys)
    rece.Eraser(torch.eye(32)).save(tmp_path / "c.safetensors")
    assert "CONCEPT must be given" in fails(["certify", model, str(tmp_path / "c.safetensors")], capsys)


def test_wrong_settings_are_refused_before_anything_heavy_is_imported(tmp_path):
    output = ["-o", str(tmp_path / "e.safetensors")]
    for wrong in (["--set", "start.tokns=last"], ["--set", "each.lamb=0"], ["--rounds", "few"], []):
        assert not heavy(["erase", "data/emoji-difusion", "dog", *output, *wrong], 1)


def test_numbers_of_set_are_read_as_python_reads_them(model, tmp_path):
    command = ["erase", model, "dog", "-o", str(tmp_path / "e.safetensors"), "--rounds", "0"]
    assert main([*command, "--set", "each.erase_scale=1e-3", "start.lamb=2"]) == 0
    made = rece.Eraser.load(tmp_path / "e.safetensors").provenance
    assert made["each"]["erase_scale"] == 1e-3 and made["start"]["lamb"] == 2 and made["rounds"] == 0


def test_a_list_is_repeated_or_in_one_go_and_ends_at_the_next_option(model, tmp_path):
    command = ["erase", model, "-o", str(tmp_path / "e.safetensors"), "--rounds", "0", "--force"]
    for words in (["dog", "--preserve", "a", "b"], ["--preserve", "a", "--preserve", "b", "--", "dog"]):
        assert main([*command, *words]) == 0
        assert rece.Eraser.load(tmp_path / "e.safetensors").provenance["preserve"] == ["a", "b"]
        assert rece.Eraser.load(tmp_path / "e.safetensors").provenance["concepts"] == ["dog"]


def test_texts_to_keep_are_utf8_with_or_without_a_mark(model, tmp_path, capsys):
    (tmp_path / "kept.txt").write_bytes("\ufeffcat\n".encode())
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes("Café".encode("latin-1"))
    command = ["erase", model, "dog", "--rounds", "0", "-o", str(tmp_path / "e.safetensors"), "--preserve-file"]
    assert "holds no text" in fails([*command, str(tmp_path / "empty.txt")], capsys)
    assert "is not a UTF-8 text file" in fails([*command, str(tmp_path / "latin.txt")], capsys)
    assert main([*command, str(tmp_path / "kept.txt")]) == 0
    assert rece.Eraser.load(tmp_path / "e.safetensors").provenance["preserve"] == ["cat"]


def test_an_output_that_is_an_input_is_refused(model, dog, tmp_path, capsys):
    before = dog.read_bytes()
    for command in (
        ["apply", model, str(dog), "-o", model],
        ["weights", model, str(dog), "-o", str(dog)],
        ["weights", model, str(dog), "-o", f"{model}/unet/diffusion_pytorch_model.safetensors"],
    ):
        assert "which the command reads" in fails([*command, "--force"], capsys)
    assert "is not part of this export" in fails(["lora", model, str(dog), "-o", str(dog.parent), "--force"], capsys)
    assert dog.read_bytes() == before


def test_a_file_cannot_steer_the_terminal(tmp_path, capsys):
    save_file(
        {"map": torch.eye(2, dtype=torch.float64)},
        tmp_path / "evil.safetensors",
        {"rece": '{"a\\u001b[31m": "line\\nlamb 0.1 \\u001b]0;x\\u0007"}'},
    )
    assert main(["show", str(tmp_path / "evil.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\\x1b[31m" in out and "line\\nlamb" in out
    assert "\\x1b" in fails(["show", str(tmp_path / "\x1b[31m")], capsys)


def test_unexpected_errors_are_one_line_that_names_them(dog, capsys, monkeypatch):
    monkeypatch.setattr(show, "rows", lambda _: {}["key"])
    assert fails(["show", str(dog)], capsys) == "KeyError: 'key' (--debug shows where)\n"


def test_debug_shows_the_traceback_and_usage_errors_are_two(tmp_path, capsys):
    with pytest.raises(FileNotFoundError):
        main(["show", str(tmp_path / "b.safetensors"), "--debug"])
    for command in (
        [],
        ["erase"],
        ["erase", "model", "dog"],
        ["nonsense"],
        ["lora", "a", "b", "-o", "c", "--rank", "x"],
        ["erase", "model", "dog", "-o", "x.safetensors", "--dtype", "int8"],
        ["draw", "model", "a.csv", "-o", "x", "--part", "3/2"],
        ["draw", "model", "a.csv", "-o", "x", "--part", "1/2", "--workers", "2"],
        ["draw", "model", "a.csv", "-o", "x", "--seed", "2"],
        ["draw", "model", "a dog", "-o", "x.png", "--workers", "2"],
    ):
        assert main(command) == 2
    assert os.listdir(tmp_path) == []


def heavy(arguments, code=0):
    """Which heavy modules a run of the command imports; its exit code must be `code`."""
    names = ("torch", "diffusers", "transformers", "pandas", "rich")
    run = f"import sys, rece.__main__ as m\nassert m.main(sys.argv[1:]) == {code}\n"
    run += f"print('\\nheavy:', *[name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", run, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("heavy:")[1].split()


def test_help_show_and_version_import_nothing_heavy(dog):
    for arguments in (["--help"], ["draw", "--help"], ["--version"], ["show", str(dog)]):
        assert heavy(arguments) == []
    shown = subprocess.run([sys.executable, "-m", "rece", "lora"], capture_output=True, text=True)
    assert shown.returncode == 2 and "MODEL" in shown.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"Example:\n    rece {command} " in capsys.readouterr().out


def test_version_and_commands_are_told(capsys, monkeypatch):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == metadata.version("rece")

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert main(["--version"]) == 0 and "is not installed" in capsys.readouterr().out
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in [*COMMANDS, "--show-completion", "130 interrupted"])


def test_draw_makes_one_picture_of_one_prompt(model, dog, tmp_path, capsys):
    out = tmp_path / "new" / "dog.png"
    command = ["draw", model, "a dog", "-o", str(out), "--steps", "2", "--guidance", "4"]
    assert main([*command, "--seed", "3", "--eraser", str(dog)]) == 0
    assert capsys.readouterr().out == f"{out}\n" and os.listdir(out.parent) == ["dog.png"]
    pipe = loading.load(model, eraser=dog)
    expected = images.generate(pipe, ["a dog"], [3], steps=2, guidance=4.0, batch_size=1)[0]
    assert np.array_equal(np.asarray(Image.open(out)), expected)
    assert "dog.png exists" in fails(command, capsys)
    assert main([*command, "--force"]) == 0
    assert not np.array_equal(np.asarray(Image.open(out)), expected)
    capsys.readouterr()
    assert "ends in .png, not" in fails([*command[:3], "-o", str(tmp_path / "folder")], capsys)


def test_draw_makes_a_folder_of_a_table(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "prompts.csv").write_text("prompt,seed\na dog,1\n\na cat,2\n")
    asked, given = [], {}
    monkeypatch.setattr(images, "draw", lambda *args, **keywords: asked.append((args, keywords)), raising=False)
    command = ["draw", model, str(tmp_path / "prompts.csv"), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert main([*command, "--part", "2/3", "--steps", "7", "--batch-size", "4", "--bf16", "--quiet"]) == 0
    assert "note: " in capsys.readouterr().err
    (pipe, table, folder), given = asked[0]
    assert list(table.prompt) == ["a dog", "a cat"] and folder == tmp_path / "out" and pipe.unet is not None
    assert given == dict(steps=50, guidance=7.5, batch_size=8, bf16=False, part=(1, 1), progress=True)
    assert asked[1][1] == dict(steps=7, guidance=7.5, batch_size=4, bf16="auto", part=(2, 3), progress=False)
    assert "must be a folder" in fails([*command[:3], "-o", str(tmp_path / "x.png")], capsys)
    assert "is missing" in fails(["draw", model, "none.csv", "-o", str(tmp_path / "out")], capsys)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "draw", stopped)
    assert main(command) == 130 and capsys.readouterr().err.endswith("interrupted: run the same command again\n")


def test_draw_shares_a_table_among_workers(model, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    (tmp_path / "prompts.csv").write_text("prompt,seed\na dog,1\n")
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
    monkeypatch.setattr(cluster, "draw_parts", draw_parts, raising=False)
    command = ["draw", model, str(tmp_path / "prompts.csv"), "-o", str(tmp_path / "out")]
    assert main([*command, "--workers", "2"]) == 0 and main([*command, "--scheduler-file", "file"]) == 0
    drawn = [(model, 1, tmp_path / "out", parts, 8) for parts in (8, 12)]
    assert asked == [(2, None), drawn[0], (None, "file"), drawn[1]]


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
