"""Edits of every kind: applied, taken back to the bit, saved, loaded, refused."""

import pytest
import tiny
import torch

import rece
from rece import layers, methods
from rece.edits import CARRIED, Edit, Hooks, Weights
from rece.images import fingerprint, generate

QUICK = {"steps": 2, "batch_size": 2, "progress": False}
NAME = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def changes(pipe):
    """One change of each form, in two parts of the pipeline."""
    random = torch.Generator().manual_seed(0)
    weight = pipe.unet.get_submodule(NAME).weight
    text = dict(pipe.text_encoder.named_parameters())
    first, second = (name for name in text if name.endswith("fc1.weight"))
    return {
        f"unet.{NAME}.weight": (torch.randn(len(weight), 2, generator=random), torch.randn(2, 32, generator=random)),
        f"text_encoder.{first}": torch.randn(text[first].shape, generator=random),
        f"text_encoder.{second}": torch.tensor([0, 5, 7]),
    }


def hook(pipe):
    return methods.run("sld", pipe, "dog", warm_up=0.0)


def made(pipe):
    """An edit of every kind."""
    return {
        "map": rece.erase(pipe, "dog", rounds=0, progress=False),
        "weights": Weights(changes(pipe)),
        "hooks": hook(pipe),
    }


@pytest.mark.parametrize("kind", ["map", "weights", "hooks"])
def test_every_kind_changes_pictures_and_is_taken_back_to_the_bit(pipe, kind):
    edit = made(pipe)[kind]
    before, plain = fingerprint(pipe), generate(pipe, ["a dog"], [0], **QUICK)
    with edit.on(pipe) as edited:
        assert edited is pipe and edit.carried_by(pipe) and fingerprint(pipe) != before
        assert (generate(pipe, ["a dog"], [0], **QUICK) != plain).any()
    assert not edit.carried_by(pipe) and fingerprint(pipe) == before
    assert (generate(pipe, ["a dog"], [0], **QUICK) == plain).all()


@pytest.mark.parametrize("kind", ["map", "weights", "hooks"])
def test_a_file_of_every_kind_is_the_same_edit(pipe, kind, tmp_path):
    edit = made(pipe)[kind]
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert type(loaded) is type(edit) and loaded.provenance == edit.provenance
    edit.apply(pipe)
    found = fingerprint(pipe)
    loaded.remove(pipe)  # the same edit, so it may
    loaded.apply(pipe)
    assert fingerprint(pipe) == found


def test_changes_are_what_they_say(pipe):
    given = changes(pipe)
    (low, dense, zero), plain = given, {name: tensor.clone() for name, tensor in parameters(pipe).items()}
    with Weights(given).on(pipe):
        found = parameters(pipe)
        torch.testing.assert_close(found[low], plain[low] + given[low][0] @ given[low][1])
        torch.testing.assert_close(found[dense], plain[dense] + given[dense], rtol=0, atol=0)
        assert (found[zero].flatten()[[0, 5, 7]] == 0).all()
        assert {name for name in found if not torch.equal(found[name], plain[name])} == {*given}


def parameters(pipe):
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {f"{part}.{name}": one for part, model in parts.items() for name, one in model.state_dict().items()}


def test_a_victim_shares_the_parts_that_its_edit_leaves_alone(pipe):
    first = next(name for name in changes(pipe) if name.startswith("text_encoder"))
    victim = Weights({first: changes(pipe)[first]}).copy_of(pipe)
    assert victim.unet is pipe.unet and victim.text_encoder is not pipe.text_encoder
    assert hook(pipe).copy_of(pipe).text_encoder is pipe.text_encoder
    assert not hasattr(pipe.text_encoder, CARRIED) and not hasattr(pipe.unet, CARRIED)


def test_a_map_as_changed_weights_has_its_certificate(pipe):
    """The bound of weights is the bound of the map that made them, up to the reach that it allows an embedding."""
    eraser = rece.erase(pipe, "dog", rounds=0, progress=False)
    changed = {
        f"unet.{name}.weight": edited - layers.prompt_layers(pipe)[name].weight
        for name, edited in layers.edited(pipe, eraser.map, dtype="float64").items()
    }
    shipped = rece.certify(pipe, None, "dog", shipped=Weights(changed).readers(pipe)).words.shipped
    wanted = rece.certify(pipe, eraser, "dog", shipped="float32").words.shipped
    assert shipped.to_numpy() == pytest.approx(wanted.to_numpy(), rel=1e-3)


def test_one_pipeline_carries_one_edit(pipe):
    edits = made(pipe)
    for first in edits.values():
        with first.on(pipe):
            for second in edits.values():
                if second is not first:
                    with pytest.raises(ValueError, match="carries an"):
                        second.apply(pipe)
                    with pytest.raises(ValueError, match="carries"):
                        second.remove(pipe)


def test_another_edit_of_the_kind_is_not_taken_off(pipe):
    given = changes(pipe)
    other = Weights({name: change for name, change in given.items() if name.startswith("unet")})
    with Weights(given).on(pipe), pytest.raises(ValueError, match="another edit"):
        other.remove(pipe)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"unet.nothing.weight": torch.zeros(2, 2)}, "no such parameter"),
        ({"nothing.weight": torch.zeros(2, 2)}, "no such parameter"),
        ({f"unet.{NAME}.weight": torch.zeros(2, 2)}, r"is \(2, 2\)"),
        ({f"unet.{NAME}.weight": torch.tensor([10**6])}, "outside"),
    ],
)
def test_what_does_not_fit_changes_nothing(pipe, changed, message):
    good, before = changes(pipe), fingerprint(pipe)
    with pytest.raises(ValueError, match=message):
        Weights(good | changed).apply(pipe)
    assert fingerprint(pipe) == before and not hasattr(pipe.unet, CARRIED)


@pytest.mark.parametrize(
    "change, message",
    [
        (torch.tensor([torch.nan]), "not finite"),
        ((torch.ones(4, 2), torch.ones(3, 4)), "pair"),
        (torch.ones(3, dtype=torch.bool), "whole numbers"),
    ],
)
def test_a_bad_change_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=rf"changes\[unet.x\].*{message}"):
        Weights({"unet.x": change})


def test_a_wrong_kind_or_a_broken_file_is_refused(pipe, tmp_path):
    path = tmp_path / "edit.safetensors"
    Weights(changes(pipe)).save(path)
    with pytest.raises(ValueError, match="kind weights, not map: read it with Edit.load"):
        rece.Eraser.load(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="not a whole eraser file"):
        Edit.load(path)
    with pytest.raises(ValueError, match="no method 'os'"):
        Hooks("os", {}, {})
    for rule in ("uce", 5):
        with pytest.raises(ValueError, match="has no hook"):
            Hooks(rule, {}, {})


def test_an_edit_for_another_encoder_is_refused(pipe):
    edit = Weights(changes(pipe), {"text_encoders": ["another"]})
    with pytest.raises(ValueError, match="this eraser is for"):
        edit.apply(pipe)


def test_half_precision_weights_are_changed_in_their_own_dtype():
    pipe = tiny.sd()
    pipe.unet.half()
    weight = pipe.unet.get_submodule(NAME).weight.detach().clone()
    with Weights({f"unet.{NAME}.weight": torch.full_like(weight, 0.25, dtype=torch.float32)}).on(pipe):
        found = pipe.unet.get_submodule(NAME).weight
        assert found.dtype == torch.float16 and torch.equal(found, (weight.float() + 0.25).half())
    assert torch.equal(pipe.unet.get_submodule(NAME).weight, weight)
