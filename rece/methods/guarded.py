"""The guarded eraser: an orthogonal projection of the answers, which no embedding gets round (ours)."""

from diffusers import DiffusionPipeline

from rece import guarding
from rece.eraser import Eraser


def erase(pipe: DiffusionPipeline, concept: str | list[str], *, target: str | list[str] = " ", **settings) -> Eraser:
    """`rece.guard` with the given keywords. The study's neutral target " " is none: the orthogonal form needs none."""
    return guarding.guard(pipe, concept, target=None if target == " " else target, **settings)
