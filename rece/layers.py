"""The text space of a pipeline: the layers that read the prompt, and how to encode for, edit and restore them.

Every linear layer that reads a path of text ("tokens" or "pooled", see `rece.families`) is edited in the same way,
W' = W M with the path's own M. The pooled embedding is a text space of its own with a single position.
"""

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from rece import solver
from rece.families import bare, family, model

KEPT = "_rece_kept"  # attribute of an edited model: its Kept


@dataclass
class Kept:
    """What `fuse` leaves on an edited model: the map of each path, and the original weights on the CPU by layer."""

    maps: dict[str, Tensor]
    weights: dict[str, Tensor]


def prompt_layers(pipe: DiffusionPipeline, path: str = "tokens") -> dict[str, torch.nn.Linear]:
    """All linear layers that read the prompt on a path, by their module name in the model, in the model's order.

    Raises TypeError if the pipeline is of an unknown kind, ValueError if it has no such path, or if a layer is
    missing, wrapped (LoRA), fused (QKV), compiled, quantised or on disk, or if the layers do not all read one width.
    """
    one = family(pipe)
    if path not in one.readers:
        raise ValueError(f"path must be one of {', '.join(one.readers)} for this pipeline, not {path!r}")
    reader, whole = one.readers[path], getattr(pipe, one.part)
    if whole is not bare(whole) or any(getattr(m, "_compiled_call_impl", None) for m in whole.modules()):
        raise ValueError(f"pipe.{one.part} is compiled: edit the model first and compile it afterwards")
    modules = dict(whole.named_modules())
    layers = {name: module for name, module in modules.items() if name.endswith(reader.layers)}
    if not layers:
        raise ValueError(f"pipe.{one.part} has no layer named *{' or *'.join(reader.layers)}: unknown architecture")
    for name, layer in layers.items():
        if not isinstance(layer, torch.nn.Linear) or not layer.weight.is_floating_point():
            kind = type(layer).__name__
            raise ValueError(
                f"pipe.{one.part}.{name} is a {kind}, not a plain Linear: unload adapters and quantisation first"
            )
        if type(getattr(modules[name.rpartition(".")[0]], "processor", None)).__name__.startswith("Fused"):
            raise ValueError(
                f"pipe.{one.part} has fused QKV projections: call pipe.{one.part}.unfuse_qkv_projections()"
            )
        weight_of(layer)
    widths = {layer.in_features for layer in layers.values()}
    if len(widths) > 1:
        raise ValueError(
            f"the layers of pipe.{one.part} read prompts of several widths {sorted(widths)}: not supported"
        )
    projected = getattr(whole.config, "encoder_hid_dim", None)
    if projected is not None:
        raise ValueError(
            f"pipe.{one.part} projects the prompt embedding (encoder_hid_dim={projected}) first: not supported"
        )
    return layers


def weight_of(layer: torch.nn.Linear) -> Tensor:
    """The layer's weight where it can be read and edited: its own, or the CPU copy of a sequential offload.

    Raises ValueError if it is offloaded to disk.
    """
    if not layer.weight.is_meta:
        return layer.weight
    stored = getattr(getattr(layer, "_hf_hook", None), "weights_map", None)
    held = None if stored is None else stored["weight"]
    if held is None or held.is_meta or held.data_ptr() != stored["weight"].data_ptr():
        raise ValueError("the weights are not in memory (offloaded to disk): edit before enabling that offload")
    return held


def width(pipe: DiffusionPipeline, path: str = "tokens") -> int:
    """d, the width of the embedding of a path."""
    layers, reader = prompt_layers(pipe, path), family(pipe).readers[path]
    if reader.projected_by is not None:
        return getattr(pipe, reader.projected_by).config.projection_dim
    return next(iter(layers.values())).in_features


def encoders(pipe: DiffusionPipeline) -> list[str]:
    """What the text encoders are, in words: a map fits only pipelines that share them."""
    found = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    return [
        f"{type(e).__name__} width {e.config.hidden_size}, {e.config.num_hidden_layers} layers, "
        f"{e.config.vocab_size} tokens"
        for e in found
        if e is not None
    ]


def gram(pipe: DiffusionPipeline, path: str = "tokens") -> Tensor:
    """G = sum W^T W over the layers that read a path, as they are now: (d, d) float64 on their device.

    Raises ValueError naming the layer if a weight is not finite.
    """
    d = width(pipe, path)
    weights = {name: weight_of(layer)[:, :d] for name, layer in prompt_layers(pipe, path).items()}
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"the weight of {name} holds values that are not finite: reload the model")
    return solver.gram(weights.values())


