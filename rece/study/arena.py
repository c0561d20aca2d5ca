"""The arena: the field's methods on the fair study's groups, prompts, seeds, attacks and preserved names.

The methods of the fair study have their rows from there. A further one, a rival, has its numbers chosen by the same
rule on validation groups, and is then measured on the first groups of each kind. Their numbers are chosen on two
objects and one group of five, ours on six and two; where numbers tie, the first is taken.
"""

import json
import os
import threading
import time
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib import import_module

import pandas as pd

from rece import attacks, methods
from rece.certificate import certify
from rece.edits import Edit, Weights
from rece.emoji import world as worlds
from rece.emoji.world import World
from rece.eraser import Eraser
from rece.images import generate as draw
from rece.judges.embedded import Judge
from rece.study import cache, config, fair, plan
from rece.study.experiment import module
from rece.study.parallel import cells

SETTING = "names"  # what is preserved, see `fair.SETTINGS`
_one_at_a_time = threading.Lock()  # the threads of a worker share one pipeline, which keeps state while it draws
COST = ["seconds", "against_uce", "evaluations", "changed", "bytes", "slowdown"]


def rival(sources: dict, method: str, plan_of: dict, arena: dict, generate: dict, budgets: dict, client=None):
    """Choose a method's numbers and measure it: the tables of images, of edits and of the choice.

    sources: model and judge, folders of the checkout. plan_of: the section `fair`. budgets: of attacks, see
    `experiment.budgets`. client: of a Dask cluster that computes the edits and what they do, or None for this machine;
    its workers see the checkout and the cache under the same paths, and best have one thread and one GPU each.
    Images: as of `fair.run`. Edits: group, method, preserve, numbers, kind, size, guarded, and COST, see `measures`.
    Choice: a row per edit that was tried, as `fair.scores`.
    """
    world = loaded(**sources)[2]
    how = (sources, plan_of, generate)
    validation = fair.first(fair.groups(world, plan_of, validation=True), arena["validation"])
    points = [plan.merged(arena["given"][method], numbers) for numbers in tried(arena["grid"][method])]
    jobs = [(name, group, method, numbers) for numbers in points for name, group in validation.items()]
    by = {attack: budgets[attack] for attack in fair.CHOSEN_BY}
    found = _computed(partial(_images, *how, by), jobs, f"{method}: numbers", client)
    choice = fair.scores(pd.concat(found, ignore_index=True))
    choice["size"] = choice.group.map({name: group["size"] for name, group in validation.items()})
    best = fair.choose(choice)
    groups = fair.first(fair.groups(world, plan_of), arena["groups"])
    jobs = [(name, group, method, best[method, SETTING, group["size"]]) for name, group in groups.items()]
    found = _computed(partial(_one, *how, budgets), jobs, method, client)
    images, edits = zip(*found, strict=True)
    return pd.concat(images, ignore_index=True), pd.DataFrame(edits), choice


@lru_cache(maxsize=1)
def loaded(model: str, judge: str) -> tuple:
    """The pipeline and the judge of two folders of the checkout, and their world. Kept as long as the process."""
    return config.load(model), Judge.load(config.root() / judge), worlds.load()


@contextmanager
def workers():
    """A client of the Dask cluster that the variable RECE_SCHEDULER names, the file of its scheduler; else None."""
    file = os.environ.get("RECE_SCHEDULER")
    if not file:
        yield None
        return
    from distributed import Client

    with Client(scheduler_file=file) as client:
        yield client


def _computed(function, jobs: list, name: str, client) -> list:
    if client is None:
        return cells(function, jobs, name)
    there = str(config.root()), str(cache.folder().resolve())
    return client.gather([client.submit(_remote, there, function, job, pure=False) for job in jobs])


def _remote(there: tuple[str, str], function, job):
    """A job on a worker, which may be anywhere: in the checkout, with the cache that all share."""
    with _one_at_a_time:
        os.chdir(there[0])
        os.environ["RECE_CACHE"] = there[1]
        return function(job)


def tried(grids: list[dict]) -> list[dict]:
    """All points of a method's grids, as nested numbers."""
    return [numbers for _, numbers in fair.grid({"grid": {"one": grids}}, {"one": {}})]


def _images(sources, plan_of, generate, budgets, job) -> pd.DataFrame:
    (pipe, judge, world), (name, group, method, numbers) = loaded(**sources), job
    victim = made(pipe, world, group, method, numbers).copy_of(pipe)
    own = {one: budget for one, budget in budgets.items() if not attacks.applies(module(one, budget), victim)}
    table = fair.measured(pipe, victim, judge, world, group, plan_of, generate, own)
    return table.assign(group=name, method=method, preserve=SETTING, numbers=json.dumps(numbers))[fair.COLUMNS]


