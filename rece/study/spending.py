"""Spending: what an attack brings back by how much it is allowed to search."""

from functools import partial

import pandas as pd

from rece.emoji.world import World
from rece.study import fair as study
from rece.study.experiment import module, victim
from rece.study.parallel import cells


def curves(
    pipe, judge, world: World, groups: dict, chosen: dict, fair: dict, generate: dict, attacks: dict, updates: dict
) -> pd.DataFrame:
    """Success of attacks that search, by how many updates they may make, on every method's model of every group.

    chosen: see `fair.choose`; names are preserved. attacks: their budgets. updates: of some of them, the numbers that
    are tried in place of the budget's own.
    Columns: group, method, what (the attack), updates, concept, case, top, sure.
    """
    methods = dict.fromkeys(method for method, _, _ in chosen)
    jobs = [(name, group, method) for name, group in groups.items() for method in methods]
    measure = partial(_one, pipe, judge, world, chosen, fair | {"kept": {}}, generate, attacks, updates)
    return pd.concat(cells(measure, jobs, "spending"), ignore_index=True)


def _one(pipe, judge, world, chosen, fair, generate, attacks, updates, job) -> pd.DataFrame:
    name, group, method = job
    edited = study.eraser(pipe, world, group, method, "names", chosen[method, "names", group["size"]])
    budgets = {
        f"{attack} {n}": attacks[attack] | {"attack": module(attack, attacks[attack]), "updates": n}
        for attack, tried in updates.items()
        for n in tried
    }
    table = study.measured(pipe, victim(pipe, edited), judge, world, group, fair, generate, budgets)
    table[["what", "updates"]] = table.what.str.rsplit(" ", n=1, expand=True)
    return table.assign(group=name, method=method, updates=table.updates.astype(int))
