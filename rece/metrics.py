"""Numbers about images: success rates with intervals, drift from the original's images, FID and KID."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest, spearmanr
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from rece import images as form


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval (low, high) of a rate of `successes` in `n` independent trials.

    Raises ValueError if n < 1 or successes is not a whole number in 0..n.
    """
    if int(n) != n or n < 1:
        raise ValueError(f"n must be a whole number, 1 or more, not {n}: a rate of nothing has no interval")
    if int(successes) != successes or not 0 <= successes <= n:
        raise ValueError(f"successes must be a whole number from 0 to n = {n}, not {successes}")
    low, high = binomtest(int(successes), int(n)).proportion_ci(method="wilson")
    rate = successes / n  # rounding may put an end of the interval beyond 0, 1 or the rate by one bit
    return max(0.0, min(float(low), rate)), min(1.0, max(float(high), rate))


def success(hits: Sequence[bool], **columns) -> dict:
    """A row of a success table: the given columns, then n, successes, rate, low, high (95 % Wilson).

    Raises ValueError if hits is empty or not a list of truth values.
    """
    hits = np.asarray(hits)
    if hits.ndim != 1 or not len(hits) or hits.dtype != bool:
        raise ValueError(f"hits must be one truth value per attempt, not {hits.dtype} of shape {hits.shape}")
    n, successes = len(hits), int(hits.sum())
    low, high = wilson(successes, n)
    return {**columns, "n": n, "successes": successes, "rate": successes / n, "low": low, "high": high}


def rank_correlation(x: Sequence[float], y: Sequence[float], repeats: int = 2000, seed: int = 0) -> dict:
    """Spearman's rank correlation of two columns and its 95 % bootstrap interval: rho, low, high, n.

    The points are resampled `repeats` times with a fixed seed (percentile interval); resamples in which a column does
    not vary are left out. Raises ValueError if there are fewer than four points or a column does not vary.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) != len(y) or len(x) < 4 or not np.isfinite([x, y]).all() or min(np.ptp(x), np.ptp(y)) == 0:
        raise ValueError("x and y must be finite, of one length of 4 or more, and vary")
    random, found = np.random.default_rng(seed), []
    for _ in range(repeats):
        pick = random.integers(len(x), size=len(x))
        if np.ptp(x[pick]) > 0 and np.ptp(y[pick]) > 0:
            found.append(spearmanr(x[pick], y[pick]).statistic)
    low, high = np.quantile(found, [0.025, 0.975])
    return {"rho": float(spearmanr(x, y).statistic), "low": float(low), "high": float(high), "n": len(x)}


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
