"""The judges' loader, and the models of the hub that judges load."""

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from rece import files, judges
from rece.judges.classifier import Classifier
from rece.judges.embedded import Judge

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_model_is_one_commit(tmp_path, monkeypatch):
    cached = tmp_path / "models--microsoft--resnet-50" / "snapshots" / COMMIT
    tiny.resnet(cached)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    judge = Classifier("microsoft/resnet-50", COMMIT)
    found = judge.describe()
    assert (found["model"], found["revision"]) == ("microsoft/resnet-50", COMMIT) and "torchvision" in found["note"]
    assert found["sha256"] == files.sha256(cached / "model.safetensors")
    for revision in (None, "main", COMMIT[:7]):
        with pytest.raises(ValueError, match="no folder 'microsoft/resnet-50'.* revision must be its full commit"):
            Classifier("microsoft/resnet-50", revision)
    with pytest.raises(FileNotFoundError, match="model: microsoft/resnet-50 at f+ is neither cached"):
        Classifier("microsoft/resnet-50", "f" * 40)


def test_a_device_that_is_not_here_is_named(tmp_path):
    with pytest.raises(ValueError, match="device must be one that this machine has, .*'toaster'"):
        Classifier(tiny.resnet(tmp_path), device="toaster")


def test_a_model_folder_needs_safetensors_and_no_revision(tmp_path):
    tiny.resnet(tmp_path)
    with pytest.raises(ValueError, match="revision belongs to hub ids"):
        Classifier(tmp_path, COMMIT)
    with pytest.raises(FileNotFoundError, match="model: there is no folder"):
        Classifier(tmp_path / "none", COMMIT)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        Classifier(tmp_path)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working folder inside a checkout, with an embedded judge and a classifier in it."""
    (tmp_path / "params.yaml").touch()
    (tmp_path / "notebooks").mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Judge(["dog", "cat"], ["red", "blue"]).save(tmp_path / "models" / "judge")
    tiny.resnet(tmp_path / "models" / "resnet")
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_load(checkout):
    assert judges.load(None) is None
    assert judges.load("models/judge", checkout).objects == ["dog", "cat"]
    assert judges.load({"name": "nudenet", "threshold": 0.45}).threshold == 0.45
    classifier = judges.load({"name": "classifier", "model": "models/resnet", "top": 2}, checkout)
    assert classifier.top == 2 and classifier.describe()["model"] == "resnet"
    save_file({"prompts": tiny.q16_vectors()}, checkout / "models" / "q16.safetensors")
    tiny.clip(checkout / "models" / "clip")
    q16 = judges.load({"name": "q16", "prompts": "models/q16.safetensors", "model": "models/clip"}, checkout)
    assert q16.describe()["prompts"] == "q16.safetensors"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "nudnet"}, "name must be one of classifier, clip, nudenet, q16.*'nudnet'"),
        ({"threshold": 0.5}, "name must be one of classifier, clip, nudenet, q16"),
        ({}, "name must be one of"),
        (3, "name must be one of .* not 3"),
        ({"name": "nudenet", "treshold": 0.5}, "nudenet: .* 'treshold'; its settings are threshold, classes"),
        ({"name": "q16", "model": "a/b"}, "q16: .* 'prompts'; its settings are prompts"),
        ({"name": "classifier", "model": "a/b"}, "no folder 'a/b'.* revision must be its full commit hash"),
    ],
)
def test_load_bad_settings(checkout, settings, message):
    with pytest.raises(ValueError, match=message):
        judges.load(settings, checkout)
    with pytest.raises(FileNotFoundError, match="judge"):
        judges.load("models/none", checkout)
