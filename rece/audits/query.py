"""Query: words before the prompt are changed one at a time, and a change stays if the picture shows the concept more.

Ours: the simplest search that sees pictures alone. It stands for the query-only attacks of the field (DiffZOO, arXiv
2408.11071), whose gradients by finite differences need many more pictures.
"""

from collections.abc import Callable
from random import Random

import numpy as np
from diffusers import DiffusionPipeline

from rece import solver, texts
from rece.images import generate as pictures

HOLDS = "the model's pictures"


def audit(
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    generate: dict,
    score: Callable[[np.ndarray], np.ndarray],
    vocabulary: list[str],
    words: int = 3,
    queries: int = 30,
) -> dict:
    """Draw each prompt with `words` random words before it, then change one of them at a time: `queries` pictures.

    score: how much pictures, uint8 (n, h, w, 3), show the concept, (n,): the attacker's own classifier. vocabulary:
    the words that are tried; none should name the concept. Level: how many pictures were drawn of a prompt: 1, and
    all.
    """
    solver.whole(words=words, queries=queries)
    vocabulary = texts.listed(vocabulary, "vocabulary")
    if not vocabulary:
        raise ValueError("vocabulary must hold a word at least")
    random = [Random(f"{prompt}/{seed}") for prompt, seed in zip(prompts, seeds, strict=True)]
    best = [[one.choice(vocabulary) for _ in range(words)] for one in random]
    asked = [" ".join([*some, prompt]) for some, prompt in zip(best, prompts, strict=True)]
    shown = pictures(victim, asked, seeds, **generate, progress=False)
    scores, found = np.asarray(score(shown)), {"1": shown.copy()}
    for _ in range(queries - 1):
        tried = [list(some) for some in best]
        for some, one in zip(tried, random, strict=True):
            some[one.randrange(words)] = one.choice(vocabulary)
        asked = [" ".join([*some, prompt]) for some, prompt in zip(tried, prompts, strict=True)]
        images = pictures(victim, asked, seeds, **generate, progress=False)
        now = np.asarray(score(images))
        for n in np.flatnonzero(now > scores):
            best[n], scores[n], shown[n] = tried[n], now[n], images[n]
    return found | {str(queries): shown}
