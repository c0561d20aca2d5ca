"""The judge: an independent classifier that says which object an image shows and in whose style."""

import hashlib
import json
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rece import files
from rece import images as form
from rece.judges import checked


class Verdict(NamedTuple):
    """Class probabilities of n images: objects (n, n_objects) and styles (n, n_styles), float32 numpy arrays."""

    objects: np.ndarray
    styles: np.ndarray


class Judge(nn.Module):
    """A six-layer CNN with two heads, trained on jittered real drawings and never on generated images (ours).

    `forward` returns the features that both heads read, so torchmetrics can use the judge as a feature extractor.
    `classify` judges images.
    """

    num_features = 128
    threshold = 0.0

    def __init__(self, objects: list[str], styles: list[str]):
        super().__init__()
        self.objects, self.styles = list(objects), list(styles)
        widths, layers = [3, 24, 48, 64, 96, 112, self.num_features], []
        for (before, after), stride in zip(pairwise(widths), [1, 2, 2, 2, 2, 1], strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.object_head = nn.Linear(self.num_features, len(objects))
        self.style_head = nn.Linear(self.num_features, len(styles))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) to features (n, 128) float32."""
        images = images.contiguous()  # the order of the bytes in memory decides how convolutions round
        return self.trunk(images.float() / 127.5 - 1).mean((2, 3))

    @torch.no_grad()
    def classify(self, images: np.ndarray, batch_size: int = 256) -> Verdict:
        """Class probabilities of uint8 images (n, h, w, 3). Raises ValueError for any other form."""
        form.check(images)
        features = [self(batch.permute(0, 3, 1, 2)) for batch in torch.as_tensor(images).split(batch_size)]
        heads = (self.object_head, self.style_head)
        return Verdict(*(torch.cat([head(each).softmax(-1) for each in features]).numpy() for head in heads))

    def labels(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Top-1 object and style names of uint8 images (n, h, w, 3)."""
        verdict = self.classify(images)
        return np.array(self.objects)[verdict.objects.argmax(1)], np.array(self.styles)[verdict.styles.argmax(1)]

    def answers(self, images: np.ndarray, cases: pd.DataFrame) -> pd.DataFrame:
        """The answer to each case's question: label (the top one), probability (of it), wanted (whether the case
        counts it as the concept).

        images: uint8 (n, h, w, 3). cases: columns judged ("object" or "style": which head is asked), wanted (labels).
        Raises ValueError if there is not one case per image, one at least.
        """
        checked(images, cases)
        verdict, styles = self.classify(images), (cases.judged == "style").to_numpy()
        objects, drawn = np.array(self.objects), np.array(self.styles)
        label = np.where(styles, drawn[verdict.styles.argmax(1)], objects[verdict.objects.argmax(1)])
        sure = np.where(styles, verdict.styles.max(1), verdict.objects.max(1))
        wanted = [answer in wanted for answer, wanted in zip(label, cases.wanted, strict=True)]
        return pd.DataFrame({"label": label, "probability": sure, "wanted": wanted})

    def describe(self) -> dict:
        """What one needs to repeat the judgement: version, sha256 of the saved weights, and the classes."""
        package, sha256 = f"rece {metadata.version('rece')}", hashlib.sha256(self._file()).hexdigest()
        labels = {"objects": self.objects, "styles": self.styles}
        return {"judge": "embedded", "package": package, "sha256": sha256, **labels, "threshold": self.threshold}

    def save(self, folder: str | Path):
        """Write `model.safetensors` (fp16 weights) and `labels.json` into `folder`."""
        with files.replacing(Path(folder, "model.safetensors")) as file:
            file.write(self._file())
        labels = {"objects": self.objects, "styles": self.styles}
        Path(folder, "labels.json").write_text(json.dumps(labels, indent=1) + "\n")

    def _file(self) -> bytes:
        """The content of model.safetensors: the weights in fp16. The same weights give the same bytes."""
        weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        return save(weights, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: str | Path) -> "Judge":
        """Read a saved judge in eval mode, float32. Raises FileNotFoundError if `folder` holds none."""
        labels = Path(folder, "labels.json")
        if not labels.exists():
            raise FileNotFoundError(
                f"judge: no labels.json in {folder}; run the judge stage or correct `judge` in params.yaml"
            )
        judge = cls(**json.loads(labels.read_text()))
        judge.load_state_dict(load_file(Path(folder, "model.safetensors")))
        return judge.eval().requires_grad_(False)
