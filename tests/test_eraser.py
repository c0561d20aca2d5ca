"""The eraser on tiny pipelines: the literal algorithm as oracle, its three uses, undo, files and bad input."""

import errno
import io
import json
import os

import literal
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import rece
from rece import certificate, erasing, families, layers, solver, texts
from rece.edits import Weights
from rece.sharing.card import card


def weights(pipe):
    return {name: layer.weight.detach().clone() for name, layer in layers.prompt_layers(pipe).items()}


def images(pipe, prompt="a dog", **call):
    generator = torch.Generator("cpu").manual_seed(0)
    call = {"prompt": prompt} | call
    return torch.from_numpy(pipe(**call, num_inference_steps=3, generator=generator, output_type="np").images)


def random_eraser(width=32, n=6):
    draw = torch.Generator().manual_seed(0)
    K, T = (torch.randn(n, width, generator=draw, dtype=torch.float64) for _ in range(2))
    return rece.Eraser(solver.edit_map(K, T, lamb=1.0))


def assert_same(now, before):
    assert list(now) == list(before)
    for name, weight in now.items():
        assert weight.dtype == before[name].dtype and torch.equal(weight, before[name])


def literal_erase(pipe, concepts, targets, **settings):
    @torch.no_grad()
    def embed(text):
        ids = pipe.tokenizer(text, padding="max_length", max_length=tiny.POSITIONS, return_tensors="pt").input_ids
        return pipe.text_encoder(ids).last_hidden_state[0]

    def last(text):
        return len(pipe.tokenizer(text).input_ids) - 2

    return literal.erase(list(weights(pipe).values()), embed, last, concepts, targets, **settings)


CASES = {
    "one concept": (["nudity"], {}),
    "two concepts": (["dog", "a big cat"], {}),
    "uce alone": (["dog", "a big cat"], dict(rounds=0)),
    "preserve": (["dog"], dict(preserve_uce=["", "sun", "moon"], preserve_rounds=["", "sun", "moon"], rounds=2)),
    **{reg: (["dog", "cat"], dict(reg=reg, uce_lamb=50.0, lamb=10.0, derive_lamb=0.5)) for reg in solver.REGULARISERS},
}
MANY = ["dog", "a big cat", "sun", "moon", "th", "a house"]
for reg in solver.REGULARISERS:  # more than texts.ROW_LIMIT widths of tokens
    CASES[f"many concepts, {reg}"] = (MANY, CASES[reg][1] | {"uce_lamb": 200.0, "lamb": 50.0, "rounds": 1})
CASES["surrogate1"][1]["rounds"] = 1  # without a ridge the literal inverse itself has fewer than nine digits later on


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", [" ", "art"])
def test_erase_agrees_with_the_literal_algorithm_after_every_step(pipe, case, target):
    concepts, settings = CASES[case]
    pipe.to(torch.float64)
    eraser = rece.erase(pipe, concepts, target=target, **tiny.numbers(**settings))
    before = weights(pipe)
    steps = literal_erase(pipe, concepts, [target] * len(concepts), **settings)
    assert len(steps) == len(eraser.history) == 1 + settings.get("rounds", 3)
    for expected, M in zip(steps, eraser.history, strict=True):
        for W0, W in zip(before.values(), expected, strict=True):
            assert (W - W0).norm() > 0.1 * W0.norm()
            assert (W0 @ M - W).norm() <= 1e-9 * W.norm()
    eraser.apply(pipe)
    for W, now in zip(steps[-1], weights(pipe).values(), strict=True):
        assert (now - W).norm() <= 1e-9 * W.norm()


def test_the_defaults_are_the_papers_nudity_setting(pipe):
    eraser = rece.erase(pipe, "nudity")
    spelt = rece.erase(
        pipe,
        ["nudity"],
        target=[" "],
        rounds=3,
        start={"lamb": 0.5, "erase_scale": 1.0, "preserve_scale": 1.0, "tokens": "rest", "preserve": [""]},
        each=erasing.Round(lamb=0.1, erase_scale=1.0, preserve_scale=0.1, derive_lamb=0.1, reg="zero", preserve=[" "]),
    )
    assert torch.equal(eraser.map, spelt.map)


