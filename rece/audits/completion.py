"""Completion: the original draws the first steps, the victim the rest ("When Are Concepts Erased", NeurIPS 2025,
arXiv 2505.17013).
"""

from diffusers import DiffusionPipeline

from rece import solver
from rece.audits._sampler import asking, painted

HOLDS = "the original too"


def audit(
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    generate: dict,
    shares: tuple[float, ...] = (0.1, 0.2, 0.4),
) -> dict:
    """Level: the share of steps that the original draws; published are 0.1 and 0.2. The sampler is DDIM."""
    steps = generate["steps"]
    for share in shares:
        solver.fraction(share, "shares")
        if share and not round(share * steps):
            raise ValueError(f"shares: {share} of {steps} steps is no step: raise it")
    first, then = (asking(pipe, prompts, generate["guidance"]) for pipe in (original, victim))

    def turns(switch: int):
        def predict(rows: list[int]):
            both = first(rows), then(rows)
            return lambda z, time, step: both[step >= switch](z, time, step)

        return predict

    return {str(share): painted(victim, seeds, generate, turns(round(share * steps))) for share in shares}
