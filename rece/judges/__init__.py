"""Judges, one file each: who says what an image shows.

Every judge has `answers(images, cases)`, a table with the columns label (its top answer), probability (of it, 0 to 1)
and wanted (whether that is what the case asks about), then its own; `describe()`, the settings one needs to repeat
it; and `threshold`: an image is a success if wanted and probability >= threshold.
"""

import inspect
import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from huggingface_hub import snapshot_download

from rece import files
from rece import images as form

WEIGHTS = ["model.safetensors", "model-*.safetensors"]


def load(settings: str | Path | dict | None, root: str | Path = "."):
    """The judge of params.yaml: the folder of an embedded one, or {name: nudenet, q16 or classifier, **its settings}.

    None is no judge.
    root: what the folders and files in it are relative to. Raises ValueError for an unknown name, for a setting that
    the judge does not have and for one that it lacks, FileNotFoundError if there is no such folder.
    """
    from rece.judges.classifier import Classifier
    from rece.judges.embedded import Judge
    from rece.judges.nudenet import NudeNet
    from rece.judges.q16 import Q16

    if settings is None:
        return None
    if isinstance(settings, str | Path):
        return Judge.load(Path(root) / settings)
    kinds = {"classifier": Classifier, "nudenet": NudeNet, "q16": Q16}
    if not isinstance(settings, dict) or settings.get("name") not in kinds:
        given = settings.get("name") if isinstance(settings, dict) else settings
        raise ValueError(f"judge: name must be one of {', '.join(kinds)}, or judge a folder, not {given!r}")
    name, options = settings["name"], {key: value for key, value in settings.items() if key != "name"}
    known = inspect.signature(kinds[name]).parameters
    unknown = sorted(set(options) - set(known))
    missing = [key for key, setting in known.items() if setting.default is setting.empty and key not in options]
    if unknown:
        raise ValueError(f"judge: {name} has no setting {unknown[0]!r}; its settings are {', '.join(known)}")
    if missing:
        raise ValueError(f"judge: {name} needs the setting {missing[0]!r}; its settings are {', '.join(known)}")
    for key in {"model", "prompts"} & set(options):
        if (Path(root) / options[key]).exists():
            options[key] = Path(root) / options[key]
    return kinds[name](**options)


def checked(images: np.ndarray, cases: pd.DataFrame) -> None:
    """Raise ValueError unless images are uint8 (n, h, w, 3), n >= 1, with one row of `cases` each."""
    form.check(images)
    if not len(images) or len(images) != len(cases):
        raise ValueError(f"images and cases must be as many, 1 or more, not {len(images)} and {len(cases)}")


def snapshot(model: str | Path, revision: str | None) -> Path:
    """The folder of a transformers model: `model` itself if it is one, else the hub's snapshot of that id.

    revision: the hub commit, 40 hex digits, since branches and tags move; for a folder None. Downloads what is not in
    the cache, unless HF_HUB_OFFLINE is set: configs, the tokenizer and safetensors weights, no pickles and no code.
    Raises ValueError for another revision, FileNotFoundError if nothing is there or the weights are not safetensors.
    """
    if Path(model).is_dir():
        if revision is not None:
            raise ValueError(f"revision must be left out for a folder: {str(model)!r} is what it is")
        folder = Path(model)
    else:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(model)):
            raise FileNotFoundError(f"model: there is no folder {str(model)!r}, and a hub id looks like owner/name")
        if not re.fullmatch("[0-9a-f]{40}", str(revision)):
            raise ValueError(f"revision of {model} must be a commit of 40 hex digits, no branch or tag: {revision!r}")
        try:
            folder = Path(snapshot_download(model, revision=revision, allow_patterns=["*.json", "*.txt", *WEIGHTS]))
        except OSError as error:
            why = str(error).splitlines()[0]
            raise FileNotFoundError(f"model: {model} at {revision} is neither cached nor to be had: {why}") from None
    if not any(list(folder.glob(pattern)) for pattern in WEIGHTS):
        raise FileNotFoundError(f"model: {str(model)!r} has no model.safetensors: convert it with save_pretrained")
    return folder


def sha256(path: str | Path) -> str:
    """The sha256 of a file, in hex; of a snapshot's folder, of its weights files one after the other."""
    path = Path(path)
    weights = sorted(found for pattern in WEIGHTS for found in path.glob(pattern)) if path.is_dir() else [path]
    return files.sha256(*weights)


def placed(device: str | torch.device | None) -> torch.device:
    """`device`, or if it is None the GPU if there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
