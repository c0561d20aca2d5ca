"""Attacks, one file each. A new file in this folder is a new attack, unless its name begins with an underscore.

Each file has

ACCESS: what the attacker must hold. "none": nothing of the erased model. "grey": a text encoder that the erased model
    shares with the original, or a way to feed embeddings to the erased model; these attacks read the original's text
    encoder only. "black": images of the erased model. "white": all its weights.
NEEDS: a tuple, what the attack itself reads of the victim: "images", "text encoder", "weights" and "map" (the map of
    its eraser). It is empty if the attack never looks at the victim: then one run serves all victims. Only whether it
    is empty decides anything; the words are for readers.
attack(victim, prompts, seeds, *, original, concept, **budget) -> Attempts
    victim: the pipeline with the edit applied. original: an untouched pipeline.
    prompts: n texts that name the concept. seeds: n numbers, the seeds of the images.
    concept: a list of dicts, one or more, with "name", "words" (what captions call it) and, for attacks that need
    them, "held_out" (other words for it) and "pairs" (texts with and without it).
    budget: what `budget_items` lists.
and, where it needs them,

applies(victim) -> str: "" if the attack can be run on the victim, else one sentence that says why not.
SETTINGS: the defaults of further keywords, an instance of a dataclass. `attack` then takes its fields as keywords.

Call attacks by `run`, which checks what all of them have in common. A bad budget raises ValueError that names the
parameter, before anything is drawn or searched. The models' parameters are frozen inside and restored after. Prompts
found by a search are texts whose tokenisation is exactly the ids that were attacked, or a RuntimeError says that this
cannot be. What is found for a prompt depends on it, its seed and `repeat`, not on other prompts; see `inversion` for
the exception.
"""

import inspect
import json
import time
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rece import files


@dataclass
class Attempts:
    """What an attack found: n prompts or n embeddings, to be drawn with n seeds.

    prompts: n texts, or None. embeds: (n, positions, d) floats on the CPU, or None. Exactly one of the two is given.
    losses: one list per attempt, its loss over time, as the attack defines it; empty lists if the attack has no loss.
    evaluations: forward passes of the victim's UNet per attempt (of the longest one, if they differ); a gradient
    counts as one. seconds: of the whole attack. attack, access: the attack's name and its ACCESS.
    Raises ValueError if the lengths do not match.
    """

    prompts: list[str] | None
    seeds: list[int]
    embeds: Tensor | None = None
    losses: list[list[float]] = field(default_factory=list)
    evaluations: int = 0
    seconds: float = 0.0
    attack: str = ""
    access: str = ""

    def __post_init__(self):
        if isinstance(self.prompts, str) or isinstance(self.seeds, str):
            raise ValueError("prompts and seeds must be lists, with a text and a number per attempt")
        self.seeds = [int(seed) for seed in self.seeds]
        self.losses = self.losses or [[] for _ in self.seeds]
        if (self.prompts is None) == (self.embeds is None):
            raise ValueError("attempts need either prompts or embeds: give exactly one of them")
        n = len(self.prompts if self.embeds is None else self.embeds)
        if len(self.seeds) != n or len(self.losses) != n:
            raise ValueError(f"{n} attempts need {n} seeds and losses, not {len(self.seeds)} and {len(self.losses)}")
        if self.embeds is not None and not torch.isfinite(self.embeds).all():
            raise ValueError("embeds hold values that are not finite")

    def __len__(self) -> int:
        return len(self.seeds)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: embeds as a tensor, the rest but the seconds as JSON in the metadata.

        Equal attempts give equal bytes. No part of a file is left behind if writing fails.
        """
        rest = {name: value for name, value in vars(self).items() if name not in ("embeds", "seconds")}
        tensors = {} if self.embeds is None else {"embeds": self.embeds.detach().cpu().contiguous()}
        files.write(tensors, path, {"format": "pt", "attempts": json.dumps(rest)})

    @classmethod
    def load(cls, path: str | Path) -> "Attempts":
        """Read a file written by `save`. Raises FileNotFoundError, or ValueError if the file is broken or another
        kind of file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file of attempts at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                rest = json.loads((file.metadata() or {})["attempts"])
                return cls(**rest, embeds=file.get_tensor("embeds") if "embeds" in file.keys() else None)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a whole file of attempts: {error}") from error


def names() -> list[str]:
    """The names of all attacks, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def _module(name: str) -> ModuleType:
    if name not in names():
        raise ValueError(f"there is no attack {name!r}: choose one of {', '.join(names())}")
    return import_module(f"{__name__}.{name}")


def access(name: str) -> str:
    """The ACCESS of the named attack. Raises ValueError for an unknown name."""
    return _module(name).ACCESS


def needs(name: str) -> tuple[str, ...]:
    """The NEEDS of the named attack; empty if it never looks at the victim. Raises ValueError for an unknown name."""
    return _module(name).NEEDS


def applies(name: str, victim: DiffusionPipeline) -> str:
    """An empty text if the named attack can be run on the victim, else why not in one sentence; raises as `access`."""
    return getattr(_module(name), "applies", lambda victim: "")(victim)


def budget_items(name: str) -> list[str]:
    """The keywords of the named attack's budget: its own, then those of its SETTINGS. Raises as `access`."""
    module = _module(name)
    own = [one.name for one in inspect.signature(module.attack).parameters.values() if one.kind is one.KEYWORD_ONLY]
    shared = [one.name for one in fields(module.SETTINGS)] if hasattr(module, "SETTINGS") else []
    return [item for item in own + shared if item not in ("original", "concept")]


def run(
    name: str, victim, prompts: list[str], seeds: list[int], *, original, concept: dict | list[dict], **budget
) -> Attempts:
    """Run the named attack and time it. For the arguments see the top of this file; concept may be a single dict.

    Raises ValueError for an unknown name, if there is not one seed per prompt, or if the attack does not apply to the
    victim, or to the original if it looks at that alone; TypeError for an unknown budget item; and what it raises.
    """
    known = budget_items(name)
    if isinstance(prompts, str) or not prompts or len(prompts) != len(seeds):
        raise ValueError("prompts and seeds must be lists of one length, one prompt or more")
    for item in budget:
        if item not in known:
            raise TypeError(f"attack {name!r} has no budget item {item!r}: {', '.join(known) or 'it takes none'}")
    reason = applies(name, victim if needs(name) else original)
    if reason:
        raise ValueError(reason)
    members = [concept] if isinstance(concept, dict) else concept
    start = time.perf_counter()
    found = _module(name).attack(victim, list(prompts), list(seeds), original=original, concept=members, **budget)
    found.attack, found.access, found.seconds = name, access(name), time.perf_counter() - start
    return found
