"""Entries: every kind of outside file is read as the edit that it is, measured, and kept with who made it."""

import json
from importlib import import_module

import pandas as pd
import pytest
import torch
from project import params
from study import GENERATE
from typer.testing import CliRunner

import rece
from rece import layers, methods
from rece.__main__ import app
from rece.emoji import world as worlds
from rece.sharing import export
from rece.study import config, entry, fair

WORLD = worlds.load()
METHOD = '''
"""A method of someone else: UCE with a smaller lambda."""
import rece


def erase(pipe, concept, *, target=" ", preserve=None, progress=True):
    """UCE."""
    return rece.erase(pipe, concept, target=target, preserve=preserve, rounds=0, progress=progress)
'''
ATTACK = '''
"""An attack of someone else: the prompt twice."""
from rece.attacks import Attempts

ACCESS, NEEDS = "none", ()


def attack(victim, prompts, seeds, *, original, concept):
    """Say it twice."""
    return Attempts([f"{prompt} {prompt}" for prompt in prompts], seeds)
'''


@pytest.fixture(scope="module")
def emoji():
    return config.load("data/emoji-diffusion")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The study with few prompts and attacks; entries lie in a folder of the test's; the others have two rows."""
    tree = params()
    tree["fair"] |= {"per": {"object": 2, "style": 2}, "kept": {"neighbour": 2, "other": 2}}
    tree["arena"]["groups"] = {"object": 1}
    tree |= {"fair_attacks": {"plain": {}, "closed_form": {"lamb": 0.1}}, "generate": GENERATE}
    monkeypatch.setattr(config, "params", lambda: tree)
    monkeypatch.setattr(entry, "FOLDER", str(tmp_path / "entries"))
    groups = ["dog", "sunflower"]
    others = pd.DataFrame({"group": groups, "method": "uce", "what": "plain", "case": 0, "top": 1, "sure": 1})
    monkeypatch.setattr(entry.ranking, "gathered", lambda *_: (others, None))
    return tmp_path


@pytest.fixture(scope="module")
def eraser(emoji):
    return rece.erase(emoji, "dog", progress=False)


def test_every_kind_of_file_is_read_as_the_edit_that_it_is(emoji, eraser, tmp_path):
    eraser.save(tmp_path / "map.safetensors")
    eraser.save_lora(tmp_path / "lora", pipe=emoji)
    export.save_weights(eraser, emoji, tmp_path / "weights.safetensors")
    victim = eraser.copy_of(emoji)
    victim.unet.save_pretrained(tmp_path / "unet")
    encoder = methods.run("hirm", emoji, "dog", iterations=1, progress=False)
    changed = encoder.copy_of(emoji)
    changed.text_encoder.save_pretrained(tmp_path / "encoder")
    wanted = {name: layer.weight for name, layer in layers.prompt_layers(victim).items()}
    files = ["map.safetensors", "lora/pytorch_lora_weights.safetensors", "weights.safetensors", "unet"]
    for file in files:
        found = entry.read(emoji, tmp_path / file).copy_of(emoji)
        for name, layer in layers.prompt_layers(found).items():
            torch.testing.assert_close(layer.weight, wanted[name], atol=2e-5, rtol=1e-4)
    found = entry.read(emoji, tmp_path / "encoder").copy_of(emoji)
    for name, one in changed.text_encoder.named_parameters():
        torch.testing.assert_close(dict(found.text_encoder.named_parameters())[name], one)


