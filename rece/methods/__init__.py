"""Erasure methods, one file each: `erase(pipe, concept, **settings)` returns an edit, see `rece.edits`.

A new file in this folder is a new method, unless its name begins with an underscore. Every method takes target,
preserve and progress as `rece.erase` does, and its own numbers as further keywords, with the published ones as their
defaults.

Some names in a method's file have a meaning. SETTINGS: the defaults of a method that trains, see `_training.Training`.
Hook: the module that acts while the model runs, for an edit that is `Hooks`. PART: the part of the pipeline that a
Hook acts in, by default the model. TEMPLATES: the prompts that concepts stand in, each with {} for the concept.
"""

import inspect
from dataclasses import fields
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from diffusers import DiffusionPipeline

from rece import edits, texts
from rece.edits import Edit


def names() -> list[str]:
    """The methods there are, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def run(name: str, pipe: DiffusionPipeline, concept: str | list[str], **settings) -> Edit:
    """Compute the edit that erases `concept` by the named method; the pipeline stays as it is.

    Raises ValueError as `check`, if the pipeline carries an edit, or for texts that `texts.check_erased` refuses; and
    what the method raises.
    """
    check(name, settings)
    module = import_module(f"{__name__}.{name}")
    edits.check_unedited(pipe)
    if not _hands_on(module):
        concepts = texts.concepts_of(concept)
        targets = texts.targets_of(settings.get("target", " "), concepts)
        texts.check_erased(pipe, concepts, targets, texts.listed(settings.get("preserve") or [], "preserve"))
    return module.erase(pipe, concept, **settings)


def check(name: str, settings: dict) -> None:
    """Raises ValueError if there is no such method, or if it does not take a keyword of these settings."""
    if name not in names():
        raise ValueError(f"method must be one of {', '.join(names())}, not {name!r}")
    module = import_module(f"{__name__}.{name}")
    if _hands_on(module):
        return
    own = inspect.signature(module.erase).parameters.values()
    shared = [one.name for one in fields(module.SETTINGS)] if hasattr(module, "SETTINGS") else []
    known = [one.name for one in own if one.kind is one.KEYWORD_ONLY] + shared
    for setting in settings:
        if setting not in known:
            raise ValueError(f"{setting}: method {name} takes no such keyword; it takes {', '.join(known)}")


def _hands_on(module: ModuleType) -> bool:
    """Whether a method hands its settings on to rece.erase or rece.guard, which check them."""
    own = inspect.signature(module.erase).parameters.values()
    return any(one.kind is one.VAR_KEYWORD for one in own) and not hasattr(module, "SETTINGS")
