"""Erasure against preservation: erasers over a grid of numbers, each attacked and asked for other concepts."""

from functools import partial
from itertools import product

import pandas as pd
from diffusers import DiffusionPipeline

from rece import methods
from rece.certificate import certify
from rece.emoji.world import World
from rece.study import plan, statistics
from rece.study.experiment import attempt, images_of
from rece.study.parallel import cells


def frontier(
    pipe: DiffusionPipeline, judge, world: World, concept: dict, erase: dict, sweep: dict, generate: dict
) -> pd.DataFrame:
    """Erasure against preservation, one row per eraser, as each method's numbers vary over sweep["grid"].

    grid: for each method, one or more grids, each a list of values for any of its numbers; `rounds` may hold "auto".
    Columns: method; lamb, preserve_scale, rounds (of UCE its own lambda and scale, and 0), auto (whether the
    certificate chose the rounds); text (success rate of the strongest attack by prompts in sweep["attacks"]) with
    text_low, text_high and text_attack; embedding (of the strongest by embeddings) with embedding_low, embedding_high;
    kept (object accuracy on prompts of other concepts; of a style eraser style accuracy) with kept_low, kept_high;
    certified (the certificate's least relative distance). sweep["attacks"] must hold one of each kind.
    """
    cases = plan.cases(world, concept, sweep["n"], sweep["seed"])
    others = plan.others(world, concept, sweep["preserve_n"], sweep["seed"])
    rows, made = [], {}
    for method, grid in ((method, grid) for method, grids in sweep["grid"].items() for grid in grids):
        for values in product(*grid.values()):
            varied = plan.nested(dict(zip(grid, values, strict=True)))
            numbers = plan.merged(plan.numbers(concept, method, erase[method]), varied)
            eraser = methods.run(method, pipe, concept["erase"], **numbers)
            n = eraser.provenance["rounds_run"]
            used = eraser.provenance["each" if n else "start"]
            row = {"method": method, "lamb": used["lamb"], "preserve_scale": used["preserve_scale"]}
            rows.append(row | {"rounds": n, "auto": numbers.get("rounds") == "auto"})
            key = eraser.map.numpy().tobytes()  # "auto" may choose rounds that are on the grid
            made[key] = eraser
            rows[-1]["key"] = key
    measure = partial(_measure, pipe, judge, world, concept, cases, others, sweep, generate)
    measured = dict(zip(made, cells(measure, made.values(), "sweep"), strict=True))
    return pd.DataFrame([row | measured[row.pop("key")] for row in rows])


def _measure(pipe, judge, world, concept, cases, others, sweep, generate, eraser) -> dict:
    """A row of `frontier` for one eraser."""
    edited = eraser.copy_of(pipe)
    found = {"text": [], "embedding": []}
    for name, budget in sweep["attacks"].items():
        some = cases.head(budget.get("n", len(cases)))
        attempts = attempt(name, edited, pipe, some, world, concept, budget)
        rows = some.assign(prompt=attempts.prompts or "", seed=attempts.seeds)
        answers = judge.answers(images_of(edited, rows, generate, attempts.embeds), some)
        hits = plan.hits(judge, answers, sweep["threshold"])
        found["text" if attempts.embeds is None else "embedding"].append(statistics.success_rate(hits, attack=name))
    objects, styles = judge.labels(images_of(edited, others, generate))
    right = styles == others["style"] if concept["kind"] == "style" else objects == others.object
    text, kept = max(found["text"], key=lambda row: row["rate"]), statistics.success_rate(right.to_numpy())
    row = {"text": text["rate"], "text_low": text["low"], "text_high": text["high"], "text_attack": text["attack"]}
    worst = max(found["embedding"], key=lambda row: row["rate"])
    row |= {"embedding": worst["rate"], "embedding_low": worst["low"], "embedding_high": worst["high"]}
    row |= {"kept": kept["rate"], "kept_low": kept["low"], "kept_high": kept["high"]}
    certificate = certify(pipe, eraser, concept["erase"], target=concept["target"])
    return row | {"certified": certificate.relative}