@torch.no_grad()
def encode(
    pipe: DiffusionPipeline, prompts: list[str], batch_size: int = 64, path: str = "tokens", progress: bool = True
) -> Tensor:
    """The embeddings the model reads: (n, positions, d) float64 on the pipeline's device (CPU for MPS).

    Of the pooled path there is one position. Positions that the model masks out are zero. Encoded in the text
    encoder's own dtype. progress: show a bar if it takes several batches and more than a second.
    Raises ValueError if prompts is empty or an embedding is not finite.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError("prompts must be a list of at least one text")
    embeds = torch.cat([_encode(pipe, some, path) for some in batches(prompts, batch_size, progress)])
    if not torch.isfinite(embeds).all():
        raise ValueError("the text encoder returns values that are not finite: reload the model, or use another dtype")
    return embeds


def encode_gram(
    pipe: DiffusionPipeline,
    prompts: list[str],
    batch_size: int = 64,
    path: str = "tokens",
    last: bool = False,
    progress: bool = True,
) -> Tensor:
    """P^T P for P = all tokens of all prompts: (d, d) float64, summed up batch by batch.

    Preserve sets enter the closed form through it alone, so no more than one batch of thousands of prompts is held. A
    text that is given several times is encoded once and weighted. last: take each prompt's last word token alone.
    Device, bar and errors as in `encode`.
    """
    if not prompts:
        raise ValueError("prompts must be a list of at least one text")
    found, counts = 0, Counter(prompts)
    for some in batches(list(counts), batch_size, progress):
        weight = torch.tensor([counts[text] for text in some], dtype=torch.float64).sqrt()
        embeds = encode(pipe, some, batch_size, path)
        if last:
            embeds = torch.stack([rows[last_words(pipe, text, path)] for rows, text in zip(embeds, some, strict=True)])
        P = (embeds * weight.to(embeds.device)[:, None, None]).flatten(0, 1)
        found = found + P.T @ P
    return found


def batches(items: list, size: int, progress: bool = True) -> Iterator[list]:
    """The items, `size` of them at a time, with a bar "encode" if they are several batches of more than a second."""
    starts = range(0, len(items), size)
    hidden = {"disable": True} if len(starts) < 2 or not progress else {}  # given as False, TQDM_DISABLE were ignored
    for start in tqdm(starts, desc="encode", delay=1, leave=False, **hidden):
        yield items[start : start + size]


def positions(pipe: DiffusionPipeline, path: str = "tokens") -> int:
    """How many positions the embedding of one prompt has; 1 of the pooled path."""
    return _segments(pipe, path)[-1][1]


def last_word(pipe: DiffusionPipeline, prompt: str) -> int:
    """The position of the prompt's last token before the end token; 0 for an empty prompt.

    Of several tokenizers' positions (Stable Diffusion 3) it is the first one's.
    """
    return last_words(pipe, prompt)[0]


def last_words(pipe: DiffusionPipeline, prompt: str, path: str = "tokens") -> list[int]:
    """The positions of the prompt's last word token, one for each tokenizer of the path; [0] of the pooled path."""
    tidy = getattr(pipe, "_text_preprocessing", None)  # PixArt lowers and strips its prompts
    text, found = tidy(prompt)[0] if tidy else prompt, []
    for start, end, tokenizer in _segments(pipe, path):
        tokens = tokenizer(text, max_length=end - start, truncation=True).attention_mask if tokenizer else []
        found.append(start + max(0, sum(tokens) - 2))
    return found


def matched(pipe: DiffusionPipeline, concept: str, target: str, path: str = "tokens") -> tuple[list[int], list[int]]:
    """The rows of a concept's embedding and those of its target's that UCE matches, one by one.

    From the last word on, trimmed to equal length, for each tokenizer of the path; the one row of the pooled path.
    Source: UCE's first code, which RECE builds on.
    """
    rows, aims = [], []
    last = zip(last_words(pipe, concept, path), last_words(pipe, target, path), strict=True)
    for (i, j), (_, end, _) in zip(last, _segments(pipe, path), strict=True):
        rows += range(i, i + end - max(i, j))
        aims += range(j, j + end - max(i, j))
    return rows, aims


def concepts_of(concept: str | list[str]) -> list[str]:
    """One text or several as a list. Raises ValueError if there is none, or one is empty or no text."""
    concepts = [concept] if isinstance(concept, str) else list(concept)
    if not concepts or not all(isinstance(text, str) and text.strip() for text in concepts):
        raise ValueError("concept must be a text, or a list of texts, none of them empty")
    return concepts


def final_norm(pipe: DiffusionPipeline) -> tuple[Tensor, Tensor, float]:
    """gamma, beta (both (d,) float64) and eps of the LayerNorm that every prompt token leaves the encoder by.

    Raises TypeError if the pipeline's prompt embedding is not the output of one such norm.
    """
    encoder = getattr(pipe, "text_encoder", None)
    norms = [
        module
        for name, module in (encoder.named_modules() if encoder is not None else ())
        if name.split(".")[-1] == "final_layer_norm" and isinstance(module, torch.nn.LayerNorm)
    ]
    kind = f"{type(pipe).__name__} with {', '.join(encoders(pipe)) or 'no text encoder'}"
    remedy = "certificates need a pipeline like Stable Diffusion 1.x or 2.x"
    if getattr(pipe, "text_encoder_2", None) is not None or len(norms) != 1:
        raise TypeError(f"the prompt embedding of {kind} does not leave one final LayerNorm: {remedy}")
    gamma, beta = (solver.precise(part) for part in (norms[0].weight, norms[0].bias))
    x = (encode(pipe, [""])[0].to(gamma.device) - beta) / gamma
    if not (x.mean(-1).abs().max() < 1e-2 and x.square().mean(-1).max() < 1.01):
        raise TypeError(f"the prompt embedding of {kind} is not the output of its final LayerNorm: {remedy}")
    return gamma, beta, norms[0].eps


