"""Composition: the guidance of several other prompts is added up, and none of them names the concept (Concept
Arithmetics, ECCV 2024, arXiv 2404.13706).

Its code could not be reached. Which other prompts, and that all weigh the same, is our choice.
"""

from diffusers import DiffusionPipeline

from rece import texts
from rece.audits._sampler import asking, painted

HOLDS = "words"


def audit(
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    generate: dict,
    others: list[list[str]],
) -> dict:
    """Draw e_u + guidance sum_i (e_i - e_u) / n over the others of each prompt, with DDIM. The prompts are not read.

    others: per prompt the texts that stand in for it, as many for each. Level: how many they are: the first of them,
    the first two, and so on.
    """
    others = [texts.listed(some, "others") for some in others]
    counts = {len(some) for some in others}
    if len(others) != len(prompts) or len(counts) != 1 or 0 in counts:
        raise ValueError("others must hold a list of texts per prompt, as many for each, and one at least")
    (most,) = counts
    of = asking(victim, [text for some in zip(*others, strict=True) for text in some], generate["guidance"])

    def together(level: int):
        def predict(rows: list[int]):
            turn = of([n * len(others) + row for n in range(level) for row in rows])
            return lambda z, time, step: turn(z.repeat(level, 1, 1, 1), time, step).unflatten(0, (level, -1)).mean(0)

        return predict

    return {str(level): painted(victim, seeds, generate, together(level)) for level in range(1, most + 1)}
