"""The text space of a pipeline: which layers read the prompt embedding, and how to read, edit and restore them.

Works on any pipeline like StableDiffusionPipeline (SD 1.x, 2.x, XL): a UNet whose cross-attention reads the prompt
embedding that `pipe.encode_prompt` returns. SDXL's pooled embedding, which enters through the time embedding, is not
part of it.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from rece import solver

# The one place that says which layers read the prompt: part of the pipeline -> endings of module names.
READERS = {"unet": (".attn2.to_k", ".attn2.to_v")}

KEPT = "_rece_kept"  # attribute of an edited model: its Kept


@dataclass
class Kept:
    """What `fuse` leaves on an edited model: the map, and the original weights on the CPU by layer name."""

    map: Tensor
    weights: dict[str, Tensor]


def model(pipe: DiffusionPipeline) -> torch.nn.Module:
    """The part of the pipeline that reads the prompt embedding. Raises TypeError if there is none."""
    return getattr(pipe, _part(pipe))


def prompt_layers(pipe: DiffusionPipeline) -> dict[str, torch.nn.Linear]:
    """All linear layers that read the prompt embedding, by their module name in the model, in the model's order.

    Raises TypeError if the pipeline is of an unknown kind, ValueError if a layer is missing, wrapped (LoRA), fused
    (QKV) or quantised, or if the layers do not all read one width.
    """
    part = _part(pipe)
    modules = dict(getattr(pipe, part).named_modules())
    layers = {name: module for name, module in modules.items() if name.endswith(READERS[part])}
    if not layers:
        raise ValueError(f"pipe.{part} has no layer named *{' or *'.join(READERS[part])}: fused or unknown attention")
    for name, layer in layers.items():
        if not isinstance(layer, torch.nn.Linear) or not layer.weight.is_floating_point():
            kind = type(layer).__name__
            raise ValueError(
                f"pipe.{part}.{name} is a {kind}, not a plain Linear: unload adapters and quantisation first"
            )
    widths = {layer.in_features for layer in layers.values()}
    if len(widths) > 1:
        raise ValueError(f"the layers of pipe.{part} read prompts of several widths {sorted(widths)}: not supported")
    if any(layer.weight.is_meta for layer in layers.values()):
        raise ValueError(f"the weights of pipe.{part} are not in memory: edit before enabling sequential CPU offload")
    projected = getattr(model(pipe).config, "encoder_hid_dim", None)
    if projected is not None:
        raise ValueError(
            f"pipe.{part} projects the prompt embedding (encoder_hid_dim={projected}) first: not supported"
        )
    return layers


def width(pipe: DiffusionPipeline) -> int:
    """d, the width of the prompt embedding."""
    return next(iter(prompt_layers(pipe).values())).in_features


def encoders(pipe: DiffusionPipeline) -> list[str]:
    """What the text encoders are, in words: a map fits only pipelines that share them."""
    found = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
    return [
        f"{type(e).__name__} width {e.config.hidden_size}, {e.config.num_hidden_layers} layers, "
        f"{e.config.vocab_size} tokens"
        for e in found
        if e is not None
    ]


def gram(pipe: DiffusionPipeline) -> Tensor:
    """G = sum W^T W over the layers that read the prompt, as they are now: (d, d) float64 on their device.

    Raises ValueError naming the layer if a weight is not finite.
    """
    layers = prompt_layers(pipe)
    for name, layer in layers.items():
        if not torch.isfinite(layer.weight).all():
            raise ValueError(f"the weight of {name} holds values that are not finite: reload the model")
    return solver.gram(layer.weight for layer in layers.values())


@torch.no_grad()
def encode(pipe: DiffusionPipeline, prompts: list[str], batch_size: int = 64) -> Tensor:
    """The embeddings the cross-attention reads: (n, positions, d) float64 on the pipeline's device (CPU for MPS).

    Encoded in the text encoder's own dtype. Shows a bar if it takes more than a second.
    Raises ValueError if prompts is empty or an embedding is not finite.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError("prompts must be a list of at least one text")
    starts = tqdm(range(0, len(prompts), batch_size), desc="encode", delay=1, leave=False)
    embeds = torch.cat([_encode(pipe, prompts[start : start + batch_size]) for start in starts])
    if not torch.isfinite(embeds).all():
        raise ValueError("the text encoder returns values that are not finite: reload the model, or use another dtype")
    return embeds


