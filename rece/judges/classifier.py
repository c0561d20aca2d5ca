"""An image classifier of transformers: which object, or whose style, an image shows."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rece.judges import Network, checked


class Classifier:
    """Any transformers model for image classification: ResNet-50 for ImageNet's objects, a ViT for styles.

    model: hub id or folder; revision, batch_size, device: see `judges.Network`. top: a case is wanted if its label is
    among the `top` likeliest classes. labels: the names of the classes in order, where the model's config has none.
    microsoft/resnet-50, which UnlearnDiffAtk uses, has other weights than what RECE used, torchvision's ResNet-50 with
    its DEFAULT weights: rates of the two do not compare.

    A case's label names every class one of whose synonyms it is, whatever the capitals: "English springer" is
    "English springer, English springer spaniel", and ImageNet's two cranes are both "crane". `threshold` is 0: the
    likeliest class counts, however unlikely.
    Computed in float32. Raises FileNotFoundError or ValueError for an unfit model, revision or setting.
    """

    threshold = 0.0

    def __init__(
        self,
        model: str | Path,
        revision: str | None = None,
        top: int = 1,
        labels: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 32,
    ):
        self.network = Network("AutoModelForImageClassification", model, revision, batch_size, device)
        config = self.network.model.config
        n = config.num_labels
        if labels is not None and (isinstance(labels, str) or len(labels) != n):
            raise ValueError(f"labels must be the names of the model's {n} classes, in order, not {len(labels)}")
        if not 1 <= top <= n:
            raise ValueError(f"top must be from 1 to the number of classes, {n}, not {top}")
        self.labels = [config.id2label[i] for i in range(n)] if labels is None else list(labels)
        self.top, self.model = top, str(model)
        self._classes = {}
        for i, label in enumerate(self.labels):
            for name in {_plain(label), *map(_plain, label.split(","))}:
                self._classes.setdefault(name, []).append(i)

    def answers(self, images: np.ndarray, cases: pd.DataFrame) -> pd.DataFrame:
        """Judge uint8 images (n, h, w, 3) of cases whose column `label` names a class.

        Columns: label (the likeliest class, as the model names it), probability (of it), wanted (whether the case's
        class is among the `top` likeliest), of_asked (the probability of the case's class; of several, their sum),
        rank (its place, 1 if it is the likeliest).
        Raises ValueError, before anything is judged, if a case's label is no class, or images have another form or
        are not as many as cases.
        """
        checked(images, cases)
        asked = [self.classes(label) for label in cases.label]
        chance = self.network.chances(images, lambda pixels: self.network.model(pixels).logits)
        place = np.argsort(np.argsort(-chance, axis=1, kind="stable"), axis=1) + 1
        found = pd.DataFrame({"label": np.array(self.labels)[place.argmin(1)], "probability": chance.max(1)})
        rank = np.array([row[ids].min() for row, ids in zip(place, asked, strict=True)])
        of_asked = [row[ids].sum() for row, ids in zip(chance, asked, strict=True)]
        return found.assign(wanted=rank <= self.top, of_asked=of_asked, rank=rank)

    def classes(self, label: str) -> list[int]:
        """The numbers of the classes that `label` names. Raises ValueError with the nearest names if there is none."""
        plain = _plain(str(label))
        if plain not in self._classes:
            near = get_close_matches(plain, list(self._classes), n=3, cutoff=0.5)
            hint = f"the nearest are {', '.join(near)}" if near else "nor is any name near it"
            raise ValueError(f"cases: the label {label!r} is no class of {self.model}; {hint}")
        return self._classes[plain]

    def describe(self) -> dict:
        """What one needs to repeat the judgement: model, revision, sha256 of its weights, settings, and a note."""
        settings = {"classes": len(self.labels), "top": self.top, "threshold": self.threshold}
        if "resnet" in self.model.lower():
            settings["note"] = "not torchvision's DEFAULT ResNet-50 weights, which RECE used"
        return {"judge": "classifier", **self.network.describe(), **settings}


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
