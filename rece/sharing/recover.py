"""Other projects' files: reading edited weights, and recovering the map behind them.

UCE saves the edited layers (safetensors), ESD the trained ones, RECE and ConceptPrune a whole UNet (a `.pt` pickle);
a LoRA holds the change alone. If the edit is one matrix for all layers that read the prompt, as UCE's and RECE's are,
the matrix can be found again; and whether it was one is measured.
"""

import json
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from rece import families, files, layers, solver
from rece.eraser import LORA, Eraser, origin

TOLERANCE = 0.05  # of recover: published code inverts in float32, which leaves about 0.01; training leaves 0.9
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
PREFIXES = ("unet.", "transformer.", "model.", "module.")
WRAPPERS = ("state_dict", "model", "unet", "module")  # keys under which checkpoints hold their weights


@dataclass
class Recovered:
    """What `recover` found.

    eraser: the map that explains the file best. residual: |W' - W M|_F / |W' - W|_F over all layers that read the
    prompt, the share of the edit that the map lacks (0 where nothing was changed). rounding: the residual that
    rounding alone would leave, if the file were an exact map's weights. layers: one row per layer with
    columns layer, path, residual, change (|W' - W|_F / |W|_F) and given (whether the file has the layer; one it lacks
    counts as unchanged). unexplained: names of weights that differ from the pipeline's and that no map of the prompt
    explains. unchanged: those equal to the pipeline's. exact: whether the map is the whole edit, up to the tolerance.
    """

    eraser: Eraser
    residual: float
    rounding: float
    layers: pd.DataFrame
    unexplained: list[str]
    unchanged: list[str]
    exact: bool


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a `.pt`, `.pth`, `.bin` or `.ckpt` pickle, by name, on the CPU.

    Of a pickle only tensors are read: nothing in it is run. One wrapping like {"state_dict": …} and a prefix that all
    names share ("unet.", "model.") are taken off, and a warning says so. A LoRA's names (lora_A, lora_B) stay.
    Raises FileNotFoundError, or ValueError in one line if the file is broken, holds anything but tensors, or has names
    of another layout (CompVis, kohya), or is a LoRA whose names lack the prefix without which diffusers ignores them.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: download it again ({error})") from None
    elif path.suffix in PICKLES:
        weights = _read_pickle(path)
    else:
        raise ValueError(f"{path} must be a .safetensors file or a .pt, .pth, .bin or .ckpt pickle")
    if not weights:
        raise ValueError(f"{path} holds no weights")
    for name, weight in weights.items():
        if not isinstance(weight, Tensor) or not isinstance(name, str):
            kind = type(weight).__name__
            raise ValueError(f"{path} holds {name!r}, a {kind}, where only tensors by name are expected")
        if not weight.is_floating_point() or not torch.isfinite(weight).all():
            raise ValueError(f"{path}: {name} must be floats, all of them finite")
    lora = any("lora" in name for name in weights)
    if any(name.startswith(("model.diffusion_model.", "diffusion_model.")) for name in weights):
        raise ValueError(
            f"{path} is a checkpoint in CompVis' layout: load it with DiffusionPipeline.from_single_file and save it"
        )
    if lora and not all(name.endswith((".lora_A.weight", ".lora_B.weight", ".alpha")) for name in weights):
        raise ValueError(
            f"{path} is a LoRA in another layout than <part>.<layer>.lora_A.weight: load it with "
            "pipe.load_lora_weights, and save it with pipe.save_lora_weights"
        )
    if lora and any(name.startswith("text_encoder") for name in weights):
        raise ValueError(f"{path} changes a text encoder too, as no eraser does: save the part of the UNet alone")
    lacking = [name for name in weights if lora and not name.startswith(("unet.", "transformer."))]
    if lacking:
        raise ValueError(
            f"{path}: {lacking[0]} lacks the prefix unet. or transformer., without which load_lora_weights changes "
            "nothing and raises nothing: rename the tensors"
        )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            warnings.warn(f"{path.name}: took {prefix!r} off all {len(weights)} names", stacklevel=2)
            weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    return weights


def edit_file(word: str) -> Path | None:
    """The file that a word names: an eraser, weights, or the LoRA in a folder. None if it is a concept."""
    path = Path(word)
    if (path / LORA).is_file():
        return path / LORA
    if path.is_dir() and (len(path.parts) > 1 or (path / "model_index.json").is_file()):
        raise FileNotFoundError(f"{path} holds no {LORA}: give a LoRA's folder, or a file")
    return path if path.suffix in (".safetensors", *PICKLES) else None


