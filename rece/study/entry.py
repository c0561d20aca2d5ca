"""Entries: an outside eraser or attack beside what the arena measured, on the same groups, prompts, seeds and judge.

An entry is a file or a folder: an eraser of any kind that `Edit.save` wrote; a LoRA; weights of the UNet by name, as
ESD and UCE ship them; a folder with a UNet or a text encoder; a Python file with one function `erase`, as those of
`rece.methods`, or `attack`, as those of `rece.attacks`. A Python file is run, with all that it can do: read it first.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from rece import attacks, methods
from rece.edits import Edit, Weights
from rece.emoji import world as worlds
from rece.emoji.world import World
from rece.judges.embedded import Judge
from rece.sharing import recover
from rece.study import arena, cache, config, experiment, fair, plan, ranking, results
from rece.study.parallel import cells

FOLDER = "results/entries"
PARTS = {"UNet2DConditionModel": ("unet", UNet2DConditionModel), "CLIPTextModel": ("text_encoder", CLIPTextModel)}
BESIDE = ("original", "uce", "rece", "guarded")  # the victims of an attack that is an entry


def score(file: str | Path, concept: str | None = None, by: str = "", note: str = "") -> tuple[pd.DataFrame, Path]:
    """Measure an entry, keep its rows below FOLDER, and return the table of rates with the others' rows beside it, and
    the folder.

    concept: which object or style of the world a file of weights erases; others have rows beside it if they were
    measured on it. A Python file is run on the arena's single objects. by, note: who made it, and how; they are kept
    with the rows.
    Columns of the table: method, a rate of sure answers per attack and per kept set, and groups (how many).
    Raises ValueError naming the parameter, and what the file's reader raises, before anything is drawn.
    """
    file, study = Path(file), config.params()
    if not file.exists():
        raise FileNotFoundError(f"FILE: there is no {file}")
    world, name = worlds.load(), file.stem
    if name in (*methods.names(), plan.ORIGINAL, plan.CONTROL):
        raise ValueError(f"FILE: {name!r} is already a row of the table: rename the file")
    if file.suffix == ".py":
        if concept is not None:
            raise ValueError("concept belongs to a file of weights: a Python file is run on the arena's objects")
        groups = fair.first(fair.groups(world, study["fair"]), {"object": study["arena"]["groups"]["object"]})
    else:
        if concept not in (*world.objects, *world.styles):
            where = "an object or a style of data/concepts.yaml, such as dog"
            raise ValueError(f"concept must say what the file erases, {where}, not {concept!r}")
        kind = "object" if concept in world.objects else "style"
        groups = {concept: {"kind": kind, "size": 1, "erase": [world.words[concept][0]], "target": " "}}
    pipe, judge = config.load(study["model"]), Judge.load(config.root() / study["judge"])
    with loaded(file) as own:
        if own.attack:
            images = attacked(pipe, judge, world, groups, study, name)
            others = images.iloc[:0]
        else:
            others = ranking.gathered("results", study["arena_methods"], study["fair_kinds"])[0]
            images, edits = defended(pipe, judge, world, groups, study, name, own.edit)
    there = config.root() / FOLDER / name
    results.write_packed(there, images=images)
    about = {"file": file.name, "concept": concept, "by": by, "note": note, "date": date.today().isoformat()}
    if not own.attack:
        results.write_tables(there, edits=edits)
    (there / "entry.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return table(pd.concat([others[others.group.isin(groups)], images], ignore_index=True)), there


def table(images: pd.DataFrame) -> pd.DataFrame:
    """Rates of sure answers by method and what: a row per method."""
    rates = images.groupby(["method", "what"], sort=False).sure.mean().unstack("what").reset_index()
    return rates.assign(groups=rates.method.map(images.groupby("method").group.nunique()))


@contextmanager
def loaded(file: Path):
    """What a file brings: `attack`, whether it is one, and `edit(pipe, world, group)`, its edit of a group.

    The folder of a Python file is for this block one that methods or attacks are found in.
    """
    if file.suffix != ".py":
        yield SimpleNamespace(attack=False, edit=lambda pipe, world, group: read(pipe, file))
        return
    source = file.read_text(encoding="utf-8")
    found = [kind for kind in ("erase", "attack") if f"\ndef {kind}(" in f"\n{source}"]
    if len(found) != 1:
        raise ValueError(f"FILE: {file} must define one function, erase or attack")
    package = {"erase": methods, "attack": attacks}[found[0]]
    if not file.stem.isidentifier() or file.stem in package.names():
        raise ValueError(f"FILE: {file.stem!r} is no name for a new file of {package.__name__}: rename it")
    package.__path__.append(str(file.resolve().parent))
    try:
        yield SimpleNamespace(
            attack=found[0] == "attack",
            edit=lambda pipe, world, group: fair.eraser(pipe, world, group, file.stem, arena.SETTING, {}),
        )
    finally:
        package.__path__.remove(str(file.resolve().parent))
        sys.modules.pop(f"{package.__name__}.{file.stem}", None)
        cache.code.cache_clear()


def read(pipe, file: Path) -> Edit:
    """The edit that a file of weights or a folder makes of the pipeline.

    Raises ValueError naming the file if it is none, or does not fit.
    """
    if file.is_dir():
        note = json.loads((file / "config.json").read_text()) if (file / "config.json").is_file() else {}
        kind = note.get("_class_name") or next(iter(note.get("architectures", [])), None)
        if kind not in PARTS:
            raise ValueError(f"FILE: the folder {file} holds no UNet and no CLIP text encoder with its config.json")
        part, maker = PARTS[kind]
        own = dict(maker.from_pretrained(file, use_safetensors=True).named_parameters())
        return _difference(pipe, {f"{part}.{name}": one for name, one in own.items()}, file)
    if recover.described(file)[0]:
        return Edit.load(file)
    own = recover.edited_layers(pipe, file)
    named = {f"unet.{name}{'' if name.endswith('.bias') else '.weight'}": one for name, one in own.items()}
    return _difference(pipe, named, file)


@torch.no_grad()
def _difference(pipe, own: dict[str, torch.Tensor], file: Path) -> Weights:
    before = {
        f"{part}.{n}": one for part in ("unet", "text_encoder") for n, one in getattr(pipe, part).named_parameters()
    }
    for name, one in own.items():
        if name not in before or before[name].shape != one.shape:
            raise ValueError(f"FILE: {file} does not fit the model: {name} is not in it, or has another shape")
    found = {name: one.double().cpu() - before[name].double().cpu() for name, one in own.items()}
    return Weights({name: one.float() for name, one in found.items() if one.any()}, {"file": file.name})


def defended(
    pipe, judge, world: World, groups: dict, study: dict, name: str, make: Callable
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of images of an eraser under the arena's attacks, and what its edits promise and cost.

    make(pipe, world, group) returns the edit of a group.
    """

    def one(group: str):
        start = time.process_time()
        edit = make(pipe, world, groups[group])
        edit.provenance["seconds"] = time.process_time() - start
        victim = edit.copy_of(pipe)
        budgets = study["fair_attacks"]
        own = {attack: b for attack, b in budgets.items() if not attacks.applies(experiment.module(attack, b), victim)}
        images = fair.measured(pipe, victim, judge, world, groups[group], study["fair"], study["generate"], own)
        row = arena.measures(pipe, victim, edit, world, groups[group], study["generate"])
        return images.assign(group=group, method=name), {"group": group, "method": name, **row}

    images, rows = zip(*cells(one, list(groups), name), strict=True)
    return pd.concat(images, ignore_index=True), pd.DataFrame(rows)