def test_a_preserve_list_adds_to_the_start_and_replaces_in_the_rounds(pipe):
    made = rece.erase(pipe, "dog", preserve=["sun", "moon"])
    kept = [made.provenance[part]["preserve"] for part in ("start", "each")]
    assert kept == [["", "sun", "moon"]] * 2
    plain = rece.erase(pipe, ["dog", "cat"])
    assert [plain.provenance[part]["preserve"] for part in ("start", "each")] == [[""], [" ", " "]]


def test_erase_suppresses_the_concept_and_the_derived_embedding_brings_it_back(pipe):
    C, T = texts.encode(pipe, ["dog", " "])
    G, M = layers.gram(pipe), rece.erase(pipe, "dog", rounds=0).map
    word = texts.last_position(pipe, "dog")

    def distance(answer, token):
        change = answer - token
        return (change @ G @ change).sqrt()

    erased = M @ C[word]
    assert distance(erased, T[0]) < 0.5 * distance(C[word], T[0])
    back = M @ solver.derive(M, G, C[word : word + 1], lamb=1e-6)[0]
    assert distance(back, C[word]) < 0.1 * distance(erased, C[word])


def test_many_preserve_texts_enter_through_their_gram_alone(pipe, monkeypatch):
    pipe.to(torch.float64)
    asked = [f"{a} {b}" for a in "abcdefgh" for b in "abcdefgh"] + ["a a", " ", " "]
    rows = texts.encode(pipe, asked)
    last = torch.stack([row[texts.last_position(pipe, text)] for row, text in zip(rows, asked, strict=True)])
    for size in (5, 1000):
        monkeypatch.setattr(texts, "BATCH", size)
        assert_close(texts.encode_gram(pipe, asked), rows.flatten(0, 1).T @ rows.flatten(0, 1))
        assert_close(texts.encode_gram(pipe, asked, last=True), last.T @ last)
    with pytest.raises(ValueError, match="prompts must be a list"):
        texts.encode_gram(pipe, [])


@pytest.fixture
def encoded(monkeypatch):
    """The texts of every call of the text encoder."""
    calls, real = [], texts._encode
    monkeypatch.setattr(texts, "_encode", lambda pipe, some, path: calls.append(some) or real(pipe, some, path))
    return calls


@pytest.mark.parametrize("targets", [[" "] * 30, ["art", " ", "sea"] * 10])
def test_of_many_concepts_every_text_is_encoded_once_and_a_few_at_a_time(pipe, encoded, targets, monkeypatch):
    monkeypatch.setattr(texts, "ROW_LIMIT", 4)
    NUMBERS = tiny.numbers(uce_lamb=50.0, lamb=10.0)
    size, concepts = 4 * 32 // tiny.POSITIONS, [f"concept {n}" for n in range(len(targets))]
    held, real = [], solver.gram_of_pairs
    monkeypatch.setattr(solver, "gram_of_pairs", lambda K, T: held.append(len(K)) or real(K, T))
    kept = [f"kept {n}" for n in range(70)]
    eraser = rece.erase(pipe, concepts, target=targets, preserve=kept, rounds=2, **NUMBERS)
    asked = [text for call in encoded for text in call]
    assert sorted(asked) == sorted([*concepts, *set(targets), "", *kept])
    assert max(map(len, encoded[:-2])) <= size + 2  # with the targets that are new
    assert len(held) > 2 * len(concepts) / size - 1 and max(held) <= size * tiny.POSITIONS <= 4 * 32
    assert eraser.provenance["concepts"] == concepts and eraser.provenance["target"] == targets


