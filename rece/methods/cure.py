"""CURE: the concept's subspace is taken out of the text, but for what the preserved one shares with it (Biswas et al.,
NeurIPS 2025, arXiv 2505.12677).

Its repository withholds the code that unlearns. alpha is that of NLCE (arXiv 2603.25994), which begins with the same
edit. Of a model that reads a pooled embedding too, that stays as it is.
"""

import torch
from diffusers import DiffusionPipeline

from rece import layers, solver, texts
from rece.eraser import Eraser, origin
from rece.methods._tokens import expanded, words


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    alpha: float = 100.0,
    progress: bool = True,
) -> Eraser:
    """M = I - F (I - R): F and R weigh the singular directions of the concepts' and of the preserved texts' tokens.

    A direction's weight is alpha r / ((alpha - 1) r + 1), with r its share of all squared singular values. target is
    not used. Raises ValueError naming the parameter.
    """
    concepts = texts.concepts_of(concept)
    kept = texts.listed(preserve or [], "preserve")
    solver.positive(alpha, "alpha")
    device = layers.gram(pipe).device
    F = expanded(words(pipe, concepts).to(device), alpha)
    R = expanded(words(pipe, kept).to(device), alpha) if kept else torch.zeros_like(F)
    eye = torch.eye(len(F)).to(F)
    provenance = {**origin(pipe), "method": "cure", "concepts": concepts, "preserve": preserve, "alpha": alpha}
    return Eraser(eye - F @ (eye - R), provenance)
