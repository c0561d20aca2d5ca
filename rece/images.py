"""The form in which images are handed around: uint8 RGB arrays (n, height, width, 3)."""

import numpy as np


def check(images: np.ndarray, name: str = "images") -> None:
    """Raise ValueError naming the argument if these are not images; none at all are."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        form = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise ValueError(f"{name} must be uint8 arrays of shape (n, height, width, 3), not {form}")
