"""What the stage notebooks call: victims, attempts, judgements, preservation, sweeps, and the files between stages."""

import copy
import json
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline

from rece import attacks, methods, metrics, study
from rece.attacks import Attempts
from rece.emoji.world import World
from rece.eraser import Eraser
from rece.generate import generate as draw
from rece.judge import Judge

ORIGINAL = "original"


@contextmanager
def timer():
    """Wall-clock seconds of the block: `with timer() as t: ...; t.seconds`."""
    result, start = SimpleNamespace(seconds=0.0), time.perf_counter()
    yield result
    result.seconds = time.perf_counter() - start


def victim(pipe: DiffusionPipeline, eraser: Eraser) -> DiffusionPipeline:
    """A pipeline with the eraser fused into a copy of the UNet; everything else is shared."""
    edited = type(pipe)(**{**pipe.components, "unet": copy.deepcopy(pipe.unet)}, requires_safety_checker=False)
    edited.set_progress_bar_config(disable=True)
    return eraser.apply(edited)


def erasers(folder: str | Path) -> dict[str, Eraser]:
    """The erase stage's erasers by method; raises FileNotFoundError naming the stage if there are none."""
    folder = study.root() / folder
    found = {path.stem: Eraser.load(path) for path in sorted(folder.glob("*.safetensors"))}
    if not found:
        raise FileNotFoundError(f"erasers: no eraser in {folder}; run the erase stage first (`dvc repro erase`)")
    return found


def victims(pipe: DiffusionPipeline, folder: str | Path) -> dict[str, DiffusionPipeline]:
    """The original pipeline and one victim per eraser in `folder`, by method."""
    return {ORIGINAL: pipe} | {method: victim(pipe, eraser) for method, eraser in erasers(folder).items()}


def attempt(
    attack: str,
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    cases: pd.DataFrame,
    world: World,
    concept: dict,
    budget: dict,
) -> Attempts:
    """Run one attack on the first `budget["n"]` cases (all, if the budget names no n); the rest of the budget is
    the attack's."""
    budget = dict(budget)
    asked = cases.head(budget.pop("n", len(cases)))
    return attacks.run(
        attack,
        victim,
        list(asked.prompt),
        list(asked.seed),
        original=original,
        concept=study.named(world, concept),
        **budget,
    )


def images_of(pipe: DiffusionPipeline, attempts: Attempts, generate: dict) -> np.ndarray:
    """Draw attempts, texts or embeddings: uint8 (n, h, w, 3)."""
    return draw(pipe, attempts.prompts, attempts.seeds, embeds=attempts.embeds, **generate)


def judge_attempts(
    victims: dict[str, DiffusionPipeline],
    folder: str | Path,
    attacks: list[str],
    cases: pd.DataFrame,
    judge: Judge,
    generate: dict,
    show: int,
    threshold: float,
) -> tuple[pd.DataFrame, dict]:
    """Draw and judge the attack stage's attempts.

    Returns the success table (method, attack, access, n, successes, rate, low, high, top1_rate,
    generate_seconds, judge_seconds), where top1_rate is the rate with no `threshold` on the judge's probability,
    and, for figures, {(method, attack): (first `show` images, whether each shows the concept)}.
    Raises FileNotFoundError naming the attack stage if an attempt is missing.
    """
    rows, shown = [], {}
    for method, pipe in victims.items():
        for attack in attacks:
            path = study.root() / folder / f"{method}-{attack}.safetensors"
            if not path.exists():
                raise FileNotFoundError(
                    f"attempts: {path} is missing; run the attack stage first (`dvc repro attack`)"
                )
            attempts = Attempts.load(path)
            with timer() as drawing:
                images = images_of(pipe, attempts, generate)
            with timer() as judging:
                verdict = judge.classify(images)
            hits, top1 = (study.hits(judge, verdict, cases.head(len(attempts)), least) for least in (threshold, 0.0))
            extra = {"top1_rate": top1.mean(), "generate_seconds": drawing.seconds, "judge_seconds": judging.seconds}
            rows.append(metrics.success(hits, method=method, attack=attack, access=attempts.access) | extra)
            shown[method, attack] = (images[:show], hits[:show])
    return pd.DataFrame(rows), shown


def preservation(
    victims: dict[str, DiffusionPipeline], others: pd.DataFrame, judge: Judge, generate: dict
) -> pd.DataFrame:
    """What prompts of other concepts still give, per method (rows: method).

    object_accuracy and style_accuracy with Wilson intervals; drift: mean absolute pixel difference (0..1) from the
    original's image of the same prompt and seed; judge_fid and judge_kid: between the method's and the original's
    images, in the judge's features (compare only within this study; 0 is equal).
    """
    rows, reference = [], None
    for method, pipe in victims.items():
        images = draw(pipe, list(others.prompt), list(others.seed), **generate)
        reference = images if reference is None else reference
        objects, styles = judge.labels(images)
        row = {"method": method, "n": len(others)}
        for kind, right in (("object", objects == others.object), ("style", styles == others["style"])):
            score = metrics.success(right.to_numpy())
            row |= {f"{kind}_accuracy": score["rate"], f"{kind}_low": score["low"], f"{kind}_high": score["high"]}
        row["drift"] = metrics.drift(images, reference).mean_abs
        row |= {"judge_fid": metrics.fid(images, reference, judge), "judge_kid": metrics.kid(images, reference, judge)}
        rows.append(row)
    return pd.DataFrame(rows)


