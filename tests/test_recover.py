"""Other projects' files on tiny pipelines: what is an eraser is found again, what is not is called so, none is run."""

import hashlib
import os
from collections import OrderedDict

import literal
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import rece
from rece import families, layers, solver
from rece.sharing import export, recover

K, V = ".attn2.to_k", ".attn2.to_v"


def weights(pipe):
    return {name: p.detach().clone() for name, p in families.model(pipe).state_dict().items()}


def by_the_literal_method(pipe, concepts, rounds):
    """The edited layers as UCE's and RECE's own loops make them, in the pipeline's dtype."""

    @torch.no_grad()
    def embed(text):
        ids = pipe.tokenizer(text, padding="max_length", max_length=tiny.POSITIONS, return_tensors="pt").input_ids
        return pipe.text_encoder(ids).last_hidden_state[0]

    originals = layers.originals(pipe)
    last = lambda text: len(pipe.tokenizer(text).input_ids) - 2  # noqa: E731
    steps = literal.erase(list(originals.values()), embed, last, concepts, [" "] * len(concepts), rounds=rounds)
    return {f"{name}.weight": W for name, W in zip(originals, steps[-1], strict=True)}


def edited(pipe, eraser):
    """Every weight of the model with the eraser in it, as a whole state dictionary."""
    with export.applied(eraser, pipe):
        return weights(pipe)