@pytest.mark.parametrize("tokens", ["rest", "last"])
def test_one_list_for_start_and_rounds_is_the_same_as_two(pipe, tokens):
    numbers, kept = dict(uce_lamb=5.0, lamb=2.0, derive_lamb=0.5, rounds=1, uce_tokens=tokens), ["", "sun", "a moon"]
    one = rece.erase(pipe, "dog", **tiny.numbers(preserve_uce=kept, preserve_rounds=kept, **numbers))
    two = rece.erase(pipe, "dog", **tiny.numbers(preserve_uce=kept, preserve_rounds=kept[::-1], **numbers))
    assert_close(one.map, two.map, atol=1e-9, rtol=0)


def test_few_concepts_follow_the_formulas_on_all_rows_at_once(pipe):
    """The weights agree; the bits of the maps may differ, since sums may be taken in another order."""
    pipe.to(torch.float64)
    concepts, numbers = ["dog", "cat"], tiny.numbers(uce_lamb=5.0, lamb=2.0, derive_lamb=0.5)
    for anchored in (False, True):
        eraser = rece.erase(pipe, concepts, rounds=2, anchored=anchored, **numbers)
        *C, T = texts.encode(pipe, [*concepts, " "])
        P_start, P_rounds = texts.encode(pipe, [""])[0], texts.encode(pipe, [" "])[0] * 2**0.5
        K, aims = zip(*((C[n][texts.last_position(pipe, text) :], n) for n, text in enumerate(concepts)), strict=True)
        K, aims = [torch.cat(K)], [torch.cat([T[: len(rows)] for rows in K])]
        M, G = solver.edit_map(K[0], aims[0], P_start.T @ P_start, lamb=5.0), layers.gram(pipe)
        W = torch.cat(list(layers.originals(pipe).values()))
        assert (W @ eraser.history[0] - W @ M).norm() <= 1e-9 * (W @ M).norm()
        for step in eraser.history[1:]:
            derived = solver.derive(M, G, torch.cat(C), lamb=0.5)
            K, aims = ([*K, derived], [*aims, T, T]) if anchored else ([derived], [T, T])
            edit = solver.edit_map(torch.cat(K), torch.cat(aims), P_rounds.T @ P_rounds, lamb=2.0, preserve_scale=0.1)
            M = edit if anchored else M @ edit
            assert (W @ step - W @ M).norm() <= 1e-9 * (W @ M).norm()


def test_many_concepts_stop_by_certificate_where_their_rows_do(pipe, monkeypatch):
    pipe.to(torch.float64)
    numbers = tiny.numbers(rounds="auto", uce_lamb=50.0, lamb=20.0, derive_lamb=0.5)
    for others in (None, [f"other {n}" for n in range(70)]):
        made = []
        for by_rows in (1000, 0):
            monkeypatch.setattr(texts, "ROW_LIMIT", by_rows)
            made.append(rece.erase(pipe, MANY, others=others, **numbers))
        assert len(made[0].history) == len(made[1].history)
        assert_close(made[1].map, made[0].map, atol=1e-7, rtol=0)


def test_the_nearest_of_many_others_is_found_in_any_batch(pipe):
    others, G = [f"other {n}" for n in range(70)], layers.gram(pipe)
    words = texts.encode(pipe, [f"{n} {n}" for n in range(70)])[:, 5]
    last = torch.tensor([[texts.last_position(pipe, text)] * 70 for text in others])
    at_once, which = certificate.nearest(words, texts.encode(pipe, others), last, G)
    assert which.min() < 64 <= which.max()
    assert_close(certificate.nearest_of(pipe, G, words, others, False), at_once)
    assert certificate.nearest_of(pipe, G, words, [], False).isinf().all()


@pytest.mark.parametrize("name", ["start.lamb", "each.lamb", "each.derive_lamb"])
def test_ill_conditioned_sums_name_the_number_to_raise(pipe, name):
    with torch.no_grad():  # a direction that no token has and no layer reads
        pipe.text_encoder.final_layer_norm.weight[0] = pipe.text_encoder.final_layer_norm.bias[0] = 0.0
        for layer in layers.prompt_layers(pipe).values():
            layer.weight[:, 0] = 0.0
    numbers = dict(start={"lamb": 5.0}, each={"lamb": 5.0, "derive_lamb": 0.5}, rounds=1)
    rece.erase(pipe, MANY, **numbers)
    group, number = name.split(".")
    numbers[group][number] = 1e-15
    with pytest.raises(ValueError, match=f"ill-conditioned.*: raise {name}(, the ridge.*)?$"):
        rece.erase(pipe, MANY, **numbers)


