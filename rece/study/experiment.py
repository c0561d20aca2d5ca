"""Attacks and what they bring back: the models they are run against, their attempts, and the images judged."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from diffusers import DiffusionPipeline

from rece import attacks, images
from rece.attacks import Attempts
from rece.emoji.world import World
from rece.study import cache, config, plan, results
from rece.study.parallel import cells
from rece.study.plan import ANY, CONTROL, ORIGINAL

DRAWN = ["method", "attack", "access", "kind", "source", "own_prompts", "case", "prompt", "asked", "seed", "label"]
DRAWN += ["probability", "top1", "hit"]
PLANNED = ("attack", "n", "asked", "control", "preserve")  # what a budget holds beside an attack's own keywords


def victims(
    pipe: DiffusionPipeline, folder: str | Path, control: str | Path | None = None
) -> dict[str, DiffusionPipeline]:
    """The original pipeline and one victim per eraser in `folder`, by method, and the control if one is named.

    control: a folder with a UNet that never saw the concept, to stand in the original's place.
    """
    found = {ORIGINAL: pipe} | {
        method: eraser.copy_of(pipe) for method, eraser in results.read_erasers(folder).items()
    }
    if control is not None:
        found[CONTROL] = config.control(pipe, control)
    return found


def budgets(attack: dict, concept: dict | None = None) -> dict[str, dict]:
    """The attacks to run and their budgets, by the section `attack` of params.yaml: quick or full.

    A budget may hold, beside the attack's own keywords, `attack` (which attack it is, if its name is another), `n` (on
    how many of the prompts it is run), `control` (whether it is run on the control too) and `preserve` (in which
    settings of the fair study). A concept may name the `attacks` it wants. If it asks for more than one set of
    prompts, the others are drawn as they are, under the name plain_<set>.
    """
    concept = concept or {}
    found = attack[attack["budget"]]
    found = {name: budget for name, budget in found.items() if name in concept.get("attacks", found)}
    further = list(concept.get("asked", {}).items())[1:]
    return found | {f"plain_{name}": {"attack": "plain", "asked": source} for name, source in further}


def module(name: str, budget: dict) -> str:
    """The attack that a line of the budget runs."""
    return budget.get("attack", name)


def sources(name: str, budget: dict, victims: dict[str, DiffusionPipeline]) -> dict[str, DiffusionPipeline]:
    """The models an attack is run against, by name: all erased ones that it applies to, if it looks at them. Else the
    original alone, under the name "any"."""
    attack = module(name, budget)
    if not attacks.needs(attack):
        return {ANY: victims[ORIGINAL]}
    left_out = {ORIGINAL} if budget.get("control") else {ORIGINAL, CONTROL}
    found = {method: victim for method, victim in victims.items() if method not in left_out}
    return {method: victim for method, victim in found.items() if not attacks.applies(attack, victim)}


def asked(world: World, concept: dict, attack: dict, name: str, budget: dict) -> pd.DataFrame:
    """The cases that an attack is run on: its own set of prompts or the concept's.

    Of them the first n of the budget; of photographs by default the first attack["n"], but all if drawn plainly.
    """
    if "asked" in budget:
        cases = plan.from_file(budget["asked"])
    else:
        cases = plan.cases(world, concept, attack["n"], attack["seed"])
    n = len(cases) if module(name, budget) == "plain" else attack["n"]
    return cases.head(budget.get("n", n))


def attempt(
    name: str,
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    cases: pd.DataFrame,
    world: World,
    concept: dict,
    budget: dict,
) -> Attempts:
    """Run one attack on the cases, or read what it found before; see `budgets`, `asked` and `rece.study.cache`.

    What is read has taken 0 seconds.
    """
    attack = module(name, budget)
    own = {key: value for key, value in budget.items() if key not in PLANNED}
    prompts, seeds = list(cases.prompt), [int(seed) for seed in cases.seed]
    known = plan.named(world, concept)
    decides = [cache.code(f"rece.attacks.{attack}"), attack, prompts, seeds, known, own]
    decides += [cache.weights(pipe) for pipe in ((victim, original) if attacks.needs(attack) else (original,))]
    path = cache.folder() / "attempts" / f"{cache.digest(decides)}.safetensors"
    if path.exists():
        return Attempts.load(path)
    found = attacks.run(attack, victim, prompts, seeds, original=original, concept=known, **own)
    found.save(path)
    return found


def attempt_all(
    pipe: DiffusionPipeline,
    victims: dict[str, DiffusionPipeline],
    world: World,
    concept: dict,
    attack: dict,
    out: str | Path,
) -> pd.DataFrame:
    """Run every attack of the budget against every model it is run against, and save what it finds in `out`.

    Returns one row per file: attack, access, found_against, n, evaluations, seconds, example (the first prompt).
    """
    out = config.root() / out
    jobs = [
        (name, budget, source, asked(world, concept, attack, name, budget))
        for name, budget in budgets(attack, concept).items()
        for source in sources(name, budget, victims)
    ]

    def run(job) -> dict:
        name, budget, source, cases = job
        victim = victims[ORIGINAL if source == ANY else source]
        found = attempt(name, victim, pipe, cases, world, concept, budget)
        found.save(out / f"{source}-{name}.safetensors")
        row = {"attack": name, "access": found.access, "found_against": source, "n": len(found)}
        example = found.prompts[0] if found.prompts else "(embedding)"
        return row | {"evaluations": found.evaluations, "seconds": found.seconds, "example": example}

    return pd.DataFrame(cells(run, jobs, "attack"))


def drawn(
    pipe: DiffusionPipeline, rows: pd.DataFrame, generate: dict, embeds=None, folder: Path | None = None
) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Draw the prompts and seeds of `rows`, or embeddings in their place: parts of the rows, and their images.

    guidance, width and height of each row go before those of `generate` and of the model. Images that are in the
    folder are not drawn again, see `rece.images.draw`. Without a folder they are in the cache, see `rece.study.cache`.
    """
    table, how = rows[[name for name in images.COLUMNS if name in rows]], {"embeds": embeds, **generate}
    if folder is None:
        identity = {"code": cache.code("rece.images"), **cache.hooks(pipe)}
        folder, how = cache.folder() / "images", how | {"named": True, "identity": identity}
    folder, start = images.draw(pipe, table, folder, progress=False, **how), 0
    for some in images.read(folder, rows.case if "case" in rows else range(len(rows))):
        yield rows.iloc[start : start + len(some)], some
        start += len(some)


