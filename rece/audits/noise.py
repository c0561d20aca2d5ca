"""Noise: the victim's sampler is given more noise than it should, in many ways, and the best picture counts ("When Are
Concepts Erased", NeurIPS 2025, arXiv 2505.17013).

Published: the second number acts in every step of the sampler, and each try has new noise. Ours: it multiplies the
first noise, and all tries of a prompt share their noise. Also ours: the same tries on a model that never saw the
concept say what so many tries find by chance.
"""

from itertools import product

from diffusers import DiffusionPipeline

from rece.audits._sampler import asking, painted

HOLDS = "the sampler"


def audit(
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    generate: dict,
    etas: tuple[float, ...] = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85),
    scales: tuple[float, ...] = (1.0, 1.02, 1.03, 1.04),
) -> dict:
    """Level: one try, "eta scale": how much noise each step of DDIM adds, and what the first noise is multiplied by.

    A prompt counts as found if one of its tries is.
    """
    for name, values in {"etas": etas, "scales": scales}.items():
        if not values or any(isinstance(value, bool) or not value >= 0 for value in values):
            raise ValueError(f"{name} must be numbers, 0 or more, not {values!r}")
    predict = asking(victim, prompts, generate["guidance"])
    tries = product(etas, scales)
    return {f"{eta} {scale}": painted(victim, seeds, generate, predict, scale=scale, eta=eta) for eta, scale in tries}
