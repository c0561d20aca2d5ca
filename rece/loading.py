"""Loading a pipeline from a folder or, at a pinned revision, from the hub."""

import re
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, SchedulerMixin
from huggingface_hub import constants

from rece.eraser import Eraser

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load(
    model: str | Path,
    *,
    revision: str | None = None,
    eraser: str | Path | None = None,
    dtype: str = "float32",
    device: str | None = None,
    scheduler: str | None = None,
) -> DiffusionPipeline:
    """The pipeline of a folder, or of a hub id at a revision, from safetensors files only.

    model: a folder that `save_pretrained` wrote, or a hub id. revision: a hub id's full commit hash, without which
    the same line may load other weights tomorrow. eraser: a file of `Eraser.save`, which is applied. dtype: one of
    DTYPES. device: by default the GPU if there is one. scheduler: the name of one of diffusers' scheduler classes,
    configured as the pipeline's own. A safety checker is not loaded.

    Raises ValueError naming the parameter; FileNotFoundError if there is no such folder or eraser file; OSError if
    the folder is not whole, or the hub does not have it or cannot be reached.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    kind = None if scheduler is None else getattr(diffusers, scheduler, None)
    if scheduler is not None and not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"scheduler must be the name of one of diffusers' schedulers, not {scheduler!r}")
    device = _device(device)
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"model: the folder {model} holds no model_index.json, so it is no pipeline")
        if revision is not None:
            raise ValueError(f"revision belongs to hub ids, and {model} is a folder: leave it out")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise FileNotFoundError(f"model: there is no folder {str(model)!r}, and it is no hub id like owner/name")
    elif not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise ValueError(
            f"model: there is no folder {str(model)!r}. If it is a model of the hub, revision must be its full commit "
            f"hash (40 digits), not {revision!r}"
        )
    edit = None if eraser is None else Eraser.load(eraser)
    try:
        index = DiffusionPipeline.load_config(model, revision=revision)
        unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = DiffusionPipeline.from_pretrained(
            model,
            revision=revision,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            **(unchecked if "safety_checker" in index else {}),
        )
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        if folder.is_dir():
            raise OSError(f"model: the folder {model} is not whole: {reason}") from error
        if constants.is_offline_mode():
            reason = "it is not in the local cache, and HF_HUB_OFFLINE is set: unset it to download"
        raise OSError(f"model: {model} at revision {revision} cannot be loaded: {reason}") from error
    if kind is not None:
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    return pipe if edit is None else edit.apply(pipe)


def quiet() -> None:
    """Of the libraries only errors: no bars of their own, no line for every prompt that CLIP cuts at 77 tokens."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be one of torch's, like cpu, cuda or cuda:1, not {device!r}") from None
    backend = getattr(torch, found.type, None)
    if found.type != "cpu" and not (hasattr(backend, "is_available") and backend.is_available()):
        raise ValueError(f"device {device!r} is not available here: choose another one")
    return found
