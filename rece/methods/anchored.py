"""RECE with anchored rounds: each one solved again from the original weights with all rows so far (ours)."""

from diffusers import DiffusionPipeline

from rece import erasing
from rece.eraser import Eraser


def erase(pipe: DiffusionPipeline, concept: str | list[str], **settings) -> Eraser:
    """`rece.erase` with the given keywords and anchored=True."""
    return erasing.erase(pipe, concept, **{**settings, "anchored": True})
