"""Judges, one file each: who says what an image shows.

Every judge has `answers(images, cases)`, a table with the columns label (its top answer), probability (of it, 0 to 1)
and wanted (whether that is what the case asks about), then columns of its own; `describe()`, the settings one needs
to repeat it; and `threshold`: an image is a success if wanted and probability >= threshold.
"""

import inspect
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from rece import files, loading
from rece import images as form

WEIGHTS = ["model.safetensors", "model-*.safetensors"]


def load(settings: str | Path | dict | None, root: str | Path = "."):
    """The judge of params.yaml: the folder of an embedded one, or {name: …, **its settings}. None is no judge.

    Names are nudenet, q16, classifier and clip.
    root: what the folders and files in it are relative to. Raises ValueError for an unknown name, for a setting that
    the judge does not have and for one that it lacks, FileNotFoundError if there is no such folder.
    """
    from rece.judges import classifier, clip, embedded, nudenet, q16

    if settings is None:
        return None
    if isinstance(settings, str | Path):
        return embedded.Judge.load(Path(root) / settings)
    kinds = {"classifier": classifier.Classifier, "clip": clip.Clip, "nudenet": nudenet.NudeNet, "q16": q16.Q16}
    if not isinstance(settings, dict) or settings.get("name") not in kinds:
        raise ValueError(f"judge: name must be one of {', '.join(kinds)}, or judge a folder, not {settings!r}")
    options = dict(settings)
    name = options.pop("name")
    known = inspect.signature(kinds[name])
    try:
        known.bind(**options)
    except TypeError as error:
        raise ValueError(f"judge: {name}: {error}; its settings are {', '.join(known.parameters)}") from None
    for key in {"model", "prompts"} & set(options):
        if (Path(root) / options[key]).exists():
            options[key] = Path(root) / options[key]
    return kinds[name](**options)


def checked(images: np.ndarray, cases: pd.DataFrame) -> None:
    """Raise ValueError unless images are uint8 (n, h, w, 3), n >= 1, with one row of `cases` each."""
    form.check(images)
    if not len(images) or len(images) != len(cases):
        raise ValueError(f"images and cases must be as many, 1 or more, not {len(images)} and {len(cases)}")


class Network:
    """A transformers model of images, in float32 on `device`, by default the GPU if there is one.

    kind: the name of its class in transformers. model, revision: see `loading.local`. Downloads what is not in the
    cache, unless HF_HUB_OFFLINE is set: configs, the tokenizer and safetensors weights, no pickles and no code.
    batch_size: how many images at once. Raises ValueError for a bad setting, FileNotFoundError if nothing is there or
    the weights are not safetensors.
    """

    def __init__(
        self, kind: str, model: str | Path, revision: str | None, batch_size: int, device: str | torch.device | None
    ):
        import transformers
        from transformers import AutoImageProcessor

        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        self.batch_size, self.device, self.revision = batch_size, loading.placed(device), revision
        self.name = str(model) if revision else Path(model).name
        self.folder = loading.local(model, revision)
        if self.folder is None:
            patterns = ["*.json", "*.txt", *WEIGHTS]
            try:
                self.folder = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
            except OSError as error:
                why = f"{model} at {revision} is neither cached nor to be had: {str(error).splitlines()[0]}"
                raise FileNotFoundError(f"model: {why}") from None
        self.weights = sorted(path for pattern in WEIGHTS for path in self.folder.glob(pattern))
        if not self.weights:
            raise FileNotFoundError(f"model: {str(model)!r} has no model.safetensors: convert it with save_pretrained")
        safe = {"use_safetensors": True, "trust_remote_code": False}
        network = getattr(transformers, kind).from_pretrained(self.folder, dtype=torch.float32, **safe)
        self.model = network.eval().requires_grad_(False).to(self.device)
        self.processor = AutoImageProcessor.from_pretrained(self.folder, backend="pil", trust_remote_code=False)

    def pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        """What the model reads: (n, 3, height, width) of uint8 images (h, w, 3)."""
        return self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.device)

    @torch.no_grad()
    def chances(self, images: np.ndarray, logits: Callable[[Tensor], Tensor]) -> np.ndarray:
        """The softmax of the logits of uint8 images (n, h, w, 3): (n, classes) float32. logits: from pixels."""
        batches = (images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size))
        return torch.cat([logits(self.pixels(batch)).softmax(-1).cpu() for batch in batches]).numpy()

    def describe(self) -> dict:
        """The package, the model (hub id, or name of its folder), the revision, and one sha256 of all weights."""
        package, sha256 = f"transformers {metadata.version('transformers')}", files.sha256(*self.weights)
        return {"package": package, "model": self.name, "revision": self.revision, "sha256": sha256}
