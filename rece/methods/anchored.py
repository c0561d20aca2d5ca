"""RECE with anchored rounds: each one solved again from the original weights with all rows so far (ours)."""

from diffusers import DiffusionPipeline

from rece import eraser


def erase(pipe: DiffusionPipeline, concept: str | list[str], **settings) -> eraser.Eraser:
    """`rece.erase` with the given keywords and anchored=True."""
    return eraser.erase(pipe, concept, **{**settings, "anchored": True})