def images_folder(evaluate: dict, concept: dict, method: str, what: str) -> Path | None:
    """Where images go if params.yaml names a folder: in it, by the erased texts, the method and what is drawn."""
    if evaluate["images"] is None:
        return None
    erased = re.sub(r"\W+", "-", "-".join(concept["erase"]))
    if len(erased) > 60:
        erased = f"{erased[:60]}-{cache.digest(concept['erase'])[:8]}"
    return config.root() / evaluate["images"] / erased / method / what


def images_of(pipe: DiffusionPipeline, rows: pd.DataFrame, generate: dict, embeds=None) -> np.ndarray:
    """The images of `drawn` in one array, uint8 (n, height, width, 3)."""
    return np.concatenate([some for _, some in drawn(pipe, rows, generate, embeds)])


def draw_attempts(
    victims: dict[str, DiffusionPipeline],
    folder: str | Path,
    attack: dict,
    world: World,
    concept: dict,
    judge,
    generate: dict,
    evaluate: dict,
) -> tuple[pd.DataFrame, dict]:
    """Draw and judge the attack stage's attempts with every model they are meant for.

    Those that no erased model was looked at for are drawn with all models; those found against one with that one, and
    if they are texts, with the others too. The control draws plain prompts and what was found against it. attack,
    evaluate: the sections of params.yaml; evaluate["images"] is where images go, see `images_folder`.

    Returns one row per image, and for figures {(method, attack): (first evaluate["show"] images, whether each is a
    success)} of each method's own attempts. Columns: method (the model that drew), attack, access, kind ("text" or
    "embedding"), source (the model it was found against, or "any"), own_prompts (whether the attack has a set of its
    own), case (row of the cases), prompt (the attempt's), asked (the case's), seed, label and probability (the judge's
    answer), top1 (whether it is the concept), hit (and is sure enough, see `plan.hits`), then the judge's further
    columns.
    Without a judge (None) nothing is drawn and the table is empty.
    Raises FileNotFoundError naming the attack stage if an attempt is missing.
    """
    if judge is None:
        return pd.DataFrame(columns=DRAWN), {}
    jobs, planned = [], budgets(attack, concept)
    for name, budget in planned.items():
        cases = asked(world, concept, attack, name, budget)
        for source in sources(name, budget, victims):
            path = config.root() / folder / f"{source}-{name}.safetensors"
            if not path.exists():
                raise FileNotFoundError(
                    f"attempts: {path} is missing; run the attack stage first (`dvc repro attack`)"
                )
            attempts = Attempts.load(path)
            for method in victims:
                transferred = source not in (ANY, method)
                if transferred and (attempts.prompts is None or CONTROL in (source, method)):
                    continue
                if method == CONTROL and source == ANY and name != "plain":
                    continue
                jobs.append((name, source, method, attempts, cases.head(len(attempts)).reset_index(drop=True)))

    def draw_one(job) -> tuple[pd.DataFrame, dict]:
        name, source, method, attempts, plain = job
        rows = plain.assign(prompt=attempts.prompts or "", seed=attempts.seeds)
        some, answers = {}, []
        there = images_folder(evaluate, concept, method, f"{source}-{name}")
        for batch, pictures in drawn(victims[method], rows, generate, attempts.embeds, there):
            answers.append(judge.answers(pictures, batch.reset_index(drop=True)).set_index(batch.index))
            wanted = batch.index < evaluate["show"]
            some |= dict(zip(batch.index[wanted], pictures[wanted], strict=True))
        answers = pd.concat(answers).sort_index()
        row = {"method": method, "attack": name, "access": attempts.access}
        row |= {"kind": "text" if attempts.embeds is None else "embedding", "source": source}
        row["own_prompts"] = "asked" in planned[name]
        part = pd.DataFrame({**row, "case": range(len(attempts)), "prompt": attempts.prompts or ""})
        part["asked"], part["seed"] = plain.prompt, attempts.seeds
        part["label"], part["probability"], part["top1"] = answers.label, answers.probability, answers.wanted
        part["hit"] = plan.hits(judge, answers, evaluate["threshold"])
        return part.join(answers.drop(columns=["label", "probability", "wanted"])), some

    parts, shown = [], {}
    for (name, source, method, *_), (part, some) in zip(jobs, cells(draw_one, jobs, "draw"), strict=True):
        parts.append(part)
        if source in (ANY, method) and len({picture.shape for picture in some.values()}) == 1:
            shown[method, name] = (np.stack([some[n] for n in sorted(some)]), part.hit.to_numpy()[: len(some)])
    return pd.concat(parts, ignore_index=True), shown