def test_an_eraser_is_measured_and_kept_with_who_made_it(small, eraser):
    eraser.save(small / "mine.safetensors")
    first, there = entry.score(small / "mine.safetensors", "dog", by="A. Author", note="three rounds")
    assert set(first.method) == {"uce", "mine"} and (first.groups == 1).all()
    mine = first.set_index("method").loc["mine"]
    assert {"plain", "closed_form", "neighbour", "other"} <= set(mine.index) and 0 <= mine.plain <= 1
    about = json.loads((there / "entry.json").read_text())
    assert about["by"] == "A. Author" and about["note"] == "three rounds" and about["concept"] == "dog"
    images, edits = pd.read_csv(there / "images.csv.gz"), pd.read_csv(there / "edits.csv")
    assert set(images.method) == {"mine"} and edits.guarded[0] >= 0 and edits.changed[0] > 0
    again, _ = entry.score(small / "mine.safetensors", "dog")
    pd.testing.assert_frame_equal(first, again)


def test_a_method_and_an_attack_as_files(small, emoji):
    (small / "mine_uce.py").write_text(METHOD)
    (small / "twice.py").write_text(ATTACK)
    run = CliRunner().invoke(app, ["arena", str(small / "mine_uce.py"), "--by", "B"])
    assert run.exit_code == 0, run.output
    assert "mine_uce" in run.output and "closed_form" in run.output
    group = fair.groups(WORLD, params()["fair"])["sunflower"]
    images = pd.read_csv(small / "entries/mine_uce/images.csv.gz")
    assert set(images.group) == {"sunflower"} and group["erase"] == ["sunflower"]
    rows, there = entry.score(small / "twice.py")
    assert set(rows.method) == set(entry.BESIDE) and "twice" in rows and not (there / "edits.csv").exists()
    assert rows.twice.notna().all()
    assert "mine_uce" not in methods.names(), "the folder of an entry is looked in for the entry alone"


def test_what_is_no_entry_is_refused_in_one_line(small, emoji, eraser):
    eraser.save(small / "mine.safetensors")
    with pytest.raises(ValueError, match="concept must say what the file erases"):
        entry.score(small / "mine.safetensors")
    with pytest.raises(ValueError, match="concept must say .* not 'gryphon'"):
        entry.score(small / "mine.safetensors", "gryphon")
    with pytest.raises(FileNotFoundError, match="FILE: there is no"):
        entry.score(small / "other.safetensors", "dog")
    (small / "uce.py").write_text(METHOD)
    with pytest.raises(ValueError, match="'uce' is already a row of the table: rename the file"):
        entry.score(small / "uce.py")
    for name in ("guarded", "original", "control"):
        eraser.save(small / f"{name}.safetensors")
        with pytest.raises(ValueError, match=f"FILE: '{name}' is already a row"):
            entry.score(small / f"{name}.safetensors", "dog")
    (small / "plain.py").write_text(ATTACK)
    with pytest.raises(ValueError, match="'plain' is no name"):
        entry.score(small / "plain.py")
    (small / "both.py").write_text(METHOD + ATTACK)
    with pytest.raises(ValueError, match="must define one function"):
        entry.score(small / "both.py")
    with pytest.raises(ValueError, match="concept belongs to a file of weights"):
        entry.score(small / "both.py", "dog")
    (small / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no UNet"):
        entry.read(emoji, small / "empty")
    emoji.vae.save_pretrained(small / "vae")
    with pytest.raises(ValueError, match="holds no UNet"):
        entry.read(emoji, small / "vae")
    assert not (small / "entries").exists()


def test_a_second_entry_of_one_name_is_run_with_its_own_code(tmp_path):
    for n in (1, 2):
        file = tmp_path / str(n) / "mine.py"
        file.parent.mkdir()
        file.write_text(f"{METHOD}\nN = {n}\n")
        with entry.loaded(file):
            assert import_module("rece.methods.mine").N == n


def test_what_others_reached_is_read_before_anything_is_measured(small, eraser, monkeypatch):
    eraser.save(small / "mine.safetensors")
    monkeypatch.setattr(entry.ranking, "gathered", lambda *_: (_ for _ in ()).throw(FileNotFoundError("no results")))
    monkeypatch.setattr(entry, "defended", lambda *_: pytest.fail("measured first"))
    with pytest.raises(FileNotFoundError, match="no results"):
        entry.score(small / "mine.safetensors", "dog")
