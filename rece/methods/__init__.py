"""Erasure methods, one file each: `erase(pipe, concept, **settings)` returns an edit, see `rece.edits`.

A new file in this folder is a new method, unless its name begins with an underscore. Every method takes target,
preserve and progress as `rece.erase` does, and its own numbers as further keywords, with the published ones as their
defaults.
"""

from importlib import import_module
from pkgutil import iter_modules

from diffusers import DiffusionPipeline

from rece.edits import Edit


def names() -> list[str]:
    """The methods there are, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def run(name: str, pipe: DiffusionPipeline, concept: str | list[str], **settings) -> Edit:
    """Compute the edit that erases `concept` by the named method; the pipeline stays as it is.

    Raises ValueError for an unknown name, and what the method raises.
    """
    if name not in names():
        raise ValueError(f"there is no method {name!r}: choose one of {', '.join(names())}")
    return import_module(f"{__name__}.{name}").erase(pipe, concept, **settings)
