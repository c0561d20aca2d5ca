"""What can be said of erasers without drawing: certificates after each round, and how many directions they touch."""

import warnings

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline

from rece.certificate import Certificate, certify
from rece.emoji.world import World
from rece.eraser import Eraser
from rece.study import plan


def certificates(pipe: DiffusionPipeline, erasers: dict[str, Eraser], world: World, concept: dict) -> pd.DataFrame:
    """What can be proven of each method after each of its rounds, one row per erased text.

    Columns: method, round, the columns of the last word token in `Certificate.table`, and end_distance and end_target
    of the end token. Compared with all other concepts of its kind and with all its synonyms.
    """
    known = {"target": concept["target"], "others": plan.innocents(world, concept)}
    known["synonyms"] = plan.synonyms(world, concept)
    try:
        plain = certify(pipe, None, concept["erase"], **known)
    except TypeError as error:
        warnings.warn(f"no certificate: {error}", stacklevel=2)
        return pd.DataFrame(columns=["method", "round", "concept", "distance", "edited", "target"])
    parts = [_by_text(plain, plan.ORIGINAL, 0)]
    for method, eraser in erasers.items():
        for step, map in enumerate(eraser.history):
            found = certify(pipe, Eraser(map), concept["erase"], target=concept["target"])
            found.table[["other", "synonym", "nearest"]] = plain.table[["other", "synonym", "nearest"]]
            parts.append(_by_text(found, method, step))
    return pd.concat(parts, ignore_index=True)


def _by_text(certificate: Certificate, method: str, step: int) -> pd.DataFrame:
    words = certificate.table[certificate.table["last"]].reset_index(drop=True)
    ends = certificate.table[certificate.table.kind == "end"].reset_index(drop=True)
    words = words.drop(columns=["kind", "last", "position", "moved"])
    words = words.assign(end_distance=ends.distance, end_target=ends.target)
    words.insert(0, "method", method)
    words.insert(1, "round", step)
    return words


def change(eraser: Eraser) -> np.ndarray:
    """Descending singular values of the eraser's map − I, (d,)."""
    return torch.linalg.svdvals(eraser.map - torch.eye(len(eraser.map), dtype=eraser.map.dtype)).numpy()
