"""Model families: which layers read the prompt, the literal algorithm for each, and the ways to use the eraser."""

import copy
import inspect
import warnings

import literal
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import rece
from rece import families, layers, texts

FAMILIES = {
    "sd": tiny.sd,
    "sdxl": tiny.sdxl,
    "sd3": tiny.sd3,
    "sd3 without T5": lambda: tiny.sd3(t5=False),
    "flux": tiny.flux,
    "pixart": tiny.pixart,
    "pixart sigma": lambda: tiny.pixart(sigma=True),
}
FLAT = dict(uce_lamb=5.0, lamb=2.0, derive_lamb=0.5, rounds=2)
NUMBERS = tiny.numbers(**FLAT)
METHODS = {
    "erase": lambda pipe: rece.erase(pipe, "dog", **NUMBERS),
    "guard": lambda pipe: rece.guard(pipe, "dog", preserve=["cat", "a hat"], mu=0.5, progress=False),
}


@pytest.fixture(params=FAMILIES)
def any_pipe(request):
    return FAMILIES[request.param]()


def call(pipe, **given):
    """A picture, (1, 16, 16, 3), from two steps."""
    kind = type(pipe).__name__
    if kind.startswith("PixArt"):
        given = {"use_resolution_binning": False} | given
    if kind != "FluxPipeline":
        given = {"guidance_scale": 4.0} | given
    generator = torch.Generator("cpu").manual_seed(0)
    size = {"height": 16, "width": 16, "num_inference_steps": 2}
    return torch.from_numpy(pipe(**size, **given, generator=generator, output_type="np").images)