def encode_rows(pipe: DiffusionPipeline, prompts: list[str], batch_size: int = 64) -> Tensor:
    """Rows R with R^T R = P^T P for P = all tokens of all prompts: (at most d + positions * batch_size, d) float64.

    Preserve sets enter the closed form through P^T P alone, so thousands of prompts fit in the triangle of a QR. A
    text that is given several times is encoded once and weighted.
    """
    if not prompts:
        raise ValueError("prompts must be a list of at least one text")
    rows, counts = None, Counter(prompts)
    texts = list(counts)
    for start in range(0, len(texts), batch_size):
        some = texts[start : start + batch_size]
        weight = torch.tensor([counts[text] for text in some], dtype=torch.float64).sqrt()
        embeds = encode(pipe, some, batch_size)
        batch = (embeds * weight.to(embeds.device)[:, None, None]).flatten(0, 1)
        rows = batch if rows is None else torch.linalg.qr(torch.cat([rows, batch]), mode="r").R
    return rows


def last_word(pipe: DiffusionPipeline, prompt: str) -> int:
    """The position of the prompt's last token before the end token; 0, the start token, for an empty prompt."""
    tokens = pipe.tokenizer(prompt, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True)
    return sum(tokens.attention_mask) - 2


def slices(concept_index: int, target_index: int, positions: int) -> tuple[slice, slice]:
    """The rows of a concept and of its target that UCE matches: from the last word on, trimmed to equal length.

    Source: UCE's first code, which RECE builds on.
    """
    length = positions - max(concept_index, target_index)
    return slice(concept_index, concept_index + length), slice(target_index, target_index + length)


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
def fuse(pipe: DiffusionPipeline, M: Tensor) -> None:
    """Replace every W by W M in the weight's own dtype and device (half types are computed in float32), in place.

    Layer by layer: beside one layer, only the original weights of these layers are kept, on the CPU.
    Raises ValueError, and changes nothing, if the model is edited already, M does not fit or anything is not finite.
    """
    layers, part = prompt_layers(pipe), model(pipe)
    d = width(pipe)
    if hasattr(part, KEPT):
        raise ValueError("the pipeline carries an eraser already: remove it first, or compose the two with @")
    if M.shape != (d, d):
        raise ValueError(f"the map is {tuple(M.shape)}, but this pipeline's prompt embedding has width {d}")
    if not torch.isfinite(M).all():
        raise ValueError("the map holds values that are not finite")
    for name, layer in layers.items():
        if not torch.isfinite(layer.weight).all():
            raise ValueError(f"the weight of {name} holds values that are not finite: reload the model")
    change = solver.precise(M)
    change = change - torch.eye(d, dtype=change.dtype, device=change.device)
    kept = Kept(M.detach().cpu().clone(), {})
    setattr(part, KEPT, kept)
    try:
        for name, layer in layers.items():
            weight = layer.weight
            dtype = torch.promote_types(weight.dtype, torch.float32)
            W = weight.to(dtype)
            edited = torch.addmm(W, W, change.to(dtype).to(weight.device)).to(weight.dtype)
            if not torch.isfinite(edited).all():
                raise ValueError(f"the edited weight of {name} overflows {weight.dtype}: use a wider dtype")
            kept.weights[name] = weight.detach().to("cpu", copy=True)
            weight.copy_(edited)
    except BaseException:
        restore(pipe)
        raise


def fused(pipe: DiffusionPipeline) -> Tensor | None:
    """The map the pipeline carries, (d, d) on the CPU, or None."""
    kept = getattr(model(pipe), KEPT, None)
    return None if kept is None else kept.map


@torch.no_grad()
def restore(pipe: DiffusionPipeline) -> None:
    """Put back the very bits that `fuse` found. Raises ValueError if the pipeline carries no eraser."""
    if fused(pipe) is None:
        raise ValueError("the pipeline carries no eraser: there is nothing to remove")
    layers = prompt_layers(pipe)
    for name, weight in originals(pipe).items():
        layers[name].weight.copy_(weight)
    delattr(model(pipe), KEPT)


def originals(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """The weights of the layers that read the prompt, by name, as they are without any eraser."""
    kept = getattr(model(pipe), KEPT, None)
    now = {name: layer.weight.detach() for name, layer in prompt_layers(pipe).items()}
    return now if kept is None else kept.weights


def _part(pipe: DiffusionPipeline) -> str:
    for part in READERS:
        if isinstance(getattr(pipe, part, None), torch.nn.Module) and hasattr(pipe, "encode_prompt"):
            return part
    kind = type(pipe).__name__
    raise TypeError(f"pipe must be a pipeline like StableDiffusionPipeline with {' or '.join(READERS)}, not {kind}")


def _encode(pipe: DiffusionPipeline, prompts: list[str]) -> Tensor:
    embeds = pipe.encode_prompt(
        prompt=prompts, device=pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    return solver.precise(embeds)