def as_uce(pipe, found, path):
    save_file(found, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def as_rece(pipe, found, path):
    torch.save(OrderedDict(weights(pipe) | found), path.with_suffix(".pt"))
    return path.with_suffix(".pt")


@pytest.mark.parametrize("save", [as_uce, as_rece])
@pytest.mark.parametrize("rounds", [0, 3])
def test_the_map_behind_a_published_edit_is_found(pipe, tmp_path, save, rounds):
    pipe.to(torch.float64)
    file = save(pipe, by_the_literal_method(pipe, ["dog", "a big cat"], rounds), tmp_path / "peer")
    found = recover.recover(pipe, file)
    own = rece.erase(pipe, ["dog", "a big cat"], rounds=rounds)
    assert (found.eraser.map - own.map).norm() <= 1e-6 * (own.map - torch.eye(32)).norm()
    assert found.exact and found.residual < 1e-7 and found.unexplained == []
    assert found.layers.given.all() and (found.layers.residual < 1e-6).all() and (found.layers.change > 0.1).all()
    others = [name for name in weights(pipe) if not name.endswith((f"{K}.weight", f"{V}.weight"))]
    assert found.unchanged == ([] if save is as_uce else others)
    known = found.eraser.provenance
    assert known["recovered"]["file"] == file.name
    assert known["recovered"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert known["recovered"]["residual"] == found.residual
    found.eraser.save(tmp_path / "eraser.safetensors")
    rece.Eraser.load(tmp_path / "eraser.safetensors").apply(pipe)
    with torch.no_grad():
        for name, W in recover.read_weights(file).items():
            assert_close(pipe.unet.state_dict()[name], W, atol=1e-6, rtol=1e-6)


def test_a_float32_file_of_the_published_method_is_within_the_default_tolerance(pipe):
    found = recover.recover(pipe, by_the_literal_method(pipe, ["dog"], 3))
    assert found.exact and found.rounding < found.residual < recover.TOLERANCE


@pytest.mark.parametrize("make", [tiny.sdxl, tiny.sd3, tiny.flux, tiny.pixart])
def test_every_family_with_its_pooled_path(make):
    pipe = make()
    eraser = rece.erase(pipe, "dog", rounds=1)
    found = recover.recover(pipe, edited(pipe, eraser))
    assert found.exact and found.residual < 1e-4 and found.unexplained == []
    assert (found.eraser.pooled is None) == (eraser.pooled is None)
    for path in families.paths(pipe):
        made, known = (e.map if path == "tokens" else e.pooled for e in (found.eraser, eraser))
        for W in layers.originals(pipe, path).values():
            W = solver.precise(W)
            assert (W @ made - W @ known).norm() <= 1e-4 * (W @ known - W).norm()
    assert set(found.layers.path) == set(families.paths(pipe))


def test_of_many_maps_the_one_of_least_change_is_taken():
    pipe = tiny.pixart()
    eraser = rece.erase(pipe, "dog", rounds=1)
    (W,) = (solver.precise(W) for W in layers.originals(pipe).values())
    assert W.shape[0] < W.shape[1]
    D = recover.recover(pipe, edited(pipe, eraser)).eraser.map - torch.eye(40)
    nothing_reads = torch.eye(40, dtype=torch.float64) - torch.linalg.pinv(W) @ W
    assert (nothing_reads @ D).norm() < 1e-8 * D.norm()
    assert D.norm() < (eraser.map - torch.eye(40)).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", ["half", "float32"])
def test_what_rounding_leaves_is_told_from_what_a_map_lacks(pipe, dtype, stored):
    eraser = rece.erase(pipe, "dog", rounds=1)
    half = {name: weight.to(dtype) for name, weight in edited(pipe, eraser).items()}
    file = half if stored == "half" else {name: weight.float() for name, weight in half.items()}
    if stored == "float32":
        pipe.unet.to(dtype).to(torch.float32)
    found = recover.recover(pipe, file, tolerance=1e-3)
    assert found.unexplained == [] and len(found.unchanged) == len(file) - len(found.layers)
    assert 0.6 < found.residual / found.rounding < 1.1
    assert found.exact and found.rounding > (1e-4 if dtype == torch.float16 else 1e-3)


def test_an_eraser_that_the_pipeline_carries_is_looked_through(pipe):
    eraser = rece.erase(pipe, "dog")
    file = edited(pipe, eraser)
    eraser.apply(pipe)
    assert_close(recover.recover(pipe, file).eraser.map, eraser.map, atol=1e-4, rtol=1e-4)


def test_an_unedited_file_is_the_identity(pipe):
    found = recover.recover(pipe, weights(pipe))
    assert torch.equal(found.eraser.map, torch.eye(32, dtype=torch.float64)) and found.exact
    assert found.residual == 0 and sorted(found.unchanged) == sorted(weights(pipe))


def noisy(pipe, endings, size=0.1):
    draw = torch.Generator().manual_seed(0)
    changed = {name: W for name, W in weights(pipe).items() if name.endswith(endings)}
    return {name: W + size * W.std() * torch.randn(W.shape, generator=draw) for name, W in changed.items()}


def test_a_trained_file_is_not_an_eraser(pipe):
    strict = noisy(pipe, (f"{K}.weight", f"{V}.weight"))
    with pytest.warns(
        UserWarning, match="no eraser explains these weights: the best one lacks [3-9].*% of the change"
    ):
        found = recover.recover(pipe, strict)
    assert not found.exact and found.residual > 0.3 and found.unexplained == []
    with pytest.warns(UserWarning, match=r"and \d+ other weights, e.g. .*attn2.to_q.weight"):
        found = recover.recover(pipe, noisy(pipe, tuple(f".attn2.{part}.weight" for part in ("to_q", "to_k", "to_v"))))
    assert not found.exact and all(name.endswith("to_q.weight") for name in found.unexplained)
    assert found.eraser.provenance["recovered"]["exact"] is False


def test_one_other_weight_that_changed_is_enough_to_say_so(pipe):
    file = edited(pipe, rece.erase(pipe, "dog"))
    file["conv_in.bias"] = file["conv_in.bias"] + 1e-6
    with pytest.warns(UserWarning, match="1 other weights, e.g. conv_in.bias"):
        found = recover.recover(pipe, file)
    assert found.unexplained == ["conv_in.bias"] and found.residual < 1e-4 and not found.exact


@pytest.mark.parametrize("ending", [K, V])
def test_keys_alone_or_values_alone_are_no_eraser_of_both(pipe, ending):
    file = edited(pipe, rece.erase(pipe, "dog"))
    with pytest.warns(UserWarning, match="no eraser explains"):
        found = recover.recover(pipe, {name: W for name, W in file.items() if name.endswith(f"{ending}.weight")})
    assert found.residual > 0.2 and found.layers.given.mean() == 0.5
    assert (found.layers.residual[~found.layers.given] == float("inf")).all()


def test_columns_that_read_no_text_must_not_change(xl):
    file = edited(xl, rece.erase(xl, "dog", rounds=1))
    file["add_embedding.linear_1.weight"][0, -1] += 1
    with pytest.warns(UserWarning, match="no eraser explains"):
        assert recover.recover(xl, file).unexplained == ["add_embedding.linear_1.weight[:, 32:]"]


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    for name, content in {"bare": Malice(tmp_path / "run"), "inside": {"a": Malice(tmp_path / "run")}}.items():
        file = tmp_path / f"{name}.pt"
        torch.save(content, file)
        with pytest.raises(ValueError, match="not a pickle of tensors alone and was not run: .*system") as error:
            recover.read_weights(file)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    call, arguments = Malice(tmp_path / "run").__reduce__()
    call(*arguments)  # what unpickling does
    assert (tmp_path / "run").exists()


def test_wrappings_and_prefixes_are_taken_off_and_said(pipe, tmp_path):
    own = {name: W for name, W in weights(pipe).items() if K in name}
    torch.save({"state_dict": {f"unet.{name}": W for name, W in own.items()}, "epoch": 3}, tmp_path / "a.ckpt")
    with pytest.warns(UserWarning) as said:
        found = recover.read_weights(tmp_path / "a.ckpt")
    assert [str(one.message) for one in said] == [
        "a.ckpt: took the weights from under 'state_dict', leaving out 'epoch'",
        f"a.ckpt: took 'unet.' off all {len(own)} names",
    ]
    assert list(found) == list(own) and all(torch.equal(found[name], own[name]) for name in own)


BAD = {
    "text": ("weights.txt", lambda f: f.write_text("x"), "must be a .safetensors file or a .pt"),
    "half a file": ("weights.safetensors", lambda f: f.write_bytes(b"\x10" * 9), "is not a whole safetensors file"),
    "no pickle": ("weights.pt", lambda f: f.write_text("not a pickle"), "not a pickle of tensors alone"),
    "empty": ("weights.pt", lambda f: f.write_bytes(b""), "not a pickle of tensors alone"),
    "a list": ("weights.pt", lambda f: torch.save([torch.ones(2)], f), "holds a list, not weights by name"),
    "a number": ("weights.pt", lambda f: torch.save({"a": 1.0}, f), "holds 'a', a float, where only tensors"),
    "nothing": ("weights.pt", lambda f: torch.save({}, f), "holds no weights"),
    "nan": ("weights.pt", lambda f: torch.save({"a": torch.tensor([torch.nan])}, f), "a must be floats"),
    "integers": ("weights.pt", lambda f: torch.save({"a": torch.tensor([1])}, f), "a must be floats"),
    "CompVis": (
        "weights.ckpt",
        lambda f: torch.save({"state_dict": {"model.diffusion_model.out.2.weight": torch.ones(2)}}, f),
        "CompVis' layout: load it with DiffusionPipeline.from_single_file",
    ),
}


@pytest.mark.filterwarnings("ignore:.*took the weights")
@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line_that_says_what_is_wrong(tmp_path, case):
    name, write, message = BAD[case]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        recover.read_weights(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)
    with pytest.raises(FileNotFoundError, match="no weights file at .*missing.pt"):
        recover.read_weights(tmp_path / "missing.pt")


def test_weights_of_another_model_are_refused_and_nothing_changes(pipe):
    before, wide = weights(pipe), tiny.sd(width=64)
    with pytest.raises(ValueError, match=r"attn2.to_k.weight is \(16, 64\), but pipe.unet's is \(16, 32\)"):
        recover.recover(pipe, {name: W for name, W in weights(wide).items() if "attn2" in name})
    own = noisy(pipe, f"{K}.weight")
    name = next(iter(own))
    misspelt = own | {name.replace("to_k", "to_key"): own[name]}
    with pytest.raises(ValueError, match=rf"no weight named '.*to_key.weight' \(1 of {len(misspelt)} names"):
        recover.recover(pipe, misspelt)
    assert all(torch.equal(W, before[name]) for name, W in weights(pipe).items())
    with pytest.raises(ValueError, match="tolerance must be a non-negative"):
        recover.recover(pipe, own, tolerance=-1.0)


@pytest.mark.parametrize("family", [tiny.sd, tiny.sdxl, tiny.sd3, tiny.flux])
def test_a_lora_of_ours_is_recovered_as_the_eraser_it_was(family, tmp_path):
    pipe = family()
    eraser = rece.erase(
        pipe, "dog", start={"lamb": 5.0}, each={"lamb": 2.0, "derive_lamb": 0.5}, rounds=1, progress=False
    )
    eraser.save_lora(tmp_path)
    with pytest.warns(UserWarning, match="off all"):
        found = recover.recover(pipe, tmp_path / "pytorch_lora_weights.safetensors")
    assert found.exact and found.residual < 1e-5 and not found.unexplained
    for path in families.paths(pipe):
        mine, theirs = ((e.map, e.pooled)[path == "pooled"] for e in (eraser, found.eraser))
        for W in layers.originals(pipe, path).values():
            change = W.double() @ mine - W.double()
            assert (W.double() @ theirs - W.double() - change).norm() < 1e-5 * change.norm()


def test_a_carried_eraser_is_looked_through_on_both_paths(xl, tmp_path):
    first, second = (rece.erase(xl, text, start={"lamb": 5.0}, rounds=0, progress=False) for text in ("dog", "cat"))
    first.save_lora(tmp_path)
    second.apply(xl)
    with pytest.warns(UserWarning, match="off all"):
        found = recover.recover(xl, tmp_path / "pytorch_lora_weights.safetensors")
    assert found.exact and found.residual < 1e-5
    for path, mine, theirs in (("tokens", first.map, found.eraser.map), ("pooled", first.pooled, found.eraser.pooled)):
        for W in layers.originals(xl, path).values():
            assert_close(W.double() @ theirs, W.double() @ mine, rtol=0, atol=1e-5)


def test_loras_that_diffusers_would_ignore_are_refused(pipe, tmp_path):
    rece.erase(pipe, "dog", progress=False).save_lora(tmp_path)
    tensors = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    save_file({name.removeprefix("unet."): tensor for name, tensor in tensors.items()}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="lacks the prefix unet. or transformer., without which load_lora_weights"):
        recover.read_weights(tmp_path / "bare.safetensors")
    kohya = {"lora_unet_mid.lora_down.weight": torch.ones(2, 3), "lora_unet_mid.lora_up.weight": torch.ones(3, 2)}
    save_file(kohya, tmp_path / "kohya.safetensors")
    with pytest.raises(ValueError, match="a LoRA in another layout"):
        recover.read_weights(tmp_path / "kohya.safetensors")
    one = next(name for name in tensors if name.endswith("to_v.lora_A.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != one}, tmp_path / "lacks.safetensors")
    with pytest.raises(ValueError, match="the LoRA does not fit"), pytest.warns(UserWarning, match="off all"):
        recover.edited_layers(pipe, tmp_path / "lacks.safetensors")
    other = {name: tensor for name, tensor in tensors.items() if not name.endswith("to_v.lora_B.weight")}
    save_file(other, tmp_path / "half.safetensors")
    with (
        pytest.warns(UserWarning, match="off all"),
        pytest.raises(ValueError, match="the LoRA does not fit pipe.unet"),
    ):
        recover.recover(pipe, tmp_path / "half.safetensors")
