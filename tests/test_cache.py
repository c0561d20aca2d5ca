"""What was computed is not computed again, and nothing else stands in for it."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

import rece
from rece import attacks, images, methods
from rece.edits import Hooks
from rece.eraser import Eraser
from rece.study import cache, experiment

KNOWN = {"kind": "object", "erase": ["dog"], "target": " ", "asked": {"own": {}}}  # as a study of photographs has it
CASES = pd.DataFrame({"prompt": ["a dog", "a big dog"], "seed": [1, 2]})
GENERATE = {"steps": 2, "guidance": 3.0, "batch_size": 2}


@pytest.fixture
def runs(monkeypatch):
    """Grows by one with each attack that is run."""
    runs, run = [], attacks.run
    monkeypatch.setattr(attacks, "run", lambda *args, **given: runs.append(1) or run(*args, **given))
    return runs


def eraser(scale: float) -> Eraser:
    return Eraser(torch.eye(32, dtype=torch.float64) * scale)


def attempt(victim, pipe, cases=CASES, **budget):
    return experiment.attempt("closed_form", victim, pipe, cases, None, KNOWN, {"lamb": 0.1} | budget)


def test_an_attack_is_run_once_and_again_for_another_eraser_budget_or_seed(pipe, runs):
    victim = eraser(0.9).copy_of(pipe)
    first, second = attempt(victim, pipe), attempt(victim, pipe, n=2)
    assert len(runs) == 1 and torch.equal(first.embeds, second.embeds) and second.seconds == 0
    assert vars(first) | {"embeds": None, "seconds": 0.0} == vars(second) | {"embeds": None}
    attempt(eraser(0.8).copy_of(pipe), pipe)
    attempt(victim, pipe, lamb=0.2)
    attempt(victim, pipe, CASES.assign(seed=[1, 3]))
    assert len(runs) == 4


def test_an_attack_that_looks_at_no_victim_is_run_once_for_all(pipe, runs):
    for scale in (0.9, 0.8):
        victim = eraser(scale).copy_of(pipe)
        experiment.attempt("plain", victim, pipe, CASES, None, KNOWN, {})
    assert len(runs) == 1


def test_images_are_drawn_once_and_again_for_another_model_or_sampler(pipe, monkeypatch):
    runs, generate = [], images.generate
    monkeypatch.setattr(images, "generate", lambda *args, **given: runs.append(1) or generate(*args, **given))
    first = experiment.images_of(pipe, CASES, GENERATE)
    assert np.array_equal(first, generate(pipe, list(CASES.prompt), [1, 2], **GENERATE))
    assert np.array_equal(first, experiment.images_of(pipe, CASES, GENERATE)) and len(runs) == 1
    other = experiment.images_of(eraser(0.5).copy_of(pipe), CASES, GENERATE)
    experiment.images_of(pipe, CASES, GENERATE | {"guidance": 4.0})
    assert len(runs) == 3 and not np.array_equal(first, other)


def test_a_changed_attack_is_another_one_and_the_others_stay():
    source = (cache.CODE / "rece/attacks/unlearndiff.py").read_text()
    files = cache.imported(source)
    assert {"rece/attacks/__init__.py", "rece/attacks/_denoise.py", "rece/files.py"} <= files
    assert not {file for file in files if file.startswith(("rece/study", "rece/judges", "rece/sharing"))}
    assert not {"rece/attacks/mma.py", "rece/attacks/plain.py"} & files
    assert cache.code("rece.attacks.plain") == cache.code("rece.attacks.plain") != cache.code("rece.attacks.mma")


def test_the_digest_of_code_holds_its_imports(tmp_path, monkeypatch):
    (tmp_path / "rece").mkdir()
    (tmp_path / "rece/one.py").write_text("from rece.two import x\n")
    (tmp_path / "rece/two.py").write_text("def f():\n    import rece.three\n")
    (tmp_path / "rece/three.py").write_text("x = 1\n")
    monkeypatch.setattr(cache, "CODE", tmp_path)
    monkeypatch.setattr(rece, "__path__", [*rece.__path__, str(tmp_path / "rece")])
    assert cache.imported("import rece.one") == {"rece/one.py", "rece/two.py", "rece/three.py"}
    found = set()
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "rece/three.py").write_text(text)
        cache.code.cache_clear()
        found.add(cache.code("rece.one"))
    cache.code.cache_clear()
    assert len(found) == 2


def test_another_source_of_a_hook_is_another_model(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    found = []
    for size in (1, 22):
        text = f"from torch import nn\n\nSIZE = {size}\n\n\nclass Hook(nn.Module):\n    def __init__(self, state):\n"
        text += "        super().__init__()\n\n    def attach(self, pipe):\n        return []\n"
        (tmp_path / "hooked.py").write_text(text)
        sys.modules.pop("rece.methods.hooked", None)
        cache.code.cache_clear()
        found.append(cache.weights(Hooks("hooked", {}, {}).copy_of(pipe)))
    sys.modules.pop("rece.methods.hooked")
    assert found[0].pop("hooks") != found[1].pop("hooks") and found[0] == found[1]
    assert "hooks" not in cache.weights(pipe) and cache.hooks(pipe) == {}
