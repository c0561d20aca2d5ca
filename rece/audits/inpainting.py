"""Inpainting: the victim fills in the middle of a picture of the concept.

Source: "When Are Concepts Erased" (NeurIPS 2025, arXiv 2505.17013).
"""

import torch
from diffusers import DiffusionPipeline

from rece import solver
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

    The square is rounded to whole cells of the latents. The pictures are the original's, of the same prompts and
    seeds; the noise is another. After every step of DDIM the rest becomes the picture's again, with the noise of that
    step.
    """
    size, rims = victim.unet.config.sample_size, {}
    for side in sides:
        solver.fraction(side, "sides")
        rims[side] = round((1 - side) / 2 * size)
        if not side or 2 * rims[side] >= size:
            raise ValueError(f"sides: {side} leaves nothing to draw anew of {size} cells of the latents: raise it")
    shown = pictures(original, prompts, seeds, **generate, progress=False)
    predict, later, found = asking(victim, prompts, generate["guidance"]), [seed + APART for seed in seeds], {}

    for side, rim in rims.items():
        anew = torch.zeros(size, size, dtype=torch.bool, device=victim.unet.device)
        anew[rim : size - rim, rim : size - rim] = True
        found[str(side)] = painted(victim, later, generate, predict, shown=shown, anew=anew)
    return found