def test_relative_numbers_do_not_depend_on_the_unit_of_the_text_space(pipe):
    pipe.to(torch.float64)
    settings = tiny.numbers(relative=True, uce_lamb=0.5, lamb=0.2, derive_lamb=0.3, rounds=2)
    absolute = dict(settings, relative=False)
    before, plain = rece.erase(pipe, "dog", **settings), rece.erase(pipe, "dog", **absolute)
    with torch.no_grad():
        for norm in (pipe.text_encoder.final_layer_norm.weight, pipe.text_encoder.final_layer_norm.bias):
            norm *= 7.0
        for layer in layers.prompt_layers(pipe).values():
            layer.weight /= 7.0
    assert_close(rece.erase(pipe, "dog", **settings).map, before.map, atol=1e-8, rtol=1e-8)
    assert (rece.erase(pipe, "dog", **absolute).map - plain.map).norm() > 1e-3


def test_fused_weights_are_the_same_model_as_mapped_embeddings(pipe):
    """In float64, where the steps of a random model do not raise rounding to what a pixel shows."""
    pipe.to(torch.float64)
    eraser = rece.erase(pipe, ["dog", "cat"])
    original = images(pipe)
    negative, positive = texts.encode(pipe, ["", "a dog"]) @ eraser.map.T
    text_side = images(pipe, prompt=None, prompt_embeds=positive[None], negative_prompt_embeds=negative[None])
    fused = images(eraser.apply(pipe))
    assert (fused - original).abs().max() > 0.05
    assert_close(text_side, fused, atol=1e-6, rtol=0)


def lora_and_fused(pipe, eraser, folder):
    """What each edited layer multiplies by with the eraser's LoRA loaded, and with the eraser applied."""
    names = [name for path in families.paths(pipe) for name in layers.prompt_layers(pipe, path)]
    original = images(pipe)
    eraser.save_lora(folder)
    pipe.load_lora_weights(folder)
    lora = tiny.matrices(pipe.unet, names)
    assert (images(pipe) - original).abs().max() > 0.01
    pipe.unload_lora_weights()
    fused = tiny.matrices(eraser.apply(pipe).unet, names)
    assert (images(pipe) - original).abs().max() > 0.01
    return lora, fused


def test_a_loaded_lora_gives_the_weights_of_the_applied_eraser(pipe, tmp_path):
    lora, fused = lora_and_fused(pipe, rece.erase(pipe, ["dog", "cat"]), tmp_path)
    for name, W in fused.items():
        assert (lora[name] - W).norm() <= 1e-6 * W.norm()


def test_lora_file_has_one_rank_one_shared_factor_and_the_provenance(pipe, tmp_path):
    eraser = rece.erase(pipe, "dog", rounds=0)
    assert eraser.save_lora(tmp_path) < 1e-5
    file = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    assert set(tensors) == {f"unet.{n}.lora_{x}.weight" for n in layers.prompt_layers(pipe) for x in "AB"}
    shared = [tensor for name, tensor in tensors.items() if name.endswith("lora_A.weight")]
    assert all(torch.equal(tensor, shared[0]) for tensor in shared)
    assert shared[0].shape == (eraser.rank, 32)
    assert eraser.rank <= tiny.POSITIONS - texts.last_position(pipe, "dog")
    for name, W in weights(pipe).items():
        A, B = tensors[f"unet.{name}.lora_A.weight"], tensors[f"unet.{name}.lora_B.weight"]
        assert_close(W + B @ A, (W.double() @ eraser.map).float(), atol=1e-5, rtol=1e-5)