def mapped(pipe, prompt, eraser):
    """The keywords that feed a pipeline the prompt's embeddings, and the empty one's, after the eraser's maps."""
    kind, device = type(pipe).__name__, torch.device("cpu")
    if kind == "FluxPipeline":
        tokens, pooled, _ = pipe.encode_prompt(prompt=prompt, prompt_2=None, device=device)
        found = {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}
    elif kind.startswith("PixArt"):
        names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
        found = dict(zip(names, pipe.encode_prompt(prompt, device=device), strict=True)) | {"negative_prompt": None}
    else:
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        more = {"prompt_2": None, "prompt_3": None} if kind == "StableDiffusion3Pipeline" else {}
        more |= {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        found = dict(zip(names, pipe.encode_prompt(prompt, **more), strict=False))
    for name, value in found.items():
        map = eraser.pooled if "pooled" in name else eraser.map
        if name.endswith("embeds") and map is not None:
            found[name] = value @ map.T.to(value)
    return found


def test_the_table_names_exactly_the_layers_that_read_the_prompt(any_pipe):
    """Every linear layer whose input holds the embedding, as it is seen while a picture is drawn."""
    whole, seen = families.model(any_pipe), {path: set() for path in families.paths(any_pipe)}
    given = mapped(any_pipe, "a big dog", _identity(any_pipe))
    texts = {"tokens": given["prompt_embeds"], "pooled": given.get("pooled_prompt_embeds")}
    del given["prompt_embeds"]

    def watch(name):
        def hook(module, inputs):
            for path in seen:
                text = texts[path]
                rows = inputs[0][-1:] if inputs[0].ndim == text.ndim else None  # the last of the guided pair
                if rows is None or rows.shape[:-1] != text.shape[:-1] or rows.shape[-1] < text.shape[-1]:
                    continue
                if torch.equal(rows[..., : text.shape[-1]], text):
                    seen[path].add(name)

        return hook

    hooks = [m.register_forward_pre_hook(watch(n)) for n, m in whole.named_modules() if isinstance(m, torch.nn.Linear)]
    call(any_pipe, **given, prompt_embeds=texts["tokens"])
    for hook in hooks:
        hook.remove()
    assert seen == {path: set(layers.prompt_layers(any_pipe, path)) for path in seen}
    assert all(seen.values())


def _identity(pipe):
    pooled = torch.eye(layers.width(pipe, "pooled")) if "pooled" in families.paths(pipe) else None
    return rece.Eraser(torch.eye(layers.width(pipe)), pooled=pooled)


@pytest.mark.parametrize("method", METHODS)
def test_fused_is_the_same_model_as_mapped_prompts(any_pipe, method):
    any_pipe.to(torch.float64)  # so that the steps of a random model do not raise rounding to what a pixel shows
    eraser = METHODS[method](any_pipe)
    assert (eraser.pooled is None) == ("pooled" not in families.paths(any_pipe))
    plain, mapped_images = call(any_pipe, prompt="a big dog"), call(any_pipe, **mapped(any_pipe, "a big dog", eraser))
    eraser.apply(any_pipe)
    fused = call(any_pipe, prompt="a big dog")
    assert (fused - plain).abs().max() > 1e-3
    assert_close(fused, mapped_images, atol=1e-6, rtol=0)
    if eraser.pooled is not None:  # the pooled path matters
        without = rece.Eraser(eraser.map, pooled=torch.eye(len(eraser.pooled)))
        assert (call(eraser.remove(any_pipe), **mapped(any_pipe, "a big dog", without)) - fused).abs().max() > 1e-4


def test_removing_restores_every_bit(any_pipe):
    before = copy.deepcopy(families.model(any_pipe).state_dict())
    eraser = rece.erase(any_pipe, "dog", **NUMBERS).apply(any_pipe)
    changed = {name for name, weight in families.model(eraser).state_dict().items() if not weight.equal(before[name])}
    edited = {f"{n}.weight" for path in families.paths(any_pipe) for n in layers.prompt_layers(any_pipe, path)}
    assert changed == edited
    layers.restore(any_pipe)
    for name, weight in families.model(any_pipe).state_dict().items():
        assert weight.equal(before[name])


def encoded(pipe, path):
    """A function from text to its rows, by another route than rece's, and one to the rows that UCE matches."""
    kind = type(pipe).__name__

    @torch.no_grad()
    def embed(text):
        if kind.startswith("PixArt"):
            length = 300 if "Sigma" in kind else 120
            ids = pipe.tokenizer(text.lower().strip(), max_length=length, truncation=True, return_tensors="pt")
            return pipe.text_encoder(ids.input_ids, attention_mask=ids.attention_mask)[0][0]
        if kind == "FluxPipeline":
            if path == "pooled":
                return pipe.text_encoder(_padded(pipe.tokenizer, text, tiny.POSITIONS)).pooler_output
            return pipe.text_encoder_2(_padded(pipe.tokenizer_2, text, 512))[0][0]
        ids = _padded(pipe.tokenizer, text, tiny.POSITIONS)
        if kind == "StableDiffusionPipeline":
            return pipe.text_encoder(ids).last_hidden_state[0]
        both = [encoder(ids, output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
        if path == "pooled":
            return both[1].text_embeds if "XL" in kind else torch.cat([one.text_embeds for one in both], -1)
        clip = torch.cat([one.hidden_states[-2] for one in both], -1)[0]
        if "XL" in kind:
            return clip
        d = pipe.transformer.config.joint_attention_dim
        clip = torch.nn.functional.pad(clip, (0, d - clip.shape[1]))
        if pipe.text_encoder_3 is None:
            return clip
        return torch.cat([clip, pipe.text_encoder_3(_padded(pipe.tokenizer_3, text, 256))[0][0]])

    def match(concept, target):
        C, T = embed(concept), embed(target)
        if path == "pooled":
            return C, T
        pairs, start = [], 0
        tokenizers = {"FluxPipeline": ["tokenizer_2"], "StableDiffusion3Pipeline": ["tokenizer", "tokenizer_3"]}
        for name in tokenizers.get(kind, ["tokenizer"]):
            tokenizer = getattr(pipe, name)
            if tokenizer is None:
                continue
            i, j = (max(0, len(tokenizer(text).input_ids) - 2) for text in (concept, target))
            if kind.startswith("PixArt"):  # what is past the target's end goes to its end
                rows = [min(j + n, len(T) - 1) for n in range(len(C) - i)]
                return C[i:], T[rows]
            end = tiny.POSITIONS if name == "tokenizer" else len(C) - start
            pairs.append((C[start + i : start + end - max(0, j - i)], T[start + j : start + end - max(0, i - j)]))
            start += end
        return torch.cat([K for K, _ in pairs]), torch.cat([T for _, T in pairs])

    def aligned(concept, target):
        C, T = embed(concept), embed(target)
        return C, T[[min(n, len(T) - 1) for n in range(len(C))]]

    return embed, match, aligned


def _padded(tokenizer, text, length):
    return tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


@pytest.mark.parametrize("reg", ["zero", "target"])
@pytest.mark.parametrize("concepts, limit", [(["dog"], 1000), (["a big cat", "dog"], 1000), (["a big cat", "dog"], 0)])
def test_every_path_is_the_literal_algorithm(any_pipe, concepts, limit, reg, monkeypatch):
    monkeypatch.setattr(texts, "ROW_LIMIT", limit)
    any_pipe.to(torch.float64)
    eraser = rece.erase(any_pipe, concepts, target="a cat", preserve=["sun"], **tiny.numbers(reg=reg, **FLAT))
    for path in families.paths(any_pipe):
        embed, match, aligned = encoded(any_pipe, path)
        originals = list(layers.originals(any_pipe, path).values())
        pairs = [match(concept, "a cat") for concept in concepts]
        kept = [embed(text) for text in ("", "sun")]
        weights = literal.edit(originals, pairs, kept, FLAT["uce_lamb"], 1.0, 1.0)
        steps = [weights]
        for _ in range(FLAT["rounds"]):
            pairs = []
            for concept in concepts:
                C, T = aligned(concept, "a cat")
                pairs.append((literal.derive(steps[-1], originals, C, FLAT["derive_lamb"], reg, T), T))
            steps.append(literal.edit(steps[-1], pairs, kept, FLAT["lamb"], 1.0, 0.1))
        final = {"tokens": eraser.map, "pooled": eraser.pooled}[path]
        found = list(zip(steps, eraser.history, strict=True)) if path == "tokens" else [(steps[-1], final)]
        for expected, M in found:
            for W0, W in zip(originals, expected, strict=True):
                assert (W - W0).norm() > 1e-3 * W0.norm()
                assert (W0 @ M - W).norm() <= 1e-9 * W.norm()


@pytest.mark.parametrize("reg", ["zero", "target"])
def test_many_concepts_compressed_are_the_same_edit_as_all_rows(any_pipe, reg, monkeypatch):
    """Of targets of several lengths, shared and not, and of concepts longer than theirs."""
    any_pipe.to(torch.float64)
    concepts, targets = ["dog", "a big cat", "sun", "fox", "bee", "moon"], ["a cat", " ", "", "the sea", "a cat", " "]
    numbers = FLAT | dict(reg=reg, rounds=2, preserve=["stone", "the tree"], uce_lamb=50.0, lamb=20.0)
    forms = ({}, {"anchored": True}, {"uce_tokens": "last"}) if reg == "zero" else ({},)
    for form in forms:
        made = []
        for limit in (10000, 0):
            monkeypatch.setattr(texts, "ROW_LIMIT", limit)
            made.append(rece.erase(any_pipe, concepts, target=targets, **tiny.numbers(**numbers, **form)))
        rows, few = made
        for step, expected in zip([*few.history, few.pooled], [*rows.history, rows.pooled], strict=True):
            if expected is not None:
                change = (expected - torch.eye(len(expected))).norm()
                assert change > 1e-2 and (step - expected).norm() <= 1e-8 * change


def test_the_one_token_form_edits_the_last_word_alone(any_pipe):
    any_pipe.to(torch.float64)
    eraser = rece.erase(
        any_pipe,
        "a big dog",
        target="",
        rounds=0,
        start={"tokens": "last", "preserve": ["the sun", "moon"]},
        pooled=False,
    )
    embed, _, _ = encoded(any_pipe, "tokens")
    kind = type(any_pipe).__name__

    def last(text):  # rows of the last word: one for each tokenizer
        rows, start = [], 0
        names = {"FluxPipeline": ["tokenizer_2"], "StableDiffusion3Pipeline": ["tokenizer", "tokenizer_3"]}
        for name in names.get(kind, ["tokenizer"]):
            if getattr(any_pipe, name) is not None:
                rows.append(start + max(0, len(getattr(any_pipe, name)(text).input_ids) - 2))
            start += tiny.POSITIONS
        return embed(text)[rows]

    originals = list(layers.originals(any_pipe).values())
    kept = [last("the sun"), last("moon")]
    for W0, W in zip(
        originals, literal.edit(originals, [(last("a big dog"), last(""))], kept, 0.5, 1.0, 1.0), strict=True
    ):
        assert (W - W0).norm() > 1e-3 * W0.norm()
        assert (W0 @ eraser.map - W).norm() <= 1e-9 * W.norm()
    assert eraser.rank <= len(kept[0])
    assert eraser.pooled is None


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_lora_gives_the_weights_of_the_applied_eraser(any_pipe, method, tmp_path):
    eraser = METHODS[method](any_pipe)
    if type(any_pipe).__name__.startswith("PixArt"):
        with pytest.raises(ValueError, match="PixArt.*Pipeline does not: save its weights"):
            eraser.save_lora(tmp_path)
        assert not list(tmp_path.iterdir())
        return
    plain = call(any_pipe, prompt="a big dog")
    eraser.save_lora(tmp_path)
    tensors = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    edited = {n for path in families.paths(any_pipe) for n in layers.prompt_layers(any_pipe, path)}
    assert set(tensors) == {f"{families.part(any_pipe)}.{n}.lora_{x}.weight" for n in edited for x in "AB"}
    assert len({t.shape[0] for n, t in tensors.items() if "lora_A" in n}) == 1  # one rank for all
    fused = tiny.matrices(families.model(eraser.apply(any_pipe)), edited)
    eraser.remove(any_pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        any_pipe.load_lora_weights(tmp_path)
    for name, W in tiny.matrices(families.model(any_pipe), edited).items():
        assert (W - fused[name]).norm() <= 1e-6 * fused[name].norm()
    assert (call(any_pipe, prompt="a big dog") - plain).abs().max() > 2e-3
    any_pipe.unload_lora_weights()
    assert_close(call(any_pipe, prompt="a big dog"), plain, atol=0, rtol=0)


def test_files_and_composition_keep_the_pooled_map(any_pipe, tmp_path):
    first, second = (rece.erase(any_pipe, text, **NUMBERS) for text in ("dog", "cat"))
    first.save(tmp_path / "dog.safetensors", history=True)
    read = rece.Eraser.load(tmp_path / "dog.safetensors")
    assert read.map.equal(first.map) and len(read.history) == len(first.history)
    both, tokens_only = first @ second, first @ rece.Eraser(second.map)
    if first.pooled is None:
        assert read.pooled is both.pooled is None
        return
    assert read.pooled.equal(first.pooled)
    assert_close(both.pooled, first.pooled @ second.pooled)
    assert tokens_only.pooled.equal(first.pooled)
    read.apply(any_pipe)
    with pytest.raises(ValueError, match="another eraser"):
        rece.Eraser(first.map).remove(any_pipe)
    read.remove(any_pipe)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_edited_in_their_own_dtype(any_pipe, dtype):
    eraser = rece.erase(any_pipe, "dog", **NUMBERS)
    any_pipe.to(dtype)
    before = {name: weight.clone() for name, weight in layers.originals(any_pipe).items()}
    eraser.apply(any_pipe)
    for name, layer in layers.prompt_layers(any_pipe).items():
        assert layer.weight.dtype == dtype
        exact = before[name].double() @ eraser.map
        assert (layer.weight.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    again = rece.erase(eraser.remove(any_pipe), "dog", **NUMBERS)  # encoded and summed up in half precision
    assert (again.map - eraser.map).norm() < 0.2 * (eraser.map - torch.eye(len(eraser.map))).norm()


def test_weights_in_a_sequential_offload_are_edited_where_they_are_kept(any_pipe):
    from accelerate import cpu_offload

    eraser = rece.erase(any_pipe, "dog", **NUMBERS)
    fused = call(eraser.apply(any_pipe), prompt="a dog")
    plain = call(eraser.remove(any_pipe), prompt="a dog")
    cpu_offload(families.model(any_pipe), execution_device=torch.device("cpu"))
    assert next(iter(layers.prompt_layers(any_pipe).values())).weight.is_meta
    again = rece.erase(any_pipe, "dog", **NUMBERS)
    assert again.map.equal(eraser.map)
    assert_close(call(again.apply(any_pipe), prompt="a dog"), fused, atol=0, rtol=0)
    assert_close(call(again.remove(any_pipe), prompt="a dog"), plain, atol=0, rtol=0)


def test_weights_spread_over_devices_by_hooks_are_edited_in_place(any_pipe):
    from accelerate import dispatch_model

    eraser = rece.erase(any_pipe, "dog", **NUMBERS)
    fused = call(eraser.apply(any_pipe), prompt="a dog")
    eraser.remove(any_pipe)
    whole = families.model(any_pipe)
    parts = [name for name, _ in (*whole.named_children(), *whole.named_parameters(recurse=False))]
    dispatch_model(whole, dict.fromkeys(parts, "cpu"), force_hooks=True)
    assert_close(call(eraser.apply(any_pipe), prompt="a dog"), fused, atol=0, rtol=0)


def test_weights_on_disk_are_refused(pipe, tmp_path):
    from accelerate import disk_offload

    eraser = rece.erase(pipe, "dog")
    disk_offload(pipe.unet, str(tmp_path), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="offloaded to disk"):
        eraser.apply(pipe)


def test_fused_projections_are_refused(pipe):
    eraser = rece.erase(pipe, "dog")
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="fused QKV projections: call pipe.unet.unfuse_qkv_projections"):
        eraser.apply(pipe)
    pipe.unet.unfuse_qkv_projections()
    eraser.apply(pipe)


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_are_refused_and_can_be_restored(any_pipe, whole):
    eraser = rece.erase(any_pipe, "dog", **NUMBERS)
    part, before = families.part(any_pipe), layers.originals(any_pipe)
    before = {name: weight.clone() for name, weight in before.items()}
    inner = getattr(any_pipe, part)
    eraser.apply(any_pipe)
    if whole:
        setattr(any_pipe, part, torch.compile(inner))
    else:
        inner.compile()
    with pytest.raises(ValueError, match="is compiled: edit the model first"):
        layers.gram(any_pipe)
    eraser.remove(any_pipe)
    modules = dict(inner.named_modules())
    assert all(modules[name].weight.equal(weight) for name, weight in before.items())


def test_other_models_are_refused_with_the_list_of_those_that_are_not(pipe):
    class AuraFlowTransformer2DModel(torch.nn.Module):
        pass

    class Other:
        transformer = AuraFlowTransformer2DModel()

        def encode_prompt(self):
            pass

    with pytest.raises(TypeError, match="Stable Diffusion 1.x, .* FLUX.1, PixArt.*; AuraFlowTransformer2DModel"):
        rece.erase(Other(), "dog")
    with pytest.raises(ValueError, match="path must be one of tokens"):
        layers.prompt_layers(pipe, "pooled")
    with pytest.raises(ValueError, match="start.tokens must be"):
        rece.erase(pipe, "dog", start={"tokens": "first"})


def test_a_pipeline_without_its_first_tokenizer_is_refused(xl):
    xl.register_modules(tokenizer=None, text_encoder=None)
    for make in METHODS.values():
        with pytest.raises(TypeError, match="StableDiffusionXLPipeline without tokenizer: it is not supported"):
            make(xl)


def test_a_map_of_single_precision_is_checked_as_it_was_fused(pipe):
    layers.fuse(pipe, torch.eye(32) / 3)
    layers.check_fused(pipe)
    assert torch.equal(layers.fused(pipe), (torch.eye(32) / 3).double())


def test_an_unknown_tokenizer_is_refused_with_what_to_add(pipe):
    other = type("GemmaTokenizer", (type(pipe.tokenizer),), {})
    pipe.tokenizer.__class__ = other
    with pytest.raises(TypeError, match="pipe.tokenizer is a GemmaTokenizer.* add it to TOKENIZERS in rece/families"):
        rece.erase(pipe, "dog")


def test_pooled_maps_that_do_not_fit_are_refused_before_any_change(xl):
    before = {name: weight.clone() for name, weight in layers.originals(xl).items()}
    with pytest.raises(ValueError, match="the map of pooled is"):
        layers.fuse(xl, torch.eye(64), torch.eye(5))
    with pytest.raises(ValueError, match="pooled must be a square"):
        rece.Eraser(torch.eye(64), pooled=torch.ones(2, 3))
    assert all(weight.equal(before[name]) for name, weight in layers.originals(xl).items())


def test_the_pooled_weights_that_read_no_text_are_left_alone(xl):
    before = xl.unet.add_embedding.linear_1.weight.clone()
    eraser = rece.erase(xl, "dog", **NUMBERS).apply(xl)
    after = families.model(eraser).add_embedding.linear_1.weight
    assert not torch.equal(after[:, :32], before[:, :32]) and torch.equal(after[:, 32:], before[:, 32:])


def test_unread_positions_do_not_enter(monkeypatch):
    """PixArt masks out what comes after a prompt: garbage there changes nothing."""
    one, other = tiny.pixart(), tiny.pixart()
    real = other.encode_prompt

    def spoilt(*given, **named):
        tokens, mask, *rest = real(*given, **named)
        return tokens + 9 * (1 - mask[..., None]), mask, *rest

    spoilt.__signature__ = inspect.signature(real)
    monkeypatch.setattr(other, "encode_prompt", spoilt)
    maps = [rece.erase(pipe, ["dog", "a big cat"], **NUMBERS).map for pipe in (one, other)]
    assert_close(*maps, atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [tiny.pixart, tiny.flux])
def test_where_no_start_token_opens_a_text_the_end_of_a_blank_one_is_its_first_token(make):
    """And not the padding behind it, which on PixArt is masked and zero."""
    pipe = make()
    tokens, (end,) = texts.encode(pipe, [" "])[0], texts.last_tokens(pipe, [" "], after=1)
    assert end.any() and torch.equal(end, tokens[0])
    assert texts.last_positions(pipe, "a dog", after=1) == [texts.last_position(pipe, "a dog") + 1]


def test_a_sequential_offload_hides_the_weights_of_text_encoders_and_refuses_no_eraser(pipe):
    from accelerate import cpu_offload

    hidden, plain = tiny.sd(), rece.erase(pipe, "dog", rounds=0)
    for part in ("vae", "text_encoder", "unet"):
        cpu_offload(getattr(hidden, part), torch.device("cpu"))
    made = rece.erase(hidden, "dog", rounds=0)
    assert made.provenance["fingerprint"] == [] and plain.provenance["fingerprint"]
    plain.remove(plain.apply(hidden))
    made.remove(made.apply(pipe))
    assert (plain @ made).provenance["fingerprint"] == plain.provenance["fingerprint"]


def test_where_a_start_token_opens_a_text_its_end_follows_the_last_word(pipe):
    for text in ("", " ", "a dog", "x" * 22, "x" * 60):
        end = min(texts.last_position(pipe, text) + 1, tiny.POSITIONS - 1)
        assert texts.last_positions(pipe, text, after=1) == [end]
