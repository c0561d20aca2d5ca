"""UCE: one closed-form edit of every layer that reads the prompt (arXiv 2308.14761)."""

from diffusers import DiffusionPipeline

from rece import erasing
from rece.eraser import Eraser


def erase(pipe: DiffusionPipeline, concept: str | list[str], **settings) -> Eraser:
    """`rece.erase` with the given keywords but rounds=0, so that RECE's settings give its start."""
    return erasing.erase(pipe, concept, **{**settings, "rounds": 0})
