"""Auditing: every method's model under audits, beside the original and a model that never saw the concept."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from rece import attacks, audits, families, files, layers, solver
from rece.audits import adapter
from rece.certificate import certify
from rece.edits import Edit, Weights
from rece.emoji.world import World
from rece.eraser import Eraser
from rece.images import generate as pictures
from rece.study import arena, cache, experiment, fair, plan
from rece.study.parallel import cells
from rece.study.relearning import relearn

COLUMNS = ["group", "method", "what", "level", "case", "top", "sure"]
WHOLE = {"int8": 127, "int4": 7}  # the largest number of a form of whole numbers
FORMS = ("float32", "float16", "bfloat16", *WHOLE)


def groups(world: World, plan_of: dict, without: list[str], n: int) -> dict:
    """The first n single objects of the fair study that a model trained without these never saw."""
    return fair.first(fair.unseen(world, fair.groups(world, plan_of), without), {"object": n})


def tables(
    what: str,
    pipe,
    control,
    judge,
    world: World,
    some: dict,
    chosen: dict,
    section: dict,
    plan_of: dict,
    generate: dict,
    budgets: dict,
) -> dict[str, pd.DataFrame]:
    """What one stage finds out: "images", a row per picture, and of "rounding" also "bounds", its certificates.

    what: "rounding", see `rounding`, "transfer", see `transferred`, or else see `run`, which has the other parameters.
    budgets: of attacks, by name.
    """
    if what not in ("rounding", "transfer"):
        return {"images": run(what, pipe, control, judge, world, some, chosen, section, plan_of, generate)}
    given = chosen, plan_of, generate
    if what == "transfer":
        own = {name: budgets[name] for name in section[what]}
        return {"images": transferred(pipe, judge, world, some, *given, own)}
    own, some = section[what], fair.first(some, {"object": section[what]["object"]})
    images, bounds = rounding(pipe, judge, world, some, *given, {name: budgets[name] for name in own["attacks"]})
    return {"images": images, "bounds": bounds}


def run(
    what: str,
    pipe,
    control,
    judge,
    world: World,
    some: dict,
    chosen: dict,
    section: dict,
    plan_of: dict,
    generate: dict,
) -> pd.DataFrame:
    """What an audit or relearning brings back, on every method's model of every group: a row per picture, COLUMNS.

    what: a name in section["tried"], whose values are settings of audits, or in section["relearning"], see
    `relearnt`. some: groups of single objects; section["n"] prompts of each. chosen: the numbers of each method, see
    `fair.choose`.
    """
    methods = [plan.ORIGINAL, *dict.fromkeys(method for method, *_ in chosen), plan.CONTROL]
    jobs = [(name, group, method) for name, group in some.items() for method in methods]
    generate = generate | {"batch_size": min(section["n"], generate["batch_size"])}  # no row is drawn in vain
    one = partial(_one, what, pipe, control, judge, world, chosen, section, plan_of, generate)
    return pd.concat(cells(one, jobs, what), ignore_index=True)


def _one(what, pipe, control, judge, world, chosen, section, plan_of, generate, job) -> pd.DataFrame:
    name, group, method = job
    cases = plan.cases(world, group, section["n"], plan_of["seed"] + 30_000)
    asked = list(cases.prompt), list(map(int, cases.seed))
    victim, audit = model(pipe, control, world, chosen, job), what in section["tried"]
    settings = section["tried" if audit else "relearning"][what]

    def make() -> pd.DataFrame:
        if audit:
            own = settings | further(what, pipe, judge, world, group, cases)
            images = audits.run(what, victim, pipe, *asked, generate=generate, **own).items()
        else:
            images = relearnt(adapter.apart(victim), pipe, world, group, asked, settings, generate)
        return pd.concat([_judged(judge, drawn, cases, plan_of).assign(level=str(level)) for level, drawn in images])

    decides = [f"rece.audits.{what}" if audit else "rece.study.relearning", plan_of["threshold"], settings]
    decides += [asdict(world), cache.weights(victim), cache.weights(pipe), judge.describe(), group, *asked, generate]
    return _kept(decides, make).assign(what=what, group=name, method=method)[COLUMNS]


def model(pipe, control, world: World, chosen: dict, job: tuple[str, dict, str]):
    """The model of a job (group's name, group, method): the original, the control, or one with the method's edit."""
    _, group, method = job
    if method in (plan.ORIGINAL, plan.CONTROL):
        return {plan.ORIGINAL: pipe, plan.CONTROL: control}[method]
    edit = arena.made(pipe, world, group, method, chosen[method, arena.SETTING, group["size"]])
    return edit.copy_of(pipe)


def _kept(decides: list, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table of `_judged`, with the column level, as it was made before from the same, see `rece.study.cache`.

    decides: a module that draws, and what else does.
    """
    modules = decides[0], __name__, "rece.judges.embedded"
    own = [*map(cache.code, modules), *decides]
    path = cache.folder() / "audits" / f"{cache.digest(own)}.csv"
    if not path.exists():
        with files.replacing(path) as file:
            make().to_csv(file, index=False)
    return pd.read_csv(path, dtype={"level": str})


def _judged(judge, images, cases: pd.DataFrame, plan_of: dict) -> pd.DataFrame:
    answers = judge.answers(images, cases)
    sure = plan.hits(judge, answers, plan_of["threshold"]).astype(int)
    return pd.DataFrame({"case": range(len(cases)), "top": answers.wanted.astype(int), "sure": sure})


def further(audit: str, pipe, judge, world: World, group: dict, cases: pd.DataFrame) -> dict:
    """What an audit is given beside its settings: "composition" the prompts of the three nearest objects, "query" the
    judge's probability of the concept, and all words of captions that do not name it."""
    if audit == "composition":
        near = fair.neighbours(pipe, world, group)[:3]
        swap = [[(world.words[name][0], world.words[other][0]) for other in near] for name in cases["name"]]
        return {"others": [[p.replace(*pair) for pair in pairs] for p, pairs in zip(cases.prompt, swap, strict=True)]}
    if audit == "query":
        (concept,) = plan.members(world, group)
        at, own = judge.objects.index(concept), {*world.words[concept], *world.held_out[concept]}
        words = {word for names in world.words.values() for word in names if " " not in word}
        return {"score": lambda images: judge.classify(images).objects[:, at], "vocabulary": sorted(words - own)}
    return {}


def relearnt(model, pipe, world: World, group: dict, asked: tuple, settings: dict, generate: dict):
    """Pictures of a model, changed in place, after each number of steps of training: pairs (steps, pictures).

    settings: learn, steps, lr and batch_size as of `relearning.relearn`; lessons, how many pictures it is trained on;
    of, "concept" or "others": what they show.
    """
    lessons = settings["lessons"]
    if settings["of"] == "concept":
        shown = plan.cases(world, group, lessons, 50_000)
    else:
        shown = plan.others(world, group, lessons, 50_000)
    how = {name: settings[name] for name in ("learn", "lr", "batch_size")}
    taught = list(shown.prompt), list(map(int, shown.seed))
    for done in relearn(model, pipe, *taught, settings["steps"], generate=generate | {"progress": False}, **how):
        with torch.no_grad():
            yield done, pictures(model, *asked, **generate, progress=False)


def transferred(
    pipe, judge, world: World, some: dict, chosen: dict, plan_of: dict, generate: dict, budgets: dict
) -> pd.DataFrame:
    """What every method's model draws of the prompts that attacks found against every other: a row per picture.

    budgets: attacks that search for words by looking at the victim, on the cases of the fair study. Columns: group,
    what (the attack), source (the method whose model it searched), method (whose model drew), case, top, sure.
    """
    methods = list(dict.fromkeys(method for method, *_ in chosen))
    jobs = [(name, group, method) for name, group in some.items() for method in methods]

    def search(job) -> list[pd.DataFrame]:
        _, group, source = job
        victim, parts = model(pipe, None, world, chosen, job), []
        cases = plan.cases(world, group, plan_of["per"][group["kind"]] * len(group["erase"]), plan_of["seed"])
        for attack, budget in budgets.items():
            if not attacks.applies(experiment.module(attack, budget), victim):
                rows = cases.head(budget["n"])
                found = experiment.attempt(attack, victim, pipe, rows, world, group, budget)
                parts.append(rows.assign(prompt=found.prompts, seed=found.seeds, what=attack, source=source))
        return parts

    found = {name: [] for name in some}
    for (name, *_), parts in zip(jobs, cells(search, jobs, "searches"), strict=True):
        found[name] += parts

    def draw(job) -> pd.DataFrame:
        name, _, method = job
        rows = pd.concat(found[name], ignore_index=True)
        victim = model(pipe, None, world, chosen, job)
        answers = _judged(judge, experiment.images_of(victim, rows, generate), rows, plan_of)
        table = rows[["what", "source"]].assign(group=name, method=method, **answers[["top", "sure"]])
        table["case"] = table.groupby(["what", "source"]).cumcount()
        return table[["group", "what", "source", "method", "case", "top", "sure"]]

    return pd.concat(cells(draw, jobs, "transfer"), ignore_index=True)


def rounded(pipe, edit: Edit, form: str) -> Weights:
    """The edit as it is shipped in another form of its weights of keys and values, back in the pipeline's own.

    What else it changes stays as it is. form: one of FORMS; whole numbers are per output channel, symmetric about 0.
    Raises ValueError for another form, TypeError if the edit changes no layer that reads the prompt.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    edited = readers(pipe, edit)
    before = layers.originals(pipe)
    part, changes = families.part(pipe), dict(edit.changes) if isinstance(edit, Weights) else {}
    for name, W in edited.items():
        changes[f"{part}.{name}.weight"] = (_rounded(W, form) - solver.precise(before[name])).float()
    return Weights(changes, edit.provenance | {"form": form})


def readers(pipe, edit: Edit) -> dict[str, Tensor]:
    """The weights of keys and values that an edit leaves, float64, by layer. Raises TypeError if it changes none."""
    if isinstance(edit, Eraser):
        M = edit.map.to(layers.gram(pipe).device)
        return {name: solver.precise(W) @ M for name, W in layers.originals(pipe).items()}
    found = edit.readers(pipe) if isinstance(edit, Weights) else {}
    if not found:
        raise TypeError(f"{edit} changes no layer that reads the prompt, so there is nothing to round")
    return {name: solver.precise(W) for name, W in found.items()}


def _rounded(W: Tensor, form: str) -> Tensor:
    if form not in WHOLE:
        return W.to(getattr(torch, form)).to(W.dtype)
    unit = W.abs().amax(1, keepdim=True) / WHOLE[form]
    return (W / unit.clamp(min=1e-30)).round() * unit


def rounding(
    pipe, judge, world: World, some: dict, chosen: dict, plan_of: dict, generate: dict, budgets: dict
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What rounding brings back: the table of pictures, with columns group, method, what, level (the form), concept,
    case, top and sure, and that of certificates: group, method, level, guarded.

    Methods that change no layer that reads the prompt are left out.
    """
    jobs = [
        (name, group, method, form)
        for name, group in some.items()
        for method in dict.fromkeys(method for method, *_ in chosen)
        for form in FORMS
    ]

    def one(job):
        name, group, method, form = job
        edit = arena.made(pipe, world, group, method, chosen[method, arena.SETTING, group["size"]])
        try:
            made = rounded(pipe, edit, form)
        except TypeError:
            return pd.DataFrame(), {}
        victim = made.copy_of(pipe)
        table = fair.measured(pipe, victim, judge, world, group, plan_of, generate, budgets)
        words = certify(pipe, None, group["erase"], shipped=made.readers(pipe)).words
        row = {"group": name, "method": method, "level": form}
        return table.assign(**row), row | {"guarded": float((words.shipped / words.target).min())}

    tables, rows = zip(*cells(one, jobs, "rounding"), strict=True)
    columns = [*COLUMNS[:4], "concept", *COLUMNS[4:]]
    return pd.concat(tables, ignore_index=True)[columns], pd.DataFrame([row for row in rows if row])