def test_a_smaller_lora_says_what_it_loses(pipe, tmp_path):
    eraser = rece.erase(pipe, "dog", rounds=1)
    with pytest.warns(UserWarning, match=f"rank 4 of {eraser.rank}: the LoRA lacks .*% of the edit"):
        loss = eraser.save_lora(tmp_path, rank=4)
    sizes = torch.linalg.svdvals(eraser.map - torch.eye(32, dtype=torch.float64))
    assert_close(loss, (sizes[4:].norm() / sizes.norm()).item(), atol=1e-6, rtol=0)
    assert loss == eraser.loss(4) > eraser.loss(8) > eraser.loss(eraser.rank)
    assert all(4 in tensor.shape for tensor in load_file(tmp_path / "pytorch_lora_weights.safetensors").values())
    pipe.load_lora_weights(tmp_path)


def test_lora_is_made_from_the_original_weights_whether_applied_or_not(pipe, tmp_path):
    eraser = rece.erase(pipe, "dog")
    eraser.save_lora(tmp_path / "before")
    eraser.apply(pipe)
    eraser.save_lora(tmp_path / "after")
    name = "pytorch_lora_weights.safetensors"
    assert_same(load_file(tmp_path / "after" / name), load_file(tmp_path / "before" / name))


def test_a_lora_of_nothing_loads_and_changes_nothing(pipe, tmp_path):
    before = images(pipe)
    rece.Eraser(torch.eye(32)).save_lora(tmp_path, pipe=pipe)
    pipe.load_lora_weights(tmp_path)
    assert_close(images(pipe), before, atol=1e-6, rtol=0)