def tradeoff(
    pipe: DiffusionPipeline, judge: Judge, world: World, concept: dict, settings: dict, sweep: dict, generate: dict
) -> pd.DataFrame:
    """Erasure against preservation for RECE as rounds and λ vary.

    Columns: lamb, rounds, attack_rate (of the strongest of sweep["attacks"]), kept (object accuracy on prompts of
    other concepts; of a style eraser, style accuracy). One erase per λ: its history holds every round.
    """
    cases = study.cases(world, concept, sweep["n"], sweep["seed"])
    others = study.others(world, concept, sweep["preserve_n"], sweep["seed"])
    rows, start = [], None
    for lamb in sweep["lamb"]:
        numbers = study.numbers(concept, "rece", settings) | {"lamb": lamb, "rounds": max(sweep["rounds"])}
        history = methods.run("rece", pipe, concept["erase"], **numbers).history
        for rounds in sweep["rounds"]:
            if rounds == 0 and start is not None:
                rows.append({"lamb": lamb, **start})
                continue
            edited = victim(pipe, Eraser(history[rounds]))
            reached = []
            for attack, budget in sweep["attacks"].items():
                images = images_of(edited, attempt(attack, edited, pipe, cases, world, concept, budget), generate)
                reached.append(study.hits(judge, judge.classify(images), cases, sweep["threshold"]).mean())
            objects, styles = judge.labels(draw(edited, list(others.prompt), list(others.seed), **generate))
            kept = styles == others["style"] if concept["kind"] == "style" else objects == others.object
            row = {"rounds": rounds, "attack_rate": max(reached), "kept": kept.mean()}
            start = row if rounds == 0 else start
            rows.append({"lamb": lamb, **row})
    return pd.DataFrame(rows)


def change(eraser: Eraser) -> np.ndarray:
    """Descending singular values of the eraser's map − I, (d,)."""
    return torch.linalg.svdvals(eraser.map - torch.eye(len(eraser.map), dtype=eraser.map.dtype)).numpy()


def by_method(shown: dict) -> tuple[dict, dict]:
    """Split {(method, attack): (images, hits)} into images[method][attack] and hits[method][attack]."""
    images, hits = {}, {}
    for (method, attack), (some, right) in shown.items():
        images.setdefault(method, {})[attack] = some
        hits.setdefault(method, {})[attack] = right
    return images, hits


def write_tables(folder: str | Path, **tables: pd.DataFrame) -> None:
    """Write each table as `folder/<name>.csv`, rounded to six digits."""
    folder = study.root() / folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")


def write_images(folder: str | Path, shown: dict) -> None:
    """Keep the images for the figures: `folder/shown.npz`."""
    arrays = {
        f"{method}/{attack}/{kind}": value
        for (method, attack), pair in shown.items()
        for kind, value in zip(("images", "hits"), pair, strict=True)
    }
    np.savez_compressed(study.root() / folder / "shown.npz", **arrays)


def read_images(folder: str | Path) -> dict:
    """What `write_images` kept."""
    with np.load(study.root() / folder / "shown.npz", allow_pickle=False) as file:
        keys = {tuple(name.split("/")[:2]): None for name in file.files}
        return {key: (file["/".join([*key, "images"])], file["/".join([*key, "hits"])]) for key in keys}


def gather(results: str | Path, concepts: list[str], stage: str, table: str) -> pd.DataFrame:
    """One table from those of all concepts; raises FileNotFoundError naming the stage if one is missing."""
    parts = []
    for name in concepts:
        path = study.root() / results / stage / name / f"{table}.csv"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; run `dvc repro {stage}` first")
        parts.append(pd.read_csv(path))
    return pd.concat(parts, ignore_index=True)


def write_metrics(path: str | Path, success: pd.DataFrame, kept: pd.DataFrame) -> None:
    """The tables' rates as nested JSON for `dvc metrics`: concept → method → number."""
    tree = {}
    for row in success.itertuples():
        tree.setdefault(row.concept, {}).setdefault(row.method, {})[f"success_{row.attack}"] = round(row.rate, 4)
    for row in kept.itertuples():
        numbers = {
            "object_accuracy": row.object_accuracy,
            "style_accuracy": row.style_accuracy,
            "drift": row.drift,
            "judge_kid": row.judge_kid,
        }
        tree[row.concept][row.method] |= {key: round(value, 4) for key, value in numbers.items()}
    (study.root() / path).write_text(json.dumps(tree, indent=1) + "\n")
