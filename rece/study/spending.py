"""Spending: what an attack brings back by how much it is allowed to search."""

from functools import partial

import pandas as pd

from rece.emoji.world import World
from rece.study import fair
from rece.study.experiment import module
from rece.study.parallel import cells


def curves(
    pipe, judge, world: World, groups: dict, chosen: dict, plan_of: dict, generate: dict, attacks: dict, tried: dict
) -> pd.DataFrame:
    """Success of attacks by one number of their budget, such as updates, on every method's model of every group.

    chosen: see `fair.choose`; names are preserved. attacks: their budgets. tried: of some of them {keyword: values}
    that stand in place of the budget's own.
    Columns: group, method, what (the attack), level (the number), concept, case, top, sure.
    """
    methods = dict.fromkeys(method for method, _, _ in chosen)
    jobs = [(name, group, method) for name, group in groups.items() for method in methods]
    measure = partial(_one, pipe, judge, world, chosen, plan_of | {"kept": {}}, generate, attacks, tried)
    return pd.concat(cells(measure, jobs, "spending"), ignore_index=True)


def _one(pipe, judge, world, chosen, plan_of, generate, attacks, tried, job) -> pd.DataFrame:
    name, group, method = job
    edited = fair.eraser(pipe, world, group, method, "names", chosen[method, "names", group["size"]])
    budgets = {
        f"{attack} {value}": attacks[attack] | {"attack": module(attack, attacks[attack]), keyword: value}
        for attack, numbers in tried.items()
        for keyword, values in numbers.items()
        for value in values
    }
    table = fair.measured(pipe, edited.copy_of(pipe), judge, world, group, plan_of, generate, budgets)
    table[["what", "level"]] = table.what.str.rsplit(" ", n=1, expand=True)
    return table.assign(group=name, method=method, level=table.level.astype(float))
