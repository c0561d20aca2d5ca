"""Loading a pipeline from a folder or, at a pinned revision, from the hub."""

import re
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, SchedulerMixin
from huggingface_hub import constants
from safetensors import SafetensorError

from rece import solver
from rece.edits import Edit

# What the libraries raise for a folder that is not whole: a file or a key is missing; model_index.json names a class
# that there is not; a tokenizer has no config; weights are missing; a file of weights is cut.
BROKEN = (OSError, KeyError, AttributeError, OverflowError, NotImplementedError, SafetensorError)


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

    model: a folder that `save_pretrained` wrote, or a hub id. revision: a hub id's full commit hash, see `local`.
    eraser: a file of an edit of any kind, see `Edit.load`, which is applied. dtype: one of `solver.FLOATS`; in float64
    a seed gives other noise than in the other dtypes. device: by default the GPU if there is one. scheduler: the
    name of one of diffusers' scheduler classes, configured as the pipeline's own. A safety checker is not loaded.

    Raises ValueError naming the parameter; FileNotFoundError if there is no such folder or eraser file; OSError if
    the folder is not whole, or the hub does not have it or cannot be reached.
    """
    if dtype not in solver.FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(solver.FLOATS)}, not {dtype!r}")
    kind = getattr(diffusers, scheduler or "", None)
    if scheduler is not None and not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"scheduler must be the name of one of diffusers' schedulers, not {scheduler!r}")
    device, folder = placed(device), local(model, revision)
    if folder and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"model: the folder {model} holds no model_index.json, so it is no pipeline")
    edit = None if eraser is None else Edit.load(eraser)
    try:
        index = DiffusionPipeline.load_config(model, revision=revision)
        unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        settings = {"dtype": solver.FLOATS[dtype], "use_safetensors": True}
        whole = _encoders(model, revision, index, settings)
        settings |= unchecked if "safety_checker" in index else {}
        pipe = DiffusionPipeline.from_pretrained(model, revision=revision, **settings, **whole).to(device)
        _check_tokenizers(pipe)
    except BROKEN as error:
        reason = " ".join(str(error).split())
        if folder:
            raise OSError(f"model: the folder {model} is not whole: {reason}") from error
        if constants.is_offline_mode():
            reason = "it is not in the local cache, and HF_HUB_OFFLINE is set: unset it to download"
        raise OSError(f"model: {model} at revision {revision} cannot be loaded: {reason}") from error
    if kind is not None:
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe if edit is None else edit.apply(pipe)


def _encoders(model: str | Path, revision: str | None, index: dict, settings: dict) -> dict:
    """The parts of a pipeline that transformers loads. Raises OSError if weights are missing.

    transformers itself fills missing weights at random.
    """
    found = {}
    for name, (library, kind) in ((n, part) for n, part in index.items() if isinstance(part, list) and len(part) == 2):
        kind = getattr(transformers, kind, None) if library == "transformers" and name != "safety_checker" else None
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            found[name], told = kind.from_pretrained(
                model, subfolder=name, revision=revision, output_loading_info=True, **settings
            )
            if missing := sorted(told["missing_keys"]):
                raise OSError(f"{name} lacks {len(missing)} weights, such as {missing[0]}")
    return found


def _check_tokenizers(pipe: DiffusionPipeline) -> None:
    """Raises OSError for a tokenizer without a vocabulary, which transformers makes if files are missing."""
    for n in ("", "_2", "_3"):
        tokenizer, encoder = (getattr(pipe, f"{part}{n}", None) for part in ("tokenizer", "text_encoder"))
        size = getattr(getattr(encoder, "config", None), "vocab_size", 0)
        if tokenizer is not None and len(tokenizer) < 0.9 * size:
            raise OSError(f"tokenizer{n} knows {len(tokenizer)} tokens, and text_encoder{n} has {size}")


def local(model: str | Path, revision: str | None) -> Path | None:
    """The folder that `model` is, or None if it is a hub id like owner/name at a revision, its full commit hash.

    Without that hash the same line may load other weights tomorrow: branches and tags move. A folder has no revision.
    Raises ValueError for another revision, FileNotFoundError if `model` is neither.
    """
    if Path(model).is_dir():
        if revision is not None:
            raise ValueError(f"revision belongs to hub ids, and {model} is a folder: leave it out")
        return Path(model)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise FileNotFoundError(f"model: there is no folder {str(model)!r}, and it is no hub id like owner/name")
    if not re.fullmatch("[0-9a-f]{40}", str(revision)):
        raise ValueError(
            f"model: there is no folder {str(model)!r}. If it is a model of the hub, revision must be its full commit "
            f"hash (40 digits), not {revision!r}"
        )
    return None


def placed(device: str | torch.device | None) -> torch.device:
    """`device`, or if it is None the GPU if there is one, else the CPU. Raises ValueError if it is not there."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError, ImportError):
        raise ValueError(
            f"device must be one that this machine has, like cpu or cuda:1, not {str(device)!r}"
        ) from None
    return found


def quiet() -> None:
    """Silence diffusers and transformers but for errors: no bars, no line for every prompt that CLIP cuts."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