def described(path: str | Path) -> tuple[str | None, dict]:
    """The kind of edit that a file holds, see `Edit.kinds`, and the provenance; None and {} of other projects' files.

    Raises FileNotFoundError, or ValueError if a safetensors file is broken.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    if path.suffix != ".safetensors":
        return None, {}
    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata() or {}
            kind = note.get("kind", "map" if "map" in file.keys() else None)
        provenance = json.loads(note.get("rece", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: make it again ({error})") from None
    return kind, provenance if isinstance(provenance, dict) else {}


def edited_layers(pipe: DiffusionPipeline, path: str | Path) -> dict[str, Tensor]:
    """The weights that a file gives the pipeline's layers, by layer name; of a LoRA those with it merged in, float64.

    Raises ValueError on names that the model lacks, or on other shapes; and as `read_weights`.
    """
    return {name.removesuffix(".weight"): weight for name, weight in _matched(pipe, read_weights(path))[1].items()}


def recover(
    pipe: DiffusionPipeline, weights: dict[str, Tensor] | str | Path, *, tolerance: float = TOLERANCE
) -> Recovered:
    """The eraser behind edited weights: the M that minimises sum |W_i M - W'_i|^2 over layers that read the prompt.

    pipe: the model that was edited, as it was before; an eraser that it carries is looked through. weights: what
    `read_weights` returns, or the file (then the eraser's provenance has its name and sha256). tolerance: the residual
    up to which the map counts as the whole edit; what rounding leaves is added to it.

    Computed in float64 on the CPU: D = M - I solves (sum W^T W) D = sum W^T (W' - W), with the least norm where layers
    have fewer rows than d (eigenvalues below d * 2.2e-16 of the largest count as zero). Where the only layer has full
    row rank (FLUX's context embedder), every change of it is some M, so the residual then says nothing. Layers that
    the file lacks count as unchanged. The pooled path is recovered in the same way where it changed.

    Warns where the map is not the whole edit. Raises ValueError on names the model lacks or on other shapes.
    Source: ours.
    """
    source = {}
    if not isinstance(weights, dict):
        path = Path(weights)
        weights = read_weights(path)
        source = {"file": path.name, "sha256": files.sha256(path)}
    solver.positive(tolerance, "tolerance", or_zero=True)
    own, weights = _matched(pipe, weights)
    readers = {path: layers.originals(pipe, path) for path in families.paths(pipe)}
    whole = {f"{name}.weight" for read in readers.values() for name in read}
    unchanged, unexplained = [], []
    for name, weight in weights.items():
        if name not in whole:
            (unchanged if _same(weight, own[name]) else unexplained).append(name)

    maps, rows, lost, changed, rounded = {}, [], 0.0, 0.0, 0.0
    for path, read in readers.items():
        d = layers.width(pipe, path)
        edited = {}
        for name, W in read.items():
            given = weights.get(f"{name}.weight")
            if given is None:
                continue
            if not _same(given[:, d:], own[f"{name}.weight"][:, d:]):
                unexplained.append(f"{name}.weight[:, {d}:]")
            if _same(given[:, :d], W):
                unchanged.append(f"{name}.weight")
            else:
                edited[name] = given[:, :d]
                rounded += _rounding(edited[name]) ** 2 + _rounding(W) ** 2
        D = _least_squares(read, edited, d)
        maps[path] = torch.eye(d, dtype=torch.float64) + D
        for name in read:
            W, change = _precise(read[name], edited.get(name))
            left, size = (change - W @ D).norm().item(), change.norm().item()
            lost, changed = lost + left**2, changed + size**2
            ratio = left / size if size else (float("inf") if left else 0.0)
            row = {"layer": name, "path": path, "residual": ratio, "change": size / W.norm().item()}
            rows.append(row | {"given": f"{name}.weight" in weights})
    residual, rounding = ((x / changed) ** 0.5 if changed else 0.0 for x in (lost, rounded))
    exact = residual <= tolerance + rounding and not unexplained
    found = {"residual": residual, "rounding": rounding, "exact": exact, "unexplained": len(unexplained)}
    pooled = maps.get("pooled")
    if pooled is not None and torch.equal(pooled, torch.eye(len(pooled), dtype=torch.float64)):
        pooled = None
    eraser = Eraser(maps["tokens"], {**origin(pipe), "recovered": source | found}, pooled=pooled)
    if not exact:
        lacks = [f"{residual:.1%} of the change of the layers that read the prompt"] if residual > tolerance else []
        lacks += [f"{len(unexplained)} other weights, e.g. {unexplained[0]}"] if unexplained else []
        warnings.warn(f"no eraser explains these weights: the best one lacks {' and '.join(lacks)}", stacklevel=2)
    return Recovered(eraser, residual, rounding, pd.DataFrame(rows), unexplained, unchanged, exact)


def _read_pickle(path: Path) -> dict:
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        refused = next((line for line in reason if "Unsupported" in line or "GLOBAL" in line), reason[0])
        raise ValueError(f"{path} is not a pickle of tensors alone and was not run: {refused.strip()}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not weights by name")
    for key in WRAPPERS:
        if isinstance(found.get(key), dict):
            rest = ", ".join(repr(name) for name in found if name != key)
            also = f", leaving out {rest}" if rest else ""
            warnings.warn(f"{path.name}: took the weights from under {key!r}{also}", stacklevel=3)
            return found[key]
    return found


def _matched(pipe: DiffusionPipeline, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights by name of the part that reads the prompt, as they are without any eraser, and those of the file.

    Of a LoRA the whole weights W + (alpha / rank) B A, float64. Raises ValueError on names the model lacks, or on
    other shapes.
    """
    whole, part = families.model(pipe), f"pipe.{families.part(pipe)}"
    kept = getattr(whole, layers.KEPT, None)
    before = {} if kept is None else {f"{name}.weight": weight for name, weight in kept.weights.items()}
    own = dict(whole.state_dict()) | before
    if any(weight.is_meta for weight in own.values()):
        raise ValueError(f"the weights of {part} are not in memory: do this before any offload")
    merged = {}
    for layer in sorted({name.rpartition(".lora_")[0] for name in weights if ".lora_" in name}):
        A, B = (weights.get(f"{layer}.lora_{x}.weight") for x in "AB")
        W = own.get(f"{layer}.weight")
        if W is None or A is None or B is None or (B.shape[0], A.shape[1], B.shape[1]) != (*W.shape, A.shape[0]):
            raise ValueError(f"{layer}: the LoRA does not fit {part}: it is of another model")
        alpha = weights.get(f"{layer}.alpha", torch.tensor(float(len(A)))).double()
        merged[f"{layer}.weight"] = W.detach().cpu().double() + alpha / len(A) * (B.double() @ A.double())
    weights = merged or weights
    unknown = [name for name in weights if name not in own]
    if unknown:
        raise ValueError(
            f"{part} has no weight named {unknown[0]!r} ({len(unknown)} of {len(weights)} names are unknown): the "
            f"file is of another model, or has another layout"
        )
    for name, weight in weights.items():
        if weight.shape != own[name].shape:
            given, right = tuple(weight.shape), tuple(own[name].shape)
            raise ValueError(f"{name} is {given}, but {part}'s is {right}: the file is of another model")
    return own, weights


def _same(given: Tensor, own: Tensor) -> bool:
    """Whether two weights are equal; where their dtypes differ, up to the coarser one's resolution."""
    a, b = given.detach().cpu(), own.detach().cpu()
    if a.dtype == b.dtype:
        return torch.equal(a, b)
    coarse = max(torch.finfo(a.dtype), torch.finfo(b.dtype), key=lambda info: info.eps)
    return torch.allclose(a.double(), b.double(), rtol=coarse.eps, atol=coarse.tiny)


def _rounding(weight: Tensor) -> float:
    """The expected Frobenius norm of what rounding to the coarsest dtype that holds the weight exactly took off.

    Rounding to the nearest is off by a uniform part of half a unit in the last place, ulp / sqrt(12) on average.
    """
    halves = (torch.bfloat16, torch.float16)
    held = [half for half in halves if torch.equal(weight.to(half).to(weight.dtype), weight)]
    info = torch.finfo(held[0] if held else weight.dtype)
    exponent = torch.frexp(weight.double().abs().clamp_min(info.tiny)).exponent
    return info.eps * torch.exp2(exponent.double() - 1).norm().item() / 12**0.5


def _least_squares(weights: dict[str, Tensor], edited: dict[str, Tensor], d: int) -> Tensor:
    """The D of least norm that minimises sum |W D - (W' - W)|^2; layers that are not among the edited have W' = W."""
    G, right = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    for name in weights:
        W, change = _precise(weights[name], edited.get(name))
        G.addmm_(W.T, W)
        right.addmm_(W.T, change)
    sizes, directions = torch.linalg.eigh(G)
    kept = sizes > d * torch.finfo(torch.float64).eps * sizes[-1]
    V = directions[:, kept]
    return V @ ((V.T @ right) / sizes[kept, None])


def _precise(W: Tensor, edited: Tensor | None) -> tuple[Tensor, Tensor]:
    """W and its change W' - W, float64 on the CPU."""
    W = solver.precise(W).cpu()
    return W, torch.zeros_like(W) if edited is None else solver.precise(edited).cpu() - W
