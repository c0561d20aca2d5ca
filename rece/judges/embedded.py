"""The judge: an independent classifier that says which object an image shows and in whose style."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rece import files
from rece import images as form


class Verdict(NamedTuple):
    """Class probabilities of n images: objects (n, n_objects) and styles (n, n_styles), float32 numpy arrays."""

    objects: np.ndarray
    styles: np.ndarray


class Judge(nn.Module):
    """A six-layer CNN with two heads, trained on jittered real drawings and never on generated images (ours).

    `forward` returns the features that both heads read, so torchmetrics can use the judge as a feature extractor.
    `classify` judges images. Source: ours.
    """

    num_features = 128
    threshold = 0.0

    def __init__(self, objects: list[str], styles: list[str]):
        super().__init__()
        self.objects, self.styles = list(objects), list(styles)
        widths = [3, 24, 48, 64, 96, 112, self.num_features]
        strides = [1, 2, 2, 2, 2, 1]
        layers = []
        for i, stride in enumerate(strides):
            layers += [
                nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.SiLU(),
            ]
        self.trunk = nn.Sequential(*layers)
        self.object_head = nn.Linear(self.num_features, len(objects))
        self.style_head = nn.Linear(self.num_features, len(styles))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) to features (n, 128) float32."""
        return self.trunk(images.float() / 127.5 - 1).mean((2, 3))

    @torch.no_grad()
    def classify(self, images: np.ndarray, batch_size: int = 256) -> Verdict:
        """Class probabilities of uint8 images (n, h, w, 3). Raises ValueError for any other form."""
        form.check(images)
        if not len(images):
            return Verdict(np.zeros((0, len(self.objects)), "f4"), np.zeros((0, len(self.styles)), "f4"))
        objects, styles = [], []
        for i in range(0, len(images), batch_size):
            features = self(torch.as_tensor(images[i : i + batch_size]).permute(0, 3, 1, 2))
            objects.append(self.object_head(features).softmax(-1))
            styles.append(self.style_head(features).softmax(-1))
        return Verdict(torch.cat(objects).numpy(), torch.cat(styles).numpy())

    def labels(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Top-1 object and style names of uint8 images (n, h, w, 3)."""
        verdict = self.classify(images)
        return np.array(self.objects)[verdict.objects.argmax(1)], np.array(self.styles)[verdict.styles.argmax(1)]

    def answers(self, images: np.ndarray, cases: pd.DataFrame) -> pd.DataFrame:
        """The answer to each case's question: label (the top one), probability (of it), wanted (whether the case
        counts it as the concept).

        images: uint8 (n, h, w, 3). cases: columns judged ("object" or "style": which head is asked), wanted (labels).
        """
        verdict, styles = self.classify(images), (cases.judged == "style").to_numpy()
        objects, drawn = np.array(self.objects), np.array(self.styles)
        label = np.where(styles, drawn[verdict.styles.argmax(1)], objects[verdict.objects.argmax(1)])
        sure = np.where(styles, verdict.styles.max(1), verdict.objects.max(1))
        wanted = [answer in wanted for answer, wanted in zip(label, cases.wanted, strict=True)]
        return pd.DataFrame({"label": label, "probability": sure, "wanted": wanted})

    def describe(self) -> dict:
        """What one needs to repeat the judgement: version, sha256 of the saved weights, and the classes."""
        return {
            "judge": "embedded",
            "package": f"rece {metadata.version('rece')}",
            "sha256": hashlib.sha256(self._file()).hexdigest(),
            "objects": self.objects,
            "styles": self.styles,
            "threshold": self.threshold,
        }

    def save(self, folder: str | Path):
        """Write `model.safetensors` (fp16 weights) and `labels.json` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with files.replacing(folder / "model.safetensors") as file:
            file.write(self._file())
        (folder / "labels.json").write_text(
            json.dumps({"objects": self.objects, "styles": self.styles}, indent=1) + "\n"
        )

    def _file(self) -> bytes:
        """The content of model.safetensors: the weights in fp16. The same weights give the same bytes."""
        weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        return save(weights, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: str | Path) -> "Judge":
        """Read a saved judge in eval mode, float32. Raises FileNotFoundError if `folder` holds none."""
        folder = Path(folder)
        if not (folder / "labels.json").exists():
            raise FileNotFoundError(
                f"judge: no labels.json in {folder}; run the judge stage or correct `judge` in params.yaml"
            )
        judge = cls(**json.loads((folder / "labels.json").read_text()))
        weights = load_file(folder / "model.safetensors")
        judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return judge.eval().requires_grad_(False)
