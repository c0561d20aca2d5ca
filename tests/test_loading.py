"""Loading: what is on disk, edited or not, and one line that names the parameter for everything that is not."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch

import rece
from rece import layers, loading
from rece.images import fingerprint, generate


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny pipeline's folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny-model"
    tiny.sd().save_pretrained(folder)
    return str(folder)


def test_dtype_and_scheduler_are_set_and_the_safety_checker_is_left(model):
    pipe = loading.load(model, dtype="float16", device="cpu", scheduler="LMSDiscreteScheduler")
    assert pipe.unet.dtype == torch.float16 and type(pipe.scheduler).__name__ == "LMSDiscreteScheduler"
    assert pipe.scheduler.config.beta_start == 0.00085 and pipe.safety_checker is None


def test_an_eraser_file_is_applied(pipe, model, tmp_path):
    eraser = rece.erase(pipe, "dog", progress=False)
    eraser.save(tmp_path / "dog.safetensors")
    loaded = loading.load(model, eraser=tmp_path / "dog.safetensors", device="cpu")
    assert torch.equal(layers.fused(loaded), eraser.map)
    assert fingerprint(loaded) == fingerprint(eraser.apply(pipe)) != fingerprint(tiny.sd())
    eraser.remove(loaded)
    assert fingerprint(loaded) == fingerprint(tiny.sd())


def test_an_index_like_stable_diffusion_1s(model, tmp_path):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],  # a class that transformers no longer has
    }
    del index["requires_safety_checker"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    pipe = loading.load(tmp_path)
    assert pipe.safety_checker is None and pipe.feature_extractor is None and not pipe.config.requires_safety_checker


def test_other_families_have_no_safety_checker_and_draw_the_same(xl, tmp_path):
    xl.save_pretrained(tmp_path / "xl")
    drawn = [generate(one, ["a dog"], [1], steps=2, progress=False) for one in (xl, loading.load(tmp_path / "xl"))]
    np.testing.assert_array_equal(*drawn)
    flux = tiny.flux()
    flux.save_pretrained(tmp_path / "flux")
    assert layers.width(loading.load(tmp_path / "flux")) == layers.width(flux)


def spoiled(model, folder, spoil):
    shutil.copytree(model, folder, dirs_exist_ok=True)
    spoil(folder)
    return folder


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
        lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut"),
        lambda folder: (folder / "model_index.json").write_text("{}"),
        lambda folder: shutil.rmtree(folder / "vae"),
    ],
)
def test_a_folder_that_is_not_whole(model, tmp_path, spoil):
    with pytest.raises(OSError, match="^model: the folder .* is not whole: .*$"):
        loading.load(spoiled(model, tmp_path, spoil))


def test_no_pickle_is_read(tmp_path):
    tiny.sd().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match="is not whole"):
        loading.load(tmp_path)


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        (
            {"model": "no such folder"},
            FileNotFoundError,
            "model: there is no folder 'no such folder', and it is no hub",
        ),
        ({"model": "tests"}, FileNotFoundError, "model: the folder tests holds no model_index.json"),
        ({"model": "owner/name"}, ValueError, "there is no folder 'owner/name'. .* revision must be its full"),
        ({"model": "owner/name", "revision": "main"}, ValueError, "revision must be its full commit hash"),
        ({"model": "owner/name", "revision": 40 * "0"}, OSError, "it is not in the local cache, and HF_HUB_OFFLINE"),
        ({"revision": 40 * "0"}, ValueError, "revision belongs to hub ids"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of float32"),
        ({"device": "toaster"}, ValueError, "device must be one that this machine has"),
        ({"scheduler": "NoScheduler"}, ValueError, "scheduler must be the name of one of diffusers' schedulers"),
        ({"scheduler": "UNet2DConditionModel"}, ValueError, "scheduler must be .*, not 'UNet2DConditionModel'"),
        ({"scheduler": "__doc__"}, ValueError, "scheduler must be .*, not '__doc__'"),
        ({"eraser": "none.safetensors"}, FileNotFoundError, "no eraser file at none.safetensors"),
    ],
)
def test_bad_input(model, keywords, error, message):
    with pytest.raises(error, match=message) as raised:
        loading.load(**{"model": model, **keywords})
    assert "\n" not in str(raised.value)


def test_an_eraser_of_another_width_is_refused(model, tmp_path):
    rece.Eraser(torch.eye(8)).save(tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="this eraser is for text width 8"):
        loading.load(model, eraser=tmp_path / "e.safetensors")
