"""Files for other people's code: weights, pipelines and LoRAs load with plain diffusers."""

import json
import os
import re
from functools import partial

import pandas as pd
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

import rece
from rece import families, layers
from rece.sharing import export

MAKERS = [tiny.sd, tiny.sdxl, tiny.sd3, tiny.flux, tiny.pixart]


def images(pipe, prompt="a dog"):
    generator = torch.Generator("cpu").manual_seed(0)
    call = {"num_inference_steps": 2, "generator": generator, "output_type": "np"}
    return torch.from_numpy(pipe(prompt, **call).images)


def state(pipe):
    return {name: p.detach().clone() for name, p in families.model(pipe).state_dict().items()}


def assert_same(now, before):
    assert list(now) == list(before) and all(torch.equal(now[name], before[name]) for name in before)


def tree(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("make", MAKERS)
def test_weights_are_the_edited_layers_and_load_without_our_code(make, tmp_path):
    pipe, before = make(), state(make())
    eraser = rece.erase(pipe, "dog", rounds=1)
    path = tmp_path / "new" / "edited.safetensors"
    export.save_weights(eraser, pipe, path)
    assert_same(state(pipe), before)
    fused = state(eraser.apply(pipe))
    export.save_weights(eraser, pipe, tmp_path / "applied.safetensors")
    assert_same(state(pipe), fused)
    found = load_file(path)
    changed = [name for name in before if not torch.equal(fused[name], before[name])]
    assert sorted(found) == sorted(changed)
    plain = make()
    loaded = families.model(plain).load_state_dict(found, strict=False)
    assert loaded.unexpected_keys == [] and len(loaded.missing_keys) == len(before) - len(found)
    assert_same(state(plain), fused)
    assert path.read_bytes() == (tmp_path / "applied.safetensors").read_bytes()
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["rece"]) == eraser.provenance


def test_weights_keep_their_dtype_or_take_the_one_asked_for(pipe, tmp_path):
    eraser = rece.erase(pipe, "dog")
    pipe.unet.to(torch.float16)
    for dtype, expected in ((None, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float64)):
        export.save_weights(eraser, pipe, tmp_path / "w.safetensors", dtype)
        assert {W.dtype for W in load_file(tmp_path / "w.safetensors").values()} == {expected}
    pipe.unet.to(torch.float32)
    huge = rece.Eraser(torch.eye(32) * 1e7)
    with pytest.raises(ValueError, match=r"dtype torch.float16 is too narrow for .*to_k.weight"):
        export.save_weights(huge, pipe, tmp_path / "huge.safetensors", torch.float16)
    assert os.listdir(tmp_path) == ["w.safetensors"] and layers.fused(pipe) is None


