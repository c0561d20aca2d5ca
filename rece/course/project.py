"""The project: a student's method and attack, in two files, measured beside ours on one concept."""

from contextlib import ExitStack, redirect_stderr
from io import StringIO
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rece import attacks
from rece.course import pictures
from rece.emoji import world as worlds
from rece.judges.embedded import Judge
from rece.study import arena, config, entry, fair, figures, plan, ranking, results, statistics
from rece.study.parallel import cells

FILES = ("method.py", "attack.py")
MINE, MY_ATTACK = "yours", "your attack"
BESIDE = ("uce", "rece", "guarded")
ATTACKS = {"plain": {}, "synonym": {}, "closed_form": {"lamb": 0.1}}
SEARCH = {"tokens": 3, "updates": 40, "times": 10, "score_times": 2, "steps": 10, "guidance": 4.0, "batch_size": 5}
SEARCH |= {"n": 5, "bf16": "auto", "progress": False}
COLUMNS = ["model", "what", "n", "successes", "rate", "low", "high"]


def run(
    folder: str | Path = "notebooks/course/mine", concept: str = "church", search: bool = True, progress: bool = True
) -> pd.DataFrame:
    """Measure a method and an attack beside ours: a row per model and attack, and per model what is kept.

    folder: with FILES, relative to the checkout. They are run, with all that they can do. concept: an object of the
    world; choose your numbers on horse. search: whether UnlearnDiffAtk is among the attacks. progress: show a bar.
    Columns: model, what (an attack, or "neighbour"), n, successes, rate, low, high (95 % Wilson: the prompts of one
    concept). Raises FileNotFoundError naming a file that is missing, and ValueError naming the parameter.
    """
    study, world = config.params(), worlds.load()
    folder = config.root() / folder
    for file in FILES:
        if not (folder / file).exists():
            raise FileNotFoundError(f"folder: there is no {folder / file}: copy it from notebooks/course/mine")
    if concept not in world.objects:
        raise ValueError(f"concept must be an object of data/concepts.yaml, such as church, not {concept!r}")
    group = {"kind": "object", "size": 1, "erase": [world.words[concept][0]], "target": " "}
    pipe, judge = config.load(study["model"]), Judge.load(config.root() / study["judge"])
    chosen = ranking.chosen("results", [], "data/fair_validation.csv")
    asked = study["fair"] | {"kept": {"neighbour": 20}}
    budgets = ATTACKS | ({"unlearndiff": SEARCH} if search else {})

    with ExitStack() as stack:
        own, _ = (stack.enter_context(entry.loaded(folder / file)) for file in FILES)

        def measure(model: str) -> pd.DataFrame:
            victim = pipe
            if model == MINE:
                victim = own.edit(pipe, world, group).copy_of(pipe)
            elif model != plan.ORIGINAL:
                numbers = chosen[model, arena.SETTING, 1]
                victim = arena.made(pipe, world, group, model, numbers).copy_of(pipe)
            wanted = {
                name: budget
                for name, budget in budgets.items()
                if not attacks.applies(name, victim) and (model != plan.ORIGINAL or not attacks.needs(name))
            }
            images = fair.measured(pipe, victim, judge, world, group, asked, study["generate"], wanted)
            mine = entry.tried("attack", pipe, victim, judge, world, group, study).assign(what=MY_ATTACK)
            found = pd.concat([images, mine])[["what", "sure"]]
            rates = found.groupby("what", sort=False).sure
            rows = [statistics.success_rate(some.astype(bool), model=model, what=what) for what, some in rates]
            return pd.DataFrame(rows)

        if not progress:
            stack.enter_context(redirect_stderr(StringIO()))  # where bars go
        models = [plan.ORIGINAL, *BESIDE, MINE]
        return pd.concat(cells(measure, models, "project"), ignore_index=True)[COLUMNS]


def picture(table: pd.DataFrame) -> Figure:
    """What is kept of the neighbours against the strongest attack, a mark per model; yours has a ring.

    table: of `run`. Marks are moved a little apart, so that equal ones are seen.
    """
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for n, (model, part) in enumerate(table[table.model != plan.ORIGINAL].groupby("model", sort=False)):
        kept = part[part.what == "neighbour"].iloc[0]
        worst = part.loc[part[part.what != "neighbour"].rate.idxmax()]
        reach = [[[one.rate - one.low], [one.high - one.rate]] for one in (kept, worst)]
        name = f"{figures.label(model)}: {figures.label(worst.what)}"
        style = {"fmt": pictures.MARKS[n], "color": figures.PALETTE[n], "ms": 7, "elinewidth": 1}
        at = worst.rate - 0.02 * n, kept.rate - 0.02 * n
        ax.errorbar(*at, *reach, label=name, **style)
        if model == MINE:
            ax.plot(*at, **pictures.PREDICTED | {"ms": 16})
    ax.set(xlabel="success of its strongest attack", ylabel="neighbours that are kept", xlim=(-0.12, 1.04))
    ax.set(ylim=(-0.12, 1.04))
    ax.grid(color="0.93")
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncol=2)
    sns.despine(fig)
    return fig


def report(folder: str | Path = "notebooks/course/mine", concept: str = "church") -> Path:
    """Run the project, print its table, and write it and its picture to results/project. Returns the picture."""
    table = run(folder, concept)
    results.write_tables("results/project", **{concept: table})
    shown = table.assign(shown=table.successes.astype(str) + " of " + table.n.astype(str))
    shown = shown.replace({"model": figures.NAMES, "what": figures.NAMES | {"neighbour": "neighbours kept"}})
    print(shown.pivot_table(index="model", columns="what", values="shown", aggfunc="first", sort=False).fillna("–").T)
    path = config.root() / "results/project" / f"{concept}.png"
    figures.save(picture(table), path)
    return path