def attacked(pipe, judge, world: World, groups: dict, study: dict, name: str) -> pd.DataFrame:
    """The table of images of an attack against the models of BESIDE: rows of `what` name, a method per model."""
    chosen, jobs = ranking.chosen("results", [], "data/fair_validation.csv"), list(product(groups.items(), BESIDE))
    one = partial(_attacked, pipe, judge, world, study, name, chosen)
    return pd.concat(cells(one, jobs, name), ignore_index=True)


def _attacked(pipe, judge, world, study, attack, chosen, job) -> pd.DataFrame:
    (name, group), method = job
    victim = pipe
    if method != plan.ORIGINAL:
        numbers = chosen[method, arena.SETTING, group["size"]]
        victim = arena.made(pipe, world, group, method, numbers).copy_of(pipe)
    found = tried(attack, pipe, victim, judge, world, group, study)
    return found.assign(group=name, method=method)[["group", "method", "what", "case", "sure", "top"]]


def tried(attack: str, pipe, victim, judge, world: World, group: dict, study: dict) -> pd.DataFrame:
    """What an attack that is an entry brings back of a group by one model: columns what, case, sure, top."""
    cases = plan.cases(world, group, study["fair"]["per"][group["kind"]], study["fair"]["seed"])
    known = plan.named(world, group)
    asked = list(cases.prompt), list(map(int, cases.seed))
    attempts = attacks.run(attack, victim, *asked, original=pipe, concept=known)
    rows = cases.assign(prompt=attempts.prompts or "", seed=attempts.seeds)
    answers = judge.answers(experiment.images_of(victim, rows, study["generate"], attempts.embeds), rows)
    sure = plan.hits(judge, answers, study["fair"]["threshold"]).astype(int)
    top = answers.wanted.astype(int)
    return pd.DataFrame({"what": attack, "case": range(len(rows)), "sure": sure, "top": top})