@pytest.mark.parametrize("applied", [False, True])
def test_a_pipeline_folder_draws_as_the_edited_pipeline_and_leaves_it_as_found(pipe, tmp_path, applied):
    eraser = rece.erase(pipe, "dog")
    if applied:
        eraser.apply(pipe)
    before = state(pipe)
    export.save_folder(eraser, pipe, tmp_path / "new" / "folder", "pipeline", variant="fp16")
    assert_same(state(pipe), before)
    assert (layers.fused(pipe) is not None) == applied
    assert os.listdir(tmp_path / "new") == ["folder"]
    files = tree(tmp_path / "new" / "folder")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in files
    assert [file for file in files if file.endswith((".bin", ".pt", ".ckpt"))] == []
    folder = tmp_path / "new" / "folder"
    loaded = DiffusionPipeline.from_pretrained(folder, variant="fp16", use_safetensors=True, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert layers.fused(loaded) is None
    assert torch.equal(images(loaded), images(pipe if applied else eraser.apply(pipe)))


def test_a_pipeline_folder_does_not_name_the_machines_folders(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "base", "base", "./base"):
        loaded = DiffusionPipeline.from_pretrained(name, local_files_only=True)
        export.save_folder(rece.erase(loaded, "dog", rounds=0), loaded, tmp_path / "made", "pipeline")
        for file in tree(tmp_path / "made"):
            text = (tmp_path / "made" / file).read_bytes()
            assert str(tmp_path).encode() not in text and b"_name_or_path" not in text
    DiffusionPipeline.from_pretrained(tmp_path / "made", local_files_only=True)


def test_an_old_folder_is_replaced_whole_or_left_alone(pipe, tmp_path, monkeypatch):
    eraser, folder = rece.erase(pipe, "dog"), tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("old")
    with pytest.raises(FileExistsError, match="folder holds notes.txt, which is not part of this export: choose"):
        export.save_folder(eraser, pipe, folder, "weights")
    assert tree(folder) == ["README.md", "notes.txt"] and (folder / "README.md").read_text() == "old"
    (folder / "notes.txt").unlink()
    export.save_folder(eraser, pipe, folder, "weights")
    assert tree(folder) == ["README.md", "weights.safetensors"] and os.listdir(tmp_path) == ["folder"]
    assert "without dog" in (folder / "README.md").read_text()

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(pipe), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        export.save_folder(eraser, pipe, tmp_path / "other", "pipeline")
    assert os.listdir(tmp_path) == ["folder"] and layers.fused(pipe) is None
    before, moved, replace = (folder / "README.md").read_text(), [], os.replace

    def once(source, target):
        moved.append(target)
        if len(moved) == 3:  # the new folder's turn, after a file and the old folder
            raise OSError("Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(OSError, match="Input/output"):
        export.save_folder(rece.erase(pipe, "cat"), pipe, folder, "weights")
    assert (folder / "README.md").read_text() == before and os.listdir(tmp_path) == ["folder"]
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is a file: choose a folder"):
        export.save_folder(eraser, pipe, tmp_path / "file", "pipeline")


def test_the_folder_that_the_pipeline_was_loaded_from_is_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "base")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "base", local_files_only=True)
    eraser = rece.erase(loaded, "dog", rounds=0)
    for kind in ("pipeline", "lora"):
        with pytest.raises(ValueError, match="folder: the pipeline was loaded from .*base: write to another folder"):
            export.save_folder(eraser, loaded, tmp_path / "sub" / ".." / "base", kind)
    assert not (tmp_path / "base" / "README.md").exists()


def test_files_have_the_permissions_that_the_umask_leaves(pipe, tmp_path):
    before = os.umask(0o027)
    try:
        export.save_folder(rece.erase(pipe, "dog", rounds=0), pipe, tmp_path / "out", "eraser")
    finally:
        os.umask(before)
    modes = [(tmp_path / "out" / name).stat().st_mode & 0o777 for name in ("", "README.md", "eraser.safetensors")]
    assert modes == [0o750, 0o640, 0o640]


def test_another_eraser_on_the_pipeline_is_refused(pipe, tmp_path):
    dog, cat = rece.erase(pipe, "dog"), rece.erase(pipe, "cat")
    dog.apply(pipe)
    with pytest.raises(ValueError, match="carries another eraser"):
        export.save_weights(cat, pipe, tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="carries another eraser"):
        export.save_folder(cat, pipe, tmp_path / "out", "pipeline")
    assert os.listdir(tmp_path) == []
    before = state(pipe)
    with pytest.raises(RuntimeError, match="mine"), export.applied(dog, pipe):
        raise RuntimeError("mine")
    assert_same(state(pipe), before)


@pytest.mark.parametrize("kind", export.FILES)
def test_the_lines_of_the_card_load_the_folder_it_is_in(pipe, tmp_path, monkeypatch, kind):
    pipe.save_pretrained(tmp_path / "base")
    eraser = rece.erase(pipe, "dog")
    export.save_folder(eraser, pipe, tmp_path / "made", kind, base_model=str(tmp_path / "base"))
    assert kind == "pipeline" or tree(tmp_path / "made") == sorted(["README.md", export.FILES[kind]])
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "made" / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 6
    lines = code.splitlines()
    monkeypatch.chdir(tmp_path / "made")
    names = {}
    exec("\n".join(lines[:-1]), names)  # all but the drawing, which would take 50 steps
    assert lines[-1] == 'image = pipe("dog").images[0]'
    names["pipe"].set_progress_bar_config(disable=True)
    assert_close(images(names["pipe"]), images(eraser.apply(pipe)), atol=1e-4, rtol=0)


