"""Why the guarded eraser works: the same solve with one thing changed at a time, on the same groups and prompts."""

import pandas as pd
import torch
from diffusers import DiffusionPipeline

from rece import layers, solver, texts
from rece.emoji.world import World
from rece.eraser import Eraser
from rece.guarding import guard
from rece.study import fair
from rece.study.parallel import cells


def variants(pipe: DiffusionPipeline, world: World, group: dict, mu: float | None) -> dict[str, Eraser]:
    """The guarded eraser of a group, and what becomes of it with one thing changed.

    "guarded"; "no neighbours": their names are not preserved; "nothing preserved" but ""; "oblique", see
    `solver.oblique`; "ridge I": U from (P + lambda I)^-1 in the space of tokens, which knows nothing of what layers
    see, lambda I having the trace of mu G^-1; "soft": UCE's least squares with the ridge mu G^-1 in place of lambda I,
    which weakens directions and removes none; "plain directions": U = D, whatever is preserved. On the CPU.
    mu: of all of them; None, the one that `guard` takes for the first.
    """
    names = fair.preserved(world, group, "names")
    near = {world.words[name][0] for name in fair.neighbours(pipe, world, group)}
    made = {"guarded": guard(pipe, group["erase"], preserve=names, mu=mu, progress=False)}
    mu = made["guarded"].provenance["mu"]
    made |= {
        "no neighbours": guard(
            pipe, group["erase"], preserve=[name for name in names if name not in near], mu=mu, progress=False
        ),
        "nothing preserved": guard(pipe, group["erase"], preserve=[], mu=mu, progress=False),
        "oblique": guard(pipe, group["erase"], preserve=names, mu=mu, oblique=1.0, progress=False),
    }
    Q, back = layers.answers(pipe)
    pairs = [(text, " ") for text in group["erase"]]
    _, (K, T), _ = texts.erased_tokens(pipe, "tokens", pairs, Q.device)
    D = torch.linalg.svd((K - T) @ Q.T, full_matrices=False)[2][: made["guarded"].provenance["rank"]].T
    PP = texts.encode_gram(pipe, [*names, " ", ""])
    eye = torch.eye(len(PP), dtype=PP.dtype)
    answered = Q @ PP @ Q.T
    scale = answered.trace() / len(answered)  # of mu, in units of the answers
    lamb = mu * scale * (back @ back.T).trace() / len(eye)  # lambda I has the trace of mu G^-1
    W = torch.linalg.solve(PP + lamb * eye, back @ D)
    made["ridge I"] = Eraser(solver.guard_map(Q, back, *[torch.linalg.qr(back.T @ W)[0]] * 2))
    A = answered + mu * scale * torch.eye(len(Q), dtype=Q.dtype) + Q @ (K.T @ K) @ Q.T
    soft = torch.linalg.solve(A, Q @ (K.T @ (T - K)) @ Q.T).T
    made["soft"] = Eraser(eye + back @ soft @ Q)
    made["plain directions"] = Eraser(solver.guard_map(Q, back, D, D))
    return made


def run(
    pipe, judge, world: World, groups: dict, chosen: dict, plan_of: dict, generate: dict, budgets: dict
) -> pd.DataFrame:
    """Every variant of every group, attacked and asked for what is kept: rows as of `fair.run`, method is the variant.

    chosen: see `fair.choose`; the guarded eraser's mu where names are preserved is taken.
    """

    def one(job) -> pd.DataFrame:
        name, group, variant, made = job
        table = fair.measured(pipe, made.copy_of(pipe), judge, world, group, plan_of, generate, budgets)
        return table.assign(group=name, method=variant, preserve="names", kind=group["kind"])

    jobs = []
    for name, group in groups.items():
        mu = chosen["guarded", "names", group["size"]]["mu"]
        jobs += [(name, group, variant, made) for variant, made in variants(pipe, world, group, mu).items()]
    return pd.concat(cells(one, jobs, "ablation"), ignore_index=True)
