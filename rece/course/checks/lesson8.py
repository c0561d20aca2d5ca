"""Checks of lesson 8: a method and an attack of one's own, each in a file."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from rece import course
from rece.attacks import Attempts
from rece.course.checks import check
from rece.edits import Edit
from rece.study import config


@check
def method(file: str) -> tuple[bool, str]:
    """method(file): `erase` returns an edit, leaves the pipeline as it is, and repeats itself."""
    erase = _function(file, "erase")
    if not callable(erase):
        return False, erase
    lab = _lab()
    before = _state(lab.pipe)
    made = [erase(lab.pipe, "horse", target=" ", preserve=["cow"], progress=False) for _ in range(2)]
    if not isinstance(made[0], Edit):
        return False, f"erase returned {type(made[0]).__name__}, and an edit is needed: an Eraser, Weights or Hooks"
    if not _same(before, _state(lab.pipe)):
        return False, "the pipeline is changed after erase: compute the edit, and leave it to others to apply it"
    first, second = (one.tensors() for one in made)
    if not _same(first, second):
        return False, "two runs give two edits: draw what is random from a generator with a seed"
    with made[0].on(lab.pipe):
        if _same(before, _state(lab.pipe)) and made[0].kind != "hooks":
            return False, "with the edit applied all weights are as before: it erases nothing"
    if not _same(before, _state(lab.pipe)):
        return False, "the edit does not take back all that it changed"
    for nothing in ("", []):
        try:
            erase(lab.pipe, nothing, target=" ", preserve=None, progress=False)
        except (ValueError, TypeError):
            continue
        return False, f"erase takes the concept {nothing!r}: refuse it with a ValueError that says so"
    return True, "it returns an edit, repeats itself to the bit, is undone to the bit, and refuses an empty concept"


@check
def attack(file: str) -> tuple[bool, str]:
    """attack(file): `attack` returns an attempt per prompt, repeats itself, and the original understands it."""
    own = _function(file, "attack")
    if not callable(own):
        return False, own
    lab = _lab()
    prompts, seeds = lab.prompts("horse", 10), list(range(10))
    concept = [{"name": "horse", "words": lab.world.words["horse"], "held_out": lab.world.held_out["horse"]}]
    made = [own(lab.pipe, list(prompts), list(seeds), original=lab.pipe, concept=concept) for _ in range(2)]
    first, second = made
    if not isinstance(first, Attempts):
        return False, f"attack returned {type(first).__name__}, and Attempts are needed, see rece/attacks/__init__.py"
    if len(first) != len(prompts):
        return False, f"{len(prompts)} prompts were given, and {len(first)} attempts came back: one each"
    same = first.prompts == second.prompts and first.seeds == second.seeds
    if not same or (first.embeds is not None and not torch.equal(first.embeds, second.embeds)):
        return False, "two runs give two attempts: draw what is random from a generator with a seed"
    asked = lab.ask("horse", prompts=first.prompts, embeds=first.embeds)
    if asked.rate < 0.5:
        return (
            False,
            f"the original draws {asked.k} horses of {asked.n}: an attack cannot bring back what it does not ask for",
        )
    return True, f"one attempt per prompt, the same twice, and the original understands it: {asked}"


_lab = cache(course.open)  # for both checks


def _function(file: str, name: str):
    """The function of a file, or a sentence that says why there is none."""
    path = next((one for one in (Path(file), config.root() / "notebooks/course" / file) if one.is_file()), None)
    if path is None:
        return f"there is no file {file}"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name, f"{file} has no function {name}")


def _state(pipe) -> dict:
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {f"{p}.{n}": one.detach().clone() for p, part in parts.items() for n, one in part.named_parameters()}


def _same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
