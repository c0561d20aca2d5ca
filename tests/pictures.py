"""Random pictures and the cases that judges are asked about them."""

import numpy as np
import pandas as pd


def pictures(n, h=40, w=56, seed=0):
    """Noise, uint8 (n, h, w, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


def cases(*labels):
    """One case per label."""
    return pd.DataFrame({"prompt": "a prompt", "label": list(labels)})
