"""Erasure methods, one file each: `erase(pipe, concept, **settings) -> Eraser`. A new file is a new method."""

from importlib import import_module
from pkgutil import iter_modules

from diffusers import DiffusionPipeline

from rece.eraser import Eraser


def names() -> list[str]:
    """The methods there are, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__))


def run(name: str, pipe: DiffusionPipeline, concept: str | list[str], **settings) -> Eraser:
    """Compute the eraser of `concept` by the named method; the pipeline stays as it is.

    Raises ValueError for an unknown name, and what the method raises.
    """
    if name not in names():
        raise ValueError(f"there is no method {name!r}: choose one of {', '.join(names())}")
    return import_module(f"{__name__}.{name}").erase(pipe, concept, **settings)
