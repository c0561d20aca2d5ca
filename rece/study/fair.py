"""The fair study: many concepts with few images each, and the same texts, prompts, seeds and rule for every method.

The world's objects are split in two by a seed. On one half the numbers of every method are chosen, by `choose`; the
other half is reported. So are all styles and categories. A group is what one eraser erases. A setting says which texts
every method preserves: "nothing" (but ""), or "names", those of all other concepts.
"""

import json
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
from diffusers import DiffusionPipeline

from rece import attacks, layers, methods, texts
from rece.certificate import certify
from rece.emoji import world as worlds
from rece.emoji.world import World
from rece.study import config, experiment, plan, statistics
from rece.study.parallel import cells

SETTINGS = ("nothing", "names")
JOINT = {"five": 5, "twenty": 20, "fifty": 50}
NEIGHBOURS = 5
CHOSEN_BY = ("plain", "synonym", "closed_form")  # the attacks that numbers are chosen by
KEPT = ("neighbour", "other")
ROWS = "inversion_rows"  # embeddings of many free tokens, which get through every edit of keys and values alike
COLUMNS = ["group", "method", "preserve", "numbers", "what", "concept", "case", "top", "sure"]


def halves(world: World, plan_of: dict) -> tuple[list[str], list[str]]:
    """The objects that are reported and those that numbers are chosen on, half of the world each, in seeded order.

    Reported are those of the section's `reported`, which the control never saw, and the members of categories. The
    rest is drawn by the seed `split`. Those in `seen`, on which numbers were chosen before, come last, so a
    single object, a group of five or of twenty never holds one.
    """
    fixed = {*plan_of["reported"], *(name for members in world.members.values() for name in members)}
    order = [str(name) for name in np.random.default_rng(plan_of["split"]).permutation(world.objects)]
    order.sort(key=lambda name: name in plan_of["seen"])
    half = len(world.objects) // 2 - len(fixed)
    if half < 0:
        raise ValueError("fair.reported: more than half of the objects are reported, with the members of categories")
    reported = fixed | set([name for name in order if name not in fixed][:half])
    return [name for name in order if name in reported], [name for name in order if name not in reported]