def test_sdxl_by_the_same_path(xl, tmp_path):
    eraser = rece.erase(xl, ["dog", "cat"])
    assert eraser.map.shape == (64, 64)
    before = weights(xl)
    lora, fused = lora_and_fused(xl, eraser, tmp_path)
    for name, W in fused.items():
        assert (lora[name] - W).norm() <= 1e-6 * W.norm()
    assert_same(weights(eraser.remove(xl)), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_remove_restores_the_very_bits(pipe, dtype):
    pipe.unet.to(dtype)
    eraser, before = random_eraser(), weights(pipe)
    eraser.apply(pipe)
    for name, W in weights(pipe).items():
        assert W.dtype == dtype and not torch.equal(W, before[name])
        assert_close(W.double(), before[name].double() @ eraser.map, atol=torch.finfo(dtype).eps, rtol=0.01)
    others = {n for n, p in pipe.unet.named_parameters() if ".attn2.to_k." not in n and ".attn2.to_v." not in n}
    fresh = dict(tiny.sd().unet.to(dtype).named_parameters())
    assert len(others) > 100 and all(torch.equal(p, fresh[n]) for n, p in pipe.unet.named_parameters() if n in others)
    assert_same(weights(eraser.remove(pipe)), before)
    eraser.apply(pipe)
    assert_same(weights(eraser.remove(pipe)), before)


def test_erase_reads_the_pipeline_and_changes_nothing(pipe):
    before = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
    rece.erase(pipe, "dog")
    assert_same({name: p.detach() for name, p in pipe.unet.named_parameters()}, before)


def test_one_eraser_at_a_time(pipe):
    dog, cat = rece.erase(pipe, "dog"), rece.erase(pipe, "cat")
    before = weights(pipe)
    with pytest.raises(ValueError, match="carries no eraser"):
        dog.remove(pipe)
    dog.apply(pipe)
    after = weights(pipe)
    for eraser in (dog, cat):
        with pytest.raises(ValueError, match="carries an eraser already: remove it first, or compose"):
            eraser.apply(pipe)
    with pytest.raises(ValueError, match="carries another eraser"):
        cat.remove(pipe)
    with pytest.raises(ValueError, match="carries an eraser: remove it before"):
        rece.erase(pipe, "cat")
    assert_same(weights(pipe), after)
    assert_same(weights(dog.remove(pipe)), before)


def test_composition_edits_by_the_left_one_first(pipe):
    dog, cat = rece.erase(pipe, "dog"), rece.erase(pipe, "cat", rounds=1)
    both = dog @ cat
    before = weights(pipe)
    for name, W in weights(both.apply(pipe)).items():
        assert_close(W, ((before[name].double() @ dog.map) @ cat.map).float(), atol=1e-5, rtol=1e-5)
    assert_close(both.map, dog.map @ cat.map)
    assert (both.map - (cat @ dog).map).norm() > 1e-3
    assert both.provenance["composed"] == [dog.provenance, cat.provenance]
    assert len(both.history) == len(dog.history) + len(cat.history)
    assert torch.equal(both.history[-1], both.map)
    with pytest.raises(ValueError, match="single steps of this eraser are not known"):
        both.at(0)
    with pytest.raises(ValueError, match="step must be a whole number from -4 to 3, not 4"):
        dog.at(4)


def test_save_and_load_round_trip(pipe, tmp_path):
    eraser = rece.erase(pipe, ["dog", "cat"], target=["animal", " "], preserve=["sun"], rounds=2)
    eraser.save(tmp_path / "new" / "eraser.safetensors")
    loaded = rece.Eraser.load(tmp_path / "new" / "eraser.safetensors")
    assert torch.equal(loaded.map, eraser.map) and loaded.map.dtype == torch.float64
    assert loaded.provenance == eraser.provenance
    assert os.listdir(tmp_path / "new") == ["eraser.safetensors"]
    known = loaded.provenance
    assert known["concepts"] == ["dog", "cat"] and known["target"] == ["animal", " "] and known["rounds"] == 2
    assert {"base_model", "start", "each", "rounds", "relative", "versions"} <= set(known)
    assert json.loads(json.dumps(known)) == known
    before = weights(pipe)
    assert_same(weights(eraser.remove(loaded.apply(pipe))), before)
    eraser.save(tmp_path / "eraser.safetensors", history=True)
    for step, kept in zip(rece.Eraser.load(tmp_path / "eraser.safetensors").history, eraser.history, strict=True):
        assert torch.equal(step, kept)


def test_the_base_model_is_named_without_the_machines_folders(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "some-model")
    loaded = type(pipe).from_pretrained(tmp_path / "some-model", local_files_only=True)
    assert rece.erase(loaded, "dog").provenance["base_model"] == "some-model"
    assert torch.equal(rece.erase(loaded, "dog").map, rece.erase(pipe, "dog").map)


def test_half_a_file_no_file_and_another_file_are_told_apart(tmp_path):
    path = tmp_path / "eraser.safetensors"
    random_eraser().save(path)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"eraser\.safetensors is not a whole eraser file") as error:
            rece.Eraser.load(path)
        assert "\n" not in str(error.value)
    save_file({"map": torch.eye(3)}, path)
    with pytest.raises(ValueError, match="is not a whole eraser file"):
        rece.Eraser.load(path)
    with pytest.raises(FileNotFoundError, match="no eraser file at .*missing"):
        rece.Eraser.load(tmp_path / "missing")


def test_a_write_that_fails_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch):
    path = tmp_path / "eraser.safetensors"
    random_eraser().save(path)
    before = path.read_bytes()

    class FullDisk(io.FileIO):
        def write(self, data):
            super().write(data[:4])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rece.files.open", FullDisk, raising=False)
    with pytest.raises(OSError, match="No space left"):
        random_eraser(n=2).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["eraser.safetensors"]


def test_another_text_space_is_refused_and_nothing_changes(pipe, xl, tmp_path):
    wide = tiny.sd(width=64)
    eraser = rece.erase(pipe, "dog")
    before = weights(wide)
    with pytest.raises(ValueError, match="eraser is for text width 32, but the pipeline's is 64"):
        eraser.apply(wide)
    with pytest.raises(ValueError, match="eraser is for text width 32, but the pipeline's is 64"):
        eraser.save_lora(tmp_path, pipe=wide)
    assert_same(weights(wide), before)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="this eraser is for .*CLIPTextModelWithProjection"):
        rece.erase(xl, "dog").apply(wide)
    with pytest.raises(ValueError, match="cannot compose erasers of width 32 and 64"):
        eraser @ random_eraser(64)
    with pytest.raises(ValueError, match="cannot compose erasers made for"):
        rece.erase(xl, "dog") @ rece.erase(wide, "dog")


