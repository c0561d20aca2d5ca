"""Numbers about images: drift from the original's images, FID and KID."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from rece import images as form


class Drift(NamedTuple):
    """How far n images are from the original model's, pixel values scaled to 0..1.

    mean_abs: mean absolute difference of all values. mse: (n,) mean squared difference of each image.
    """

    mean_abs: float
    mse: np.ndarray


def drift(images: np.ndarray, original: np.ndarray) -> Drift:
    """Compare images with the original model's of the same prompts and seeds, both uint8 (n, h, w, 3).

    Raises ValueError if the two are of another form, or of different shapes.
    """
    _check(images, "images")
    _check(original, "original")
    if images.shape != original.shape:
        raise ValueError(f"images and original must be of one shape, not {images.shape} and {original.shape}")
    mean_abs, mse = 0.0, np.empty(len(images))
    for i, (a, b) in enumerate(zip(images, original, strict=True)):
        difference = (a.astype(np.float64) - b) / 255
        mean_abs += np.abs(difference).mean() / len(images)
        mse[i] = np.square(difference).mean()
    return Drift(float(mean_abs), mse)


def fid(images: np.ndarray, original: np.ndarray, features: nn.Module, batch_size: int = 256) -> float:
    """Fréchet distance between two sets of uint8 images (n, h, w, 3) in the space of `features`; 0 is equal.

    features: a module from uint8 tensors (n, 3, h, w) to (n, d), on the CPU, for instance a judge; say whose features
    they are wherever the number is shown, since it compares only with numbers from the same features. The sets may
    differ in size; with fewer images than d the number is biased upwards.
    Raises ValueError if a set has another form or fewer than two images. Source: torchmetrics.
    """
    return float(_filled(FrechetInceptionDistance(feature=features), images, original, batch_size).compute())


def kid(images: np.ndarray, original: np.ndarray, features: nn.Module, batch_size: int = 256) -> float:
    """Kernel distance (squared MMD, cubic kernel), as `fid` otherwise; unbiased, so about 0, or below, if equal.

    Computed once over the whole sets (of the larger one, as many as the smaller holds, drawn with a fixed seed)
    instead of over random subsets. Source: torchmetrics.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*save all extracted features.*")
        torch.manual_seed(0)
        smaller = max(1, min(len(images), len(original)))
        metric = KernelInceptionDistance(feature=features, subsets=1, subset_size=smaller)
        return float(_filled(metric, images, original, batch_size).compute()[0])


def _filled(metric, images: np.ndarray, original: np.ndarray, batch_size: int):
    for name, batch, real in (("images", images, False), ("original", original, True)):
        _check(batch, name)
        if len(batch) < 2:
            raise ValueError(f"{name} must hold two images or more, not {len(batch)}")
        for start in range(0, len(batch), batch_size):
            metric.update(torch.as_tensor(batch[start : start + batch_size]).permute(0, 3, 1, 2), real=real)
    return metric


def _check(images: np.ndarray, name: str) -> None:
    form.check(images, name)
    if not len(images):
        raise ValueError(f"{name} is empty")
