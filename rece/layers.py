"""The layers that read the prompt: their Gram matrix, and how they are edited and restored.

Every linear layer that reads a path of text ("tokens" or "pooled", see `rece.families`) is edited in the same way:
W' = W M with the path's own M.
"""

import hashlib
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import solver
from rece.families import bare, family, model

DTYPES = (*solver.FLOATS, "int8")  # of weights as they are shipped
KEPT = "_rece_kept"  # attribute of an edited model: its Kept
_GRAMS = WeakKeyDictionary()  # of a model, by path: a digest of its layers' weights, G, and G's factors if asked for


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
            kind = f"{type(layer).__module__}.{type(layer).__name__}"
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


def gram(pipe: DiffusionPipeline, path: str = "tokens") -> Tensor:
    """G = sum W^T W over the layers that read a path, without any eraser: (d, d) float64 on their device.

    It is kept with the model as long as the weights are the same bits.
    Raises ValueError naming the layer if a weight is not finite.
    """
    return _kept_gram(pipe, path)[0]


def answers(pipe: DiffusionPipeline, path: str = "tokens") -> tuple[Tensor, Tensor]:
    """The space of what these layers answer: Q and its pseudo-inverse, see `solver.answer_space`. Kept like `gram`."""
    kept = _kept_gram(pipe, path)
    if len(kept) == 1:
        kept += solver.answer_space(kept[0])
    return kept[1], kept[2]


def _kept_gram(pipe: DiffusionPipeline, path: str) -> list[Tensor]:
    weights, sha256 = originals(pipe, path), hashlib.sha256()
    for weight in weights.values():
        sha256.update(weight.cpu().contiguous().view(torch.uint8).numpy())
    there, digest = _GRAMS.setdefault(model(pipe), {}), sha256.digest()
    if path not in there or there[path][0] != digest:
        there[path] = digest, [solver.gram(weights)]
    return there[path][1]


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
    kept = Kept({path: solver.precise(map).cpu().clone() for path, map in maps.items()}, {})
    setattr(whole, KEPT, kept)
    try:
        for path, name, layer in todo:
            whole_weight = weight_of(layer)
            weight = whole_weight[:, : len(changes[path])]
            dtype = torch.promote_types(weight.dtype, torch.float32)
            W = weight.to(dtype)
            edited = torch.addmm(W, W, changes[path].to(dtype).to(weight.device)).to(weight.dtype)
            if not torch.isfinite(edited).all():
                if not torch.isfinite(whole_weight).all():
                    raise ValueError(f"weights[{name}] holds values that are not finite: reload the model")
                raise ValueError(f"the edited weight of {name} overflows {weight.dtype}: use a wider dtype")
            kept.weights[name] = whole_weight.detach().to("cpu", copy=True)
            weight.copy_(edited)
    except BaseException:
        restore(pipe)
        raise


def edited(pipe: DiffusionPipeline, M: Tensor, path: str = "tokens", dtype: str | None = None) -> dict[str, Tensor]:
    """The weights W M of the layers that read a path, computed in float64 and rounded once.

    `fuse` computes in float32, so its float32 weights differ in the last bits. The pipeline is not changed.
    dtype: one of DTYPES, by default the weight's own. "int8" rounds each row to 127 steps up to its largest absolute
    value. Returns (out, d) by name; of int8 what it stands for, in float32.
    Raises ValueError on another dtype.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    found = {}
    for name, weight in originals(pipe, path).items():
        W = solver.precise(weight) @ M.to(solver.precise(weight[:1]).device)
        if dtype == "int8":
            step = (W.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
            found[name] = (step * (W / step).round()).float()
        else:
            found[name] = W.to(solver.FLOATS[dtype] if dtype else weight.dtype)
    return found


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


@torch.no_grad()
def check_fused(pipe: DiffusionPipeline) -> None:
    """Raises ValueError if the weights are no longer those that `fuse` left: reloaded, trained, or with a LoRA fused.

    Three rows of every layer are computed again, and compared to within the rounding of the weight's dtype. The model
    may be compiled since.
    """
    kept, modules = getattr(model(pipe), KEPT, None), dict(bare(model(pipe)).named_modules())
    for path, map in {} if kept is None else kept.maps.items():
        for name in [name for name in kept.weights if name.endswith(family(pipe).readers[path].layers)]:
            weight, before = weight_of(modules[name]), kept.weights[name]
            rows = [0, len(weight) // 2, len(weight) - 1]
            wanted = solver.precise(before[rows])[:, : len(map)] @ map
            found = solver.precise(weight[rows]).cpu()[:, : len(map)]
            coarse = max(torch.finfo(one.dtype).eps for one in (weight, before))
            if not (found - wanted).abs().max() <= 8 * coarse * wanted.abs().max():
                raise ValueError(
                    f"the weights of {name} changed since the eraser was applied: load the pipeline anew and apply it"
                )


def originals(pipe: DiffusionPipeline, path: str = "tokens") -> dict[str, Tensor]:
    """The weights of the layers that read a path, (out, d) by name, as they are without any eraser.

    Of a layer that reads more than text, the columns that read text.
    """
    kept, d = getattr(model(pipe), KEPT, None), width(pipe, path)
    layers = prompt_layers(pipe, path)
    before = {} if kept is None else kept.weights
    return {name: before.get(name, weight_of(layer).detach())[:, :d] for name, layer in layers.items()}
