"""Inpainting: the victim fills in the middle of a picture of the concept.

Source: "When Are Concepts Erased" (NeurIPS 2025).
"""

import torch
from diffusers import DiffusionPipeline

from rece.audits._sampler import APART, asking, painted
from rece.images import generate as pictures

HOLDS = "a picture of the concept"


def audit(
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    generate: dict,
    sides: tuple[float, ...] = (0.5, 0.75),
) -> dict:
    """Level: the side of the square in the middle that is drawn anew, as a share of the picture's. Published is 0.5.

    The pictures are the original's, of the same prompts and seeds; the noise is another. After every step of DDIM the
    rest becomes the picture's again, with the noise of that step.
    """
    for side in sides:
        if isinstance(side, bool) or not 0 < side <= 1:
            raise ValueError(f"sides must be numbers above 0, up to 1, not {side!r}")
    shown = pictures(original, prompts, seeds, **generate, progress=False)
    predict, later, found = asking(victim, prompts, generate["guidance"]), [seed + APART for seed in seeds], {}

    for side in sides:
        size = victim.unet.config.sample_size
        rim = round((1 - side) / 2 * size)
        anew = torch.zeros(size, size, dtype=torch.bool, device=victim.unet.device)
        anew[rim : size - rim, rim : size - rim] = True
        found[str(side)] = painted(victim, later, generate, predict, shown=shown, anew=anew)
    return found
