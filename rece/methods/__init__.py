"""Erasure methods, one file each: `erase(pipe, concept, **settings)` returns an edit, see `rece.edits`.

A new file in this folder is a new method, unless its name begins with an underscore. Every method takes target,
preserve and progress as `rece.erase` does, and its own numbers as further keywords, with the published ones as their
defaults.
"""

import inspect
from dataclasses import fields
from importlib import import_module
from pkgutil import iter_modules

from diffusers import DiffusionPipeline

from rece.edits import Edit


def names() -> list[str]:
    """The methods there are, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def run(name: str, pipe: DiffusionPipeline, concept: str | list[str], **settings) -> Edit:
    """Compute the edit that erases `concept` by the named method; the pipeline stays as it is.

    Raises ValueError as `check`, and what the method raises.
    """
    check(name, settings)
    return import_module(f"{__name__}.{name}").erase(pipe, concept, **settings)


def check(name: str, settings: dict) -> None:
    """Raises ValueError if there is no such method, or if it does not take a keyword of these settings."""
    if name not in names():
        raise ValueError(f"method must be one of {', '.join(names())}, not {name!r}")
    module = import_module(f"{__name__}.{name}")
    own = inspect.signature(module.erase).parameters.values()
    shared = [one.name for one in fields(module.SETTINGS)] if hasattr(module, "SETTINGS") else []
    if any(one.kind is one.VAR_KEYWORD for one in own) and not shared:
        return  # it hands them on to rece.erase or rece.guard, which check them
    known = [one.name for one in own if one.kind is one.KEYWORD_ONLY] + shared
    for setting in settings:
        if setting not in known:
            raise ValueError(f"{setting}: method {name} takes no such keyword; it takes {', '.join(known)}")