BAD = {
    "kind": (dict(kind="gguf"), "kind must be one of lora, weights, eraser, pipeline, not 'gguf'"),
    "rank": (dict(kind="weights", rank=3), "rank belongs to kind lora, not to 'weights'"),
    "rank size": (dict(rank=33), "rank must be between 1 and the width 32"),
    "variant": (dict(variant="fp16"), "variant belongs to kind pipeline, not to 'lora'"),
    "dtype": (dict(kind="eraser", dtype=torch.float16), "dtype belongs to kind lora or weights"),
    "base_model": (dict(base_model=" "), "base_model must be the name of the model"),
    "results": (dict(results=pd.DataFrame({"attack": ["a"], "n": [1]})), r"missing: \['rate', 'low', 'high'\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_before_anything_is_written(pipe, tmp_path, case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        export.save_folder(rece.Eraser(torch.eye(32)), pipe, tmp_path / "out", **change)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == []


class Hub:
    """Stands in for HfApi; records what it is asked."""

    calls = []
    private = True

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call

    commit_url = "https://hub/commit"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(export, "HfApi", Hub)
    monkeypatch.setattr(export.constants, "HF_HUB_OFFLINE", False)
    return Hub


def test_a_folder_with_a_card_is_uploaded_private_unless_told_otherwise(tmp_path, hub):
    (tmp_path / "README.md").write_text("card")
    assert export.push_to_hub(tmp_path, "me/dog", token="secret", revision="v1") == "https://hub/commit"
    done = {call[0]: call[1:] for call in hub.calls}
    assert done["token"] == ("secret",)
    assert done["create_repo"] == (("me/dog",), {"private": True, "exist_ok": True})
    assert done["create_branch"][1] == {"branch": "v1", "exist_ok": True}
    sent = done["upload_folder"][1]
    assert (sent["repo_id"], sent["folder_path"], sent["revision"]) == ("me/dog", tmp_path, "v1")
    assert list(done).index("create_branch") < list(done).index("upload_folder")
    assert ".*" in sent["ignore_patterns"]


def test_nothing_is_published_by_mistake(tmp_path, hub, monkeypatch):
    with pytest.raises(FileNotFoundError, match="has no README.md: write the model card"):
        export.push_to_hub(tmp_path, "me/dog")
    with pytest.raises(FileNotFoundError, match="there is no folder .*missing"):
        export.push_to_hub(tmp_path / "missing", "me/dog")
    (tmp_path / "README.md").write_text("card")
    monkeypatch.setattr(hub, "private", False)
    with pytest.raises(ValueError, match="me/dog exists and is public: give private=False"):
        export.push_to_hub(tmp_path, "me/dog")
    assert "upload_folder" not in {call[0] for call in hub.calls}
    export.push_to_hub(tmp_path, "me/dog", private=False)
    assert "upload_folder" in {call[0] for call in hub.calls}
    hub.calls.clear()
    monkeypatch.setattr(export.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        export.push_to_hub(tmp_path, "me/dog")
    assert hub.calls == []


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("card")
    monkeypatch.setattr(export.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(export, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9"))
    with pytest.raises(OSError, match="the hub cannot be reached, try again: .*refused"):
        export.push_to_hub(tmp_path, "me/dog", token="none")
    with pytest.raises(ValueError, match="a/b/c"):
        export.push_to_hub(tmp_path, "a/b/c", token="none")


@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl])
def test_a_lora_in_kohyas_form_draws_what_the_eraser_draws(make, tmp_path):
    pipe = make()
    eraser = rece.erase(pipe, "dog", pooled=False, **tiny.numbers())
    export.save_kohya(eraser, pipe, tmp_path / "dog.safetensors")
    keys = load_file(tmp_path / "dog.safetensors")
    assert all(re.fullmatch(r"lora_unet_\w+\.(lora_down\.weight|lora_up\.weight|alpha)", key) for key in keys)
    names = [name for path in families.paths(pipe) for name in layers.prompt_layers(pipe, path)]
    plain = images(pipe)
    pipe.load_lora_weights(tmp_path, weight_name="dog.safetensors")
    lora, drawn = tiny.matrices(pipe.unet, names), images(pipe)
    pipe.unload_lora_weights()
    with eraser.on(pipe):
        for name, W in tiny.matrices(pipe.unet, names).items():  # the pooled path's too, which are left alone
            assert (lora[name] - W).norm() <= 1e-6 * W.norm()
    assert (drawn - plain).abs().max() > 0.01


@pytest.mark.parametrize(
    ("make", "message"), [(tiny.sd3, "pipe must have a UNet"), (tiny.sdxl, "make the eraser with pooled=False")]
)
def test_what_kohyas_form_cannot_hold_is_refused(make, message, tmp_path):
    pipe = make()
    eraser = rece.erase(pipe, "dog", **tiny.numbers())
    with pytest.raises(ValueError, match=message):
        export.save_kohya(eraser, pipe, tmp_path / "dog.safetensors")
    assert not list(tmp_path.iterdir())
