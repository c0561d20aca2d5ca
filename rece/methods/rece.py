"""RECE: UCE, then rounds that derive the embedding which brings the concept back, and erase it (arXiv 2407.12383)."""

from diffusers import DiffusionPipeline

from rece import erasing
from rece.eraser import Eraser


def erase(pipe: DiffusionPipeline, concept: str | list[str], **settings) -> Eraser:
    """`rece.erase` with the given keywords."""
    return erasing.erase(pipe, concept, **settings)