def _one(sources, plan_of, generate, budgets, job) -> tuple[pd.DataFrame, dict]:
    pipe, _, world = loaded(**sources)
    return _images(sources, plan_of, generate, budgets, job), _row(pipe, world, generate, job)


def costs(model: str, plan_of: dict, arena: dict, generate: dict, validation: pd.DataFrame) -> pd.DataFrame:
    """What the fair study's methods promise and cost on the arena's groups: rows as the edits of `rival`.

    model: folder in the checkout. validation: what the choose stage wrote, which has their numbers.
    """
    pipe, world, chosen = config.load(model), worlds.load(), fair.choose(validation)
    groups = fair.first(fair.groups(world, plan_of), arena["groups"])
    jobs = [
        (name, group, method, chosen[method, SETTING, group["size"]])
        for method in dict.fromkeys(method for method, *_ in chosen)
        for name, group in groups.items()
    ]
    return pd.DataFrame(cells(partial(_row, pipe, world, generate), jobs, "costs"))


def _row(pipe, world: World, generate: dict, job) -> dict:
    name, group, method, numbers = job
    edit = made(pipe, world, group, method, numbers)
    row = {"group": name, "method": method, "preserve": SETTING, "numbers": json.dumps(numbers), "kind": group["kind"]}
    return row | {"size": group["size"], **measures(pipe, edit.copy_of(pipe), edit, world, group, generate)}


def made(pipe, world: World, group: dict, method: str, numbers: dict) -> Edit:
    """A method's edit of a group, or what was computed before, see `rece.study.cache`. A training that was killed goes
    on. Its provenance holds `seconds`, of this process alone."""
    names = fair.preserved(world, group, SETTING)
    decides = [cache.code(f"rece.methods.{method}"), group["erase"], group["target"], numbers, names]
    digest = cache.digest([*decides, method, cache.weights(pipe)])
    path = cache.folder() / "edits" / f"{digest}.safetensors"
    if path.exists():
        return Edit.load(path)
    trains = hasattr(import_module(f"{methods.__name__}.{method}"), "SETTINGS")
    further = {"checkpoint": str(cache.folder() / "training" / f"{digest}.safetensors")} if trains else {}
    start = time.process_time()
    edit = fair.eraser(pipe, world, group, method, SETTING, numbers | further)
    edit.provenance["seconds"] = time.process_time() - start
    edit.save(path)
    return edit


def measures(pipe, victim, edit: Edit, world: World, group: dict, generate: dict) -> dict:
    """What an edit promises and costs.

    guarded: the least distance of any embedding to a concept's word, see `Certificate`; of changed weights its column
    `shipped`; 0 for what leaves keys and values as they are. against_uce: its seconds over those of UCE for the same
    concepts. evaluations: rows that UNets were run on to make it. changed: how many parameters differ or are new.
    bytes: of its tensors. slowdown: seconds of twenty pictures over those of the original.
    """
    if isinstance(edit, Eraser):
        guarded = certify(pipe, edit, group["erase"]).guarded
    else:
        shipped = edit.readers(pipe) if isinstance(edit, Weights) else {}
        words = certify(pipe, None, group["erase"], shipped=shipped).words
        guarded = float((words.shipped / words.target).min())
    uce, own = made(pipe, world, group, "uce", {}).provenance["seconds"], edit.provenance["seconds"]
    slow, fast = (_seconds(model, generate) for model in (victim, pipe))
    row = {"guarded": guarded, "seconds": own, "against_uce": own / uce}
    row |= {"evaluations": edit.provenance.get("evaluations", 0), "changed": changed(pipe, victim, edit)}
    return row | {"bytes": sum(one.nbytes for one in edit.tensors().values()), "slowdown": slow / fast}


def changed(pipe, victim, edit: Edit) -> int:
    """How many parameters of a victim differ from the pipeline's, or are not there in it."""
    total = 0
    for part in edit.parts(pipe):
        before = dict(getattr(pipe, part).named_parameters())
        for name, own in getattr(victim, part).named_parameters():
            total += int((own != before[name]).sum()) if name in before else own.numel()
    return total


def _seconds(model, generate: dict) -> float:
    start = time.process_time()
    draw(model, ["a picture"] * 20, range(20), **generate, progress=False)
    return time.process_time() - start