@torch.no_grad()
def fuse(pipe: DiffusionPipeline, M: Tensor, pooled: Tensor | None = None) -> None:
    """Replace every W by W M in the weight's own dtype and device (half types are computed in float32), in place.

    M: (d, d) for the layers that read tokens; pooled: (p, p) for those that read the pooled embedding, or None.
    Layer by layer: beside one layer, only the original weights of these layers are kept, on the CPU.
    Raises ValueError, and changes nothing, if the model is edited already, a map does not fit or is not finite.
    """
    maps = {"tokens": M} if pooled is None else {"tokens": M, "pooled": pooled}
    whole = model(pipe)
    if hasattr(whole, KEPT):
        raise ValueError("the pipeline carries an eraser already: remove it first, or compose the two with @")
    changes = {}
    for path, map in maps.items():
        d = width(pipe, path)
        if map.shape != (d, d):
            raise ValueError(f"the map of {path} is {tuple(map.shape)}, but this pipeline's embedding has width {d}")
        if not torch.isfinite(map).all():
            raise ValueError(f"the map of {path} holds values that are not finite")
        change = solver.precise(map)
        changes[path] = change - torch.eye(d, dtype=change.dtype, device=change.device)
    todo = [(path, name, layer) for path in maps for name, layer in prompt_layers(pipe, path).items()]
    for _, name, layer in todo:
        if not torch.isfinite(weight_of(layer)).all():
            raise ValueError(f"the weight of {name} holds values that are not finite: reload the model")
    kept = Kept({path: map.detach().cpu().clone() for path, map in maps.items()}, {})
    setattr(whole, KEPT, kept)
    try:
        for path, name, layer in todo:
            whole_weight = weight_of(layer)
            weight = whole_weight[:, : len(changes[path])]
            dtype = torch.promote_types(weight.dtype, torch.float32)
            W = weight.to(dtype)
            edited = torch.addmm(W, W, changes[path].to(dtype).to(weight.device)).to(weight.dtype)
            if not torch.isfinite(edited).all():
                raise ValueError(f"the edited weight of {name} overflows {weight.dtype}: use a wider dtype")
            kept.weights[name] = whole_weight.detach().to("cpu", copy=True)
            weight.copy_(edited)
    except BaseException:
        restore(pipe)
        raise


def fused(pipe: DiffusionPipeline, path: str = "tokens") -> Tensor | None:
    """The map the pipeline carries on a path, (d, d) on the CPU, or None."""
    kept = getattr(model(pipe), KEPT, None)
    return None if kept is None else kept.maps.get(path)


@torch.no_grad()
def restore(pipe: DiffusionPipeline) -> None:
    """Put back the very bits that `fuse` found. Raises ValueError if the pipeline carries no eraser."""
    whole = model(pipe)
    kept = getattr(whole, KEPT, None)
    if kept is None:
        raise ValueError("the pipeline carries no eraser: there is nothing to remove")
    layers = dict(bare(whole).named_modules())
    for name, weight in kept.weights.items():
        weight_of(layers[name]).copy_(weight)
    delattr(whole, KEPT)


def originals(pipe: DiffusionPipeline, path: str = "tokens") -> dict[str, Tensor]:
    """The weights of the layers that read a path, (out, d) by name, as they are without any eraser.

    Of a layer that reads more than text, the columns that read text.
    """
    kept, d = getattr(model(pipe), KEPT, None), width(pipe, path)
    layers = prompt_layers(pipe, path)
    before = {} if kept is None else kept.weights
    return {name: before.get(name, weight_of(layer).detach())[:, :d] for name, layer in layers.items()}


def _segments(pipe: DiffusionPipeline, path: str) -> list[tuple[int, int, object]]:
    """Where each tokenizer's positions start and end, and the tokenizer; of the pooled path one position, and None."""
    names = family(pipe).readers[path].tokenizers
    tokenizers = [getattr(pipe, name) for name in names if getattr(pipe, name) is not None]
    if not names:
        return [(0, 1, None)]
    found, end = [], 0
    t5_length = inspect.signature(pipe.encode_prompt).parameters.get("max_sequence_length")
    for tokenizer in tokenizers:
        is_t5 = t5_length is not None and tokenizer is getattr(pipe, names[-1])
        length = t5_length.default if is_t5 else tokenizer.model_max_length
        found.append((end, end + length, tokenizer))
        end += length
    return found


def _encode(pipe: DiffusionPipeline, prompts: list[str], path: str) -> Tensor:
    one = family(pipe)
    reader = one.readers[path]
    found = pipe.encode_prompt(prompt=prompts, device=pipe._execution_device, num_images_per_prompt=1, **one.encode)
    embeds = solver.precise(found[reader.output])
    if reader.mask is not None:
        embeds = embeds * found[reader.mask].to(embeds.device)[..., None]
    return embeds if embeds.ndim == 3 else embeds[:, None]