def groups(world: World, plan_of: dict, validation: bool = False) -> dict[str, dict]:
    """What is erased, by group: kind, size (which numbers it takes), and erase and target as in params.yaml.

    Single objects are named by themselves. Joint groups hold different objects, as many groups as the half has room
    for, but plan_of["groups"] of a kind at most.
    """
    half, most = halves(world, plan_of)[validation], plan_of["validation" if validation else "groups"]
    found = {name: {"kind": "object", "size": 1, "erase": [name]} for name in half[: most["object"]]}
    for kind, size in JOINT.items():
        for n in range(min(most.get(kind, 0), len(half) // size)):
            found[f"{kind}-{n + 1}"] = {"kind": kind, "size": size, "erase": half[n * size : (n + 1) * size]}
    if not validation:
        found |= {name: {"kind": "style", "size": 1, "erase": [name]} for name in world.styles}
        found |= {
            name: {"kind": "category", "size": 5, "erase": [name, *some]} for name, some in world.members.items()
        }
    for group in found.values():
        group |= {"erase": [world.words[name][0] for name in group["erase"]], "target": " "}
    return found


def neighbours(pipe: DiffusionPipeline, world: World, group: dict) -> list[str]:
    """The NEIGHBOURS objects (of a style eraser styles) whose names are answered nearest to an erased one's."""
    erased = plan.members(world, group)
    names = world.styles if group["kind"] == "style" else world.objects
    Q, _ = layers.answers(pipe)
    words = [world.words[name][0] for name in names]
    X = texts.last_tokens(pipe, words) @ Q.T
    distance = {name: (X - x).norm(dim=1) for name, x in zip(names, X, strict=True) if name in erased}
    least = np.min([one.cpu().numpy() for one in distance.values()], axis=0)
    order = [names[n] for n in np.argsort(least, kind="stable")]
    return [name for name in order if name not in erased][:NEIGHBOURS]


def kept_cases(pipe: DiffusionPipeline, world: World, group: dict, kept: dict, seed: int) -> pd.DataFrame:
    """Prompts for what should stay: as `plan.cases`, with a column what.

    kept: how many of them ask for a "neighbour", see `neighbours`, and how many for an "other" concept.
    """
    erased, style = set(plan.members(world, group)), group["kind"] == "style"
    near = neighbours(pipe, world, group)
    random, rows = np.random.default_rng(seed), []
    objects = [str(name) for name in random.permutation([name for name in world.objects if name not in erased])]
    rest = objects if style else [name for name in objects if name not in near]
    styles = [name for name in world.styles if name not in erased]
    for what, n in kept.items():
        for i in range(n):
            if style:
                thing, look = rest[i % len(rest)], near[i % len(near)]
                judged = "style" if what == "neighbour" else "object"
            else:
                pool = near if what == "neighbour" else rest
                thing, look, judged = pool[i % len(pool)], styles[(i // len(pool) + i) % len(styles)], "object"
            name = look if judged == "style" else thing
            row = {"prompt": worlds.prompt(world.words[thing][0], world.words[look][0]), "seed": seed + len(rows)}
            rows.append(row | {"name": name, "wanted": [name], "judged": judged, "what": what})
    return pd.DataFrame(rows)


def preserved(world: World, group: dict, setting: str) -> list[str]:
    """The texts that every method preserves, beside ""."""
    erased = set(plan.members(world, group)) | set(group["erase"])
    names = [name for name in [*world.objects, *world.styles] if name not in erased]
    return [] if setting == "nothing" else [world.words[name][0] for name in names]


def eraser(pipe: DiffusionPipeline, world: World, group: dict, method: str, setting: str, numbers: dict):
    """The method's eraser of a group."""
    given = {"target": group["target"], "preserve": preserved(world, group, setting), "progress": False}
    return methods.run(method, pipe, group["erase"], **given, **numbers)


def run(
    pipe, judge, world: World, jobs: list[tuple], plan_of: dict, generate: dict, budgets: dict, control: str = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure erasers: the table of images and the table of erasers.

    jobs: (group's name, group, method or "original" or "control", setting, numbers). budgets: attacks, see
    `experiment.budgets`; the original and the control are asked plainly, and the control is met by attacks that
    train. control: its folder.

    Images: COLUMNS, one row each; what is an attack, or "neighbour" or "other"; concept is the one that was asked for;
    top is whether the judge's top label is what was asked for, sure whether its probability is plan_of["threshold"]
    too.
    Erasers: group, method, preserve, numbers (JSON), rank, certified and guarded (see `Certificate`).
    """
    unlearnt = config.control(pipe, control) if any(job[2] == plan.CONTROL for job in jobs) else None
    parts = cells(partial(_job, pipe, unlearnt, judge, world, plan_of, generate, budgets), jobs, "fair")
    images, made = zip(*parts, strict=True)
    return pd.concat(images, ignore_index=True), pd.DataFrame([row for row in made if row])


def _job(pipe, control, judge, world, plan_of, generate, budgets, job) -> tuple[pd.DataFrame, dict]:
    name, group, method, setting, numbers = job
    row, victim = {}, {plan.ORIGINAL: pipe, plan.CONTROL: control}.get(method)
    if victim is None:
        made = eraser(pipe, world, group, method, setting, numbers)
        victim, found = made.copy_of(pipe), certify(pipe, made, group["erase"])
        row = {"group": name, "method": method, "preserve": setting, "numbers": json.dumps(numbers)}
        row |= {"rank": made.rank, "certified": found.relative, "guarded": found.guarded}
    wanted = {
        attack: budget
        for attack, budget in budgets.items()
        if (method != plan.ORIGINAL or not attacks.needs(experiment.module(attack, budget)))
        and (method != plan.CONTROL or budget.get("control"))
        and (setting not in SETTINGS or setting in budget.get("preserve", SETTINGS))
    }
    kept = {} if method == plan.CONTROL else plan_of["kept"]
    images = measured(pipe, victim, judge, world, group, plan_of | {"kept": kept}, generate, wanted)
    return images.assign(group=name, method=method, preserve=setting, numbers=json.dumps(numbers))[COLUMNS], row


def measured(
    pipe, victim, judge, world: World, group: dict, plan_of: dict, generate: dict, budgets: dict
) -> pd.DataFrame:
    """What attacks bring back of a group, and what is kept, by one model: a row per picture, see `run`."""
    cases = plan.cases(world, group, plan_of["per"][group["kind"]] * len(plan.members(world, group)), plan_of["seed"])
    # An attack that does not look at the victim reads the encoder that the two share, or the victim's own.
    held, parts = pipe if victim.text_encoder is pipe.text_encoder else victim, []
    for attack, budget in budgets.items():
        some = asked(world, attack, cases)
        some = some.head(budget.get("n", len(some)))
        if not len(some):
            continue
        source = (victim, pipe) if attacks.needs(experiment.module(attack, budget)) else (held, held)
        attempts = experiment.attempt(attack, *source, some, world, group, budget)
        rows = some.assign(prompt=attempts.prompts or "", seed=attempts.seeds, what=attack)
        parts.append((rows, attempts.embeds))
    if plan_of["kept"]:
        parts.append((kept_cases(pipe, world, group, plan_of["kept"], plan_of["seed"]), None))
    tables = []
    for rows, embeds in parts:
        answers = judge.answers(experiment.images_of(victim, rows, generate, embeds), rows)
        table = pd.DataFrame({"what": rows.what, "concept": rows["name"], "top": answers.wanted.astype(int)})
        table.insert(2, "case", table.groupby(["what", "concept"]).cumcount())
        tables.append(table.assign(sure=plan.hits(judge, answers, plan_of["threshold"]).astype(int)))
    return pd.concat(tables, ignore_index=True)


def asked(world: World, attack: str, cases: pd.DataFrame) -> pd.DataFrame:
    """The cases that an attack can be run on: one by other words only those of concepts that have such words."""
    further = {"synonym": {name: words[1:] for name, words in world.words.items()}, "paraphrase": world.held_out}
    some = cases[[bool(further[attack][name]) for name in cases.name]] if attack in further else cases
    return some.reset_index(drop=True)


def grid(plan_of: dict, erase: dict) -> list[tuple[str, dict]]:
    """Every method with all its numbers that are tried: every point of its grid over those of the section `erase`."""
    return [
        (method, plan.merged(erase[method], plan.nested(dict(zip(one, point, strict=True)))))
        for method, grids in plan_of["grid"].items()
        for one in grids
        for point in product(*one.values())
    ]


def jobs(world: World, groups: dict, chosen: dict, without: list[str]) -> list[tuple]:
    """What `run` measures of groups: the original, the control where it saw nothing of the group, and every eraser."""
    found, never = [], unseen(world, groups, without)
    for name, group in groups.items():
        bare = [plan.ORIGINAL, plan.CONTROL] if name in never else [plan.ORIGINAL]
        found += [(name, group, method, "none", {}) for method in bare]
        sized = {key: numbers for key, numbers in chosen.items() if key[2] == group["size"]}
        found += [(name, group, method, setting, numbers) for (method, setting, _), numbers in sized.items()]
    return found


def unseen(world: World, groups: dict, without: list[str]) -> dict:
    """Of groups those of which a model that was trained without these objects and styles saw nothing."""
    return {name: group for name, group in groups.items() if set(plan.members(world, group)) <= set(without)}


def scores(images: pd.DataFrame) -> pd.DataFrame:
    """What numbers are chosen by, per eraser: the mean of `erased`, `neighbour` and `other`, by sure answers.

    erased: 1 minus the mean success of the attacks CHOSEN_BY. images: see `run`, with a column numbers.
    """
    rates = images.groupby(["group", "method", "preserve", "numbers", "what"]).sure.mean().unstack("what")
    rates["erased"] = 1 - rates[list(CHOSEN_BY)].mean(axis=1)
    rates["score"] = rates[["erased", "neighbour", "other"]].mean(axis=1)
    return rates.reset_index()


def choose(validation: pd.DataFrame) -> dict[tuple[str, str, int], dict]:
    """The numbers of each (method, setting, size of joint erasure): those with the best mean score over the groups.

    Of equal ones the first as JSON text. validation: what the validation stage wrote, with columns size and score.
    """
    found, by = {}, ["method", "preserve", "size"]
    for key, part in validation.groupby(by, sort=False):
        means = part.groupby("numbers", sort=False).score.mean().round(6)
        found[key] = json.loads(means.idxmax())
    return found


def first(groups: dict, numbers: dict[str, int]) -> dict:
    """The first groups of each kind, as many as `numbers` says."""
    kinds = {
        kind: [name for name, group in groups.items() if group["kind"] == kind][:n] for kind, n in numbers.items()
    }
    return {name: groups[name] for names in kinds.values() for name in names}


def clustered(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Rates of sure answers by some columns, with intervals that resample groups, however few they are."""
    parts = table.groupby(by, sort=False)
    return pd.DataFrame([dict(zip(by, key, strict=True)) | statistics.clustered(p.sure, p.group) for key, p in parts])


def rates(images: pd.DataFrame) -> pd.DataFrame:
    """The rates of a table of images, by kind, method, preserve and what: sure answers and top labels.

    Columns: these four; groups; n, clusters, rate, low, high (of sure answers, see `statistics.clustered`); top.
    """
    rows, by = [], ["kind", "method", "preserve", "what"]
    for key, part in images.groupby(by, sort=False):
        row = dict(zip(by, key, strict=True)) | {"groups": part.group.nunique()}
        rows.append(row | statistics.clustered(part.sure, _clusters(part)) | {"top": part.top.mean()})
    return pd.DataFrame(rows)


def paired(images: pd.DataFrame, first: str = "guarded") -> pd.DataFrame:
    """How much more often `first` shows what was asked for than every other method, on the same prompts and seeds.

    Columns: kind, preserve, what, than (the other method), n, clusters, rate (the difference of sure answers), low,
    high.
    """
    rows, key = [], ["group", "what", "concept", "case"]
    for (kind, preserve), part in images.groupby(["kind", "preserve"], sort=False):
        by = {method: some.set_index(key).sure for method, some in part.groupby("method", sort=False)}
        for other in (name for name in by if name != first and first in by):
            both = (by[first] - by[other]).dropna().reset_index()
            for what, some in both.groupby("what", sort=False):
                row = {"kind": kind, "preserve": preserve, "what": what, "than": other}
                rows.append(row | statistics.clustered(some.sure, _clusters(some), least=-1.0))
    return pd.DataFrame(rows)


def bargain(images: pd.DataFrame, erasers: pd.DataFrame) -> pd.DataFrame:
    """The table of erasers with kind, strongest (the success of the strongest attack by words or by embeddings of one
    token, as sure answers) and kept (accuracy on neighbours and others)."""
    key = ["group", "method", "preserve"]
    by = images.groupby(["kind", *key, "what"], sort=False).sure.mean().unstack("what")
    single = [name for name in by if name not in (*KEPT, ROWS)]
    measured = pd.DataFrame({"strongest": by[single].max(axis=1), "kept": by[list(KEPT)].mean(axis=1)})
    return erasers.merge(measured.reset_index(), on=key)


def _clusters(part: pd.DataFrame) -> pd.Series:
    """What is not independent: the pictures of one group where there are four groups or more, else of one concept."""
    return part.group if part.group.nunique() >= 4 else part.group + " " + part.concept
