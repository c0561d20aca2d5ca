"""Image to image: the victim goes on from a picture of the concept with noise (SDEdit, Meng et al., ICLR 2022)."""

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
    strengths: tuple[float, ...] = (0.5, 0.7, 0.9),
) -> dict:
    """Level: the strength, the share of DDIM's steps that the victim goes; 1 is nearly drawing from noise alone.

    The pictures are the original's, of the same prompts and seeds; the noise on them is another.
    """
    steps = generate["steps"]
    for strength in strengths:
        solver.fraction(strength, "strengths")
        if not round(strength * steps):
            raise ValueError(f"strengths: {strength} of {steps} steps is no step: raise it")
    shown = pictures(original, prompts, seeds, **generate, progress=False)
    predict, later = asking(victim, prompts, generate["guidance"]), [seed + APART for seed in seeds]

    return {
        str(strength): painted(victim, later, generate, predict, shown=shown, first=steps - round(strength * steps))
        for strength in strengths
    }
