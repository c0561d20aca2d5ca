"""CLIP as a judge of anything that has a name: which of the given names an image looks most like."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from rece.judges import Network, checked


class Clip:
    """Zero-shot: the softmax of CLIP's logits of an image and of one text per name.

    labels: two names or more, what is erased and what it may be taken for; more names make it stricter. template: how
    a name becomes a text. model: the hub id or folder of a CLIP; revision, batch_size, device: see `judges.Network`.
    Computed in float32. Raises FileNotFoundError or ValueError for unfit labels, model, revision or setting.
    Source: CLIP (arXiv 2103.00020).
    """

    threshold = 0.0

    def __init__(
        self,
        labels: Sequence[str],
        model: str | Path,
        revision: str | None = None,
        template: str = "a photo of a {}",
        device: str | torch.device | None = None,
        batch_size: int = 32,
    ):
        self.labels, self.template = list(labels), template
        if isinstance(labels, str) or len(set(self.labels)) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError("labels must be two names or more, each of them once")
        if template.count("{}") != 1:
            raise ValueError('template must be a text with one {}, such as "a photo of a {}"')
        self.network = Network("CLIPModel", model, revision, batch_size, device)
        tokenizer = AutoTokenizer.from_pretrained(self.network.folder, trust_remote_code=False)
        texts = tokenizer([template.format(label) for label in self.labels], padding=True, return_tensors="pt")
        with torch.no_grad():
            found = self.network.model.get_text_features(**texts.to(self.network.device)).pooler_output
        self.texts, self.scale = normalize(found, dim=-1), self.network.model.logit_scale.exp()

    def answers(self, images: np.ndarray, cases: pd.DataFrame) -> pd.DataFrame:
        """Judge uint8 images (n, h, w, 3) of cases whose column `label` is one of the labels.

        Columns: label (the likeliest name), probability (of it), wanted (whether it is the case's).
        Raises ValueError, before anything is judged, if a case's label is none of them, or images have another form or
        are not as many as cases.
        """
        checked(images, cases)
        for label in cases.label:
            self.classes(label)

        def logits(pixels: torch.Tensor) -> torch.Tensor:
            features = self.network.model.get_image_features(pixels).pooler_output
            return self.scale * normalize(features, dim=-1) @ self.texts.T

        chance = self.network.chances(images, logits)
        label = np.array(self.labels)[chance.argmax(1)]
        return pd.DataFrame(
            {"label": label, "probability": chance.max(1), "wanted": label == cases.label.to_numpy(object)}
        )

    def classes(self, label: str) -> list[int]:
        """The number of the label, in a list. Raises ValueError if it is none."""
        if label not in self.labels:
            raise ValueError(f"cases: the label {label!r} is none of {', '.join(self.labels)}")
        return [self.labels.index(label)]

    def describe(self) -> dict:
        """What one needs to repeat the judgement: model, revision, sha256 of its weights, the labels and settings."""
        own = {"labels": self.labels, "template": self.template, "threshold": self.threshold}
        return {"judge": "clip", **self.network.describe(), **own}