def test_pipelines_of_another_kind_are_refused(pipe):
    with pytest.raises(TypeError, match="one of Stable Diffusion 1.x, 2.x, .*FLUX.*Linear is not supported"):
        rece.erase(torch.nn.Linear(2, 2), "dog")
    pipe.unet.config.encoder_hid_dim = 32
    with pytest.raises(ValueError, match="encoder_hid_dim=32"):
        rece.erase(pipe, "dog")
    pipe = tiny.sd()
    for module in pipe.unet.modules():
        if hasattr(module, "attn2"):
            module.attn2 = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"pipe.unet has no layer named \*.attn2.to_k"):
        rece.erase(pipe, "dog")


def test_a_loaded_adapter_is_refused(pipe, tmp_path):
    eraser = rece.erase(pipe, "dog")
    eraser.save_lora(tmp_path)
    pipe.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="is a peft.*Linear, not a plain Linear: unload adapters"):
        eraser.apply(pipe)


BAD = {
    "empty concept": (dict(concept=""), ValueError, "concept must be"),
    "blank concept": (dict(concept=["dog", "  "]), ValueError, "concept must be"),
    "no concept": (dict(concept=[]), ValueError, "concept must be"),
    "number": (dict(concept=3), TypeError, "concept must be a list of texts"),
    "targets": (dict(concept=["dog", "cat"], target=["a"]), ValueError, "1 targets for 2 concepts"),
    "preserve text": (dict(preserve="sun"), TypeError, "preserve must be a list of texts"),
    "long preserve": (dict(preserve=["x" * 50]), ValueError, "preserve: 'x+' has 28 tokens more"),
    "long start": (dict(start={"preserve": ["x" * 50]}), ValueError, "start.preserve: 'x+' has 28 tokens more"),
    "long rounds": (dict(each={"preserve": ["x" * 50]}), ValueError, "each.preserve: 'x+' has 28 tokens more"),
    "preserve numbers": (dict(preserve=[1]), TypeError, "preserve must be a list of texts"),
    "rounds": (dict(rounds=-1), ValueError, "rounds must be a whole number"),
    "written rounds": (dict(rounds="Auto"), ValueError, "rounds must be a whole number or \"auto\", not 'Auto'"),
    "half rounds": (dict(rounds=1.5), ValueError, "rounds must be a whole number"),
    "reg": (dict(each={"reg": "one"}, rounds=0), ValueError, "each.reg must be one of zero, target"),
    "lamb": (dict(each={"lamb": 0.0}), ValueError, "^each.lamb must be a positive"),
    "derive_lamb": (dict(each={"derive_lamb": -1.0}), ValueError, "each.derive_lamb must be a positive"),
    "scale": (dict(start={"preserve_scale": -1.0}), ValueError, "start.preserve_scale must be a non-negative"),
    "ill-conditioned": (dict(start={"lamb": 1e-15}), ValueError, "ill-conditioned.*raise start.lamb"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_one_line_that_names_them(pipe, case):
    change, kind, message = BAD[case]
    with pytest.raises(kind, match=message) as error:
        rece.erase(pipe, **({"concept": "dog"} | change))
    assert "\n" not in str(error.value)


def test_broken_weights_are_named_and_nothing_changes(pipe):
    name, layer = list(layers.prompt_layers(pipe).items())[-1]
    layer.weight.data[0, 0] = torch.nan
    before = {n: w.nan_to_num(7.0) for n, w in weights(pipe).items()}
    with pytest.raises(ValueError, match=rf"weights\[{name}\] holds values that are not finite"):
        rece.erase(pipe, "dog")
    with pytest.raises(ValueError, match=rf"weights\[{name}\] holds values that are not finite"):
        random_eraser().apply(pipe)
    assert_same({n: w.nan_to_num(7.0) for n, w in weights(pipe).items()}, before)
    assert layers.fused(pipe) is None


def test_an_edit_that_overflows_half_precision_is_undone(pipe):
    pipe.unet.to(torch.float16)
    before = weights(pipe)
    with pytest.raises(ValueError, match="overflows torch.float16"):
        rece.Eraser(torch.eye(32) * 1e8).apply(pipe)
    assert_same(weights(pipe), before)
    assert layers.fused(pipe) is None


def test_broken_text_encoder_and_broken_maps(pipe, tmp_path):
    with pytest.raises(ValueError, match="map must be a square matrix"):
        rece.Eraser(torch.ones(2, 3))
    with pytest.raises(ValueError, match="map holds values that are not finite"):
        rece.Eraser(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="pipe must be given"):
        random_eraser().save_lora(tmp_path)
    with pytest.raises(ValueError, match="rank must be between 1 and the width 32, not 33"):
        random_eraser().save_lora(tmp_path, rank=33, pipe=pipe)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="prompts must be a list"):
        texts.encode(pipe, [])
    pipe.text_encoder.final_layer_norm.weight.data[0] = torch.inf
    with pytest.raises(ValueError, match="text encoder returns values that are not finite"):
        rece.erase(pipe, "dog")


def test_the_same_eraser_is_the_same_file(pipe, tmp_path):
    eraser = rece.erase(pipe, "a dog", rounds=1)
    for n in range(4):
        eraser.save(tmp_path / f"{n}.safetensors")
    assert len({(tmp_path / f"{n}.safetensors").read_bytes() for n in range(4)}) == 1


def test_an_eraser_of_another_text_encoder_is_refused_everywhere(pipe, tmp_path):
    other = rece.erase(tiny.sd(1), "dog", rounds=0)
    uses = [
        lambda: other.apply(pipe),
        lambda: other.report(pipe),
        lambda: other.save_lora(tmp_path, pipe=pipe),
        lambda: rece.certify(pipe, other, "dog"),
        lambda: (random_eraser() @ other).apply(pipe),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="text encoder with other weights"):
            use()
    with pytest.raises(ValueError, match=r"made for text encoders that differ \(fingerprint\)"):
        rece.erase(pipe, "cat", rounds=0) @ other
    assert os.listdir(tmp_path) == []


def test_an_edit_of_any_kind_on_the_pipeline_is_noticed(pipe):
    name = next(iter(layers.prompt_layers(pipe)))
    edit = Weights({f"unet.{name}.weight": torch.ones_like(weights(pipe)[name])})
    makers = [
        lambda: rece.erase(pipe, "dog"),
        lambda: rece.guard(pipe, "dog"),
        lambda: rece.debias(pipe, "dog", ["a", "b"], lambda images: ["a"] * len(images)),
    ]
    before = edit.readers(pipe)
    with edit.on(pipe):
        for make in makers:
            with pytest.raises(ValueError, match="carries an eraser: remove it before"):
                make()
        with pytest.raises(ValueError, match="carries an edit already"):
            edit.readers(pipe)
    assert_same(edit.readers(pipe), before)


def test_a_report_reads_blank_where_an_edit_has_no_target(pipe):
    made = rece.erase(pipe, "dog", rounds=0)
    wanted = made.report()
    del made.provenance["target"]
    assert made.report() == wanted


def test_a_pooled_map_that_is_cut_is_told(xl, tmp_path):
    eraser = rece.Eraser(torch.eye(64), pooled=random_eraser().map)
    assert eraser.rank == 6
    with pytest.warns(UserWarning, match="rank 2 of 6: the LoRA lacks"):
        loss = eraser.save_lora(tmp_path, rank=2, pipe=xl)
    assert loss == eraser.loss(2) == rece.Eraser(eraser.pooled).loss(2) > 0.1
    assert f"cut to rank 2 of 6 and lacks {loss:.1%}" in card(eraser, rank=2)


def test_a_report_reads_everyday_words_that_hold_a_concepts_letters(pipe, monkeypatch):
    monkeypatch.setattr(texts, "everyday", lambda: ["car", "a red car", "carrot"])
    assert list(rece.erase(pipe, "car", rounds=0).report()["moved"]) == ["carrot"]
