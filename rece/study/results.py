"""The files of results/: tables, images, prompts and metrics, written by one stage and gathered by the next."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from rece.eraser import Eraser
from rece.study import config


def write_tables(folder: str | Path, **tables: pd.DataFrame) -> None:
    """Write each table as `folder/<name>.csv`, rounded to six digits."""
    folder = config.root() / folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")


def write_packed(folder: str | Path, **tables: pd.DataFrame) -> None:
    """Write each table as `folder/<name>.csv.gz`; equal tables give equal bytes."""
    for name, table in tables.items():
        path = config.root() / folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False, compression={"method": "gzip", "mtime": 0})


def write_images(folder: str | Path, shown: dict) -> None:
    """Keep the images for the figures: `folder/shown.npz`."""
    arrays = {
        f"{method}/{attack}/{kind}": value
        for (method, attack), pair in shown.items()
        for kind, value in zip(("images", "hits"), pair, strict=True)
    }
    np.savez_compressed(config.root() / folder / "shown.npz", **arrays)


def read_images(folder: str | Path) -> dict:
    """What `write_images` kept."""
    with np.load(config.root() / folder / "shown.npz", allow_pickle=False) as file:
        keys = {tuple(name.split("/")[:2]): None for name in file.files}
        return {key: (file["/".join([*key, "images"])], file["/".join([*key, "hits"])]) for key in keys}


def write_prompts(path: Path, drawn: pd.DataFrame, concept: str, budgets: dict, tokenizer, threshold: float) -> int:
    """The prompts that attacks made, as JSON lines, one per prompt; returns how many.

    Keys: concept; attack, access, budget; found_against (a method, or "any" if no erased model was looked at); asked,
    the plain prompt it started from; prompt and token_ids, which are each other's under the model's tokenizer; seed of
    the image; shows, for each model that drew it, the judge's probability if its answer is the concept, else 0; and
    threshold, from which on that counted as a success.
    """
    texts, lines = drawn[(drawn.kind == "text") & (drawn.attack != "plain") & ~drawn.own_prompts.astype(bool)], []
    for (attack, source, _), part in texts.groupby(["attack", "source", "case"], sort=False):
        first = part.iloc[0]
        shows = {row.method: round(float(row.probability) if row.top1 else 0.0, 4) for row in part.itertuples()}
        line = {"concept": concept, "attack": attack, "access": first.access, "budget": budgets[attack]}
        line |= {"found_against": source, "asked": first.asked, "prompt": first.prompt}
        line |= {"token_ids": tokenizer(first.prompt).input_ids, "seed": int(first.seed)}
        lines.append(json.dumps(line | {"shows": shows, "threshold": threshold}, ensure_ascii=False))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def write_settings(path: Path, judge, evaluate: dict, generate: dict, model: str | dict) -> None:
    """What must be said beside every number of the evaluation: the judge, the scores, the sampler and the model."""
    described = None if judge is None else judge.describe()
    settings = {"judge": described, "threshold": evaluate["threshold"], "scores": evaluate["scores"]}
    settings |= {"generate": generate, "model": model}
    Path(path).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_settings(folder: Path) -> pd.DataFrame:
    """What `write_settings` kept for each concept in the folder: one row per concept, one column per setting."""
    found = {path.parent.name: json.loads(path.read_text("utf-8")) for path in Path(folder).glob("*/settings.json")}
    return pd.DataFrame.from_dict(found, orient="index").sort_index()


def gather(results: str | Path, concepts: list[str], stage: str, table: str) -> pd.DataFrame:
    """One table from those of all concepts; raises FileNotFoundError naming the stage if one is missing."""
    parts = []
    for name in concepts:
        path = config.root() / results / stage / name / f"{table}.csv"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; run `dvc repro {stage}` first")
        parts.append(pd.read_csv(path))
    return pd.concat(parts, ignore_index=True)


def gather_prompts(results: str | Path, concepts: list[str], path: Path) -> None:
    """All concepts' prompts.jsonl in one file; see `write_prompts`."""
    parts = [config.root() / results / "evaluate" / name / "prompts.jsonl" for name in concepts]
    Path(path).write_text("".join(part.read_text(encoding="utf-8") for part in parts), encoding="utf-8")


def write_metrics(path: str | Path, success: pd.DataFrame, kept: pd.DataFrame, union: pd.DataFrame) -> None:
    """The handful of numbers that matter, as JSON for `dvc metrics`: by method, the mean over the concepts.

    plain, embedding: success of plain prompts and of the closed-form embedding. any_prompt: of all prompts together.
    kept: accuracy on other concepts, of a style on other styles. The tables hold every number by concept.
    """
    style = kept.kind_of_concept == "style"
    right = kept.style_accuracy.where(style, kept.object_accuracy)
    parts = {
        "plain": success[success.attack == "plain"].groupby("method").rate.mean(),
        "any_prompt": union[union.scope == "text"].groupby("method").rate.mean(),
        "embedding": success[success.attack == "closed_form"].groupby("method").rate.mean(),
        "kept": right.groupby(kept.method).mean(),
    }
    numbers = pd.DataFrame(parts).drop(index="control", errors="ignore").round(4)
    tree = {method: row.dropna().to_dict() for method, row in numbers.iterrows()}
    (config.root() / path).write_text(json.dumps(tree, indent=1) + "\n")


def read_erasers(folder: str | Path) -> dict[str, Eraser]:
    """The erase stage's erasers by method; raises FileNotFoundError naming the stage if there are none."""
    folder = config.root() / folder
    found = {path.stem: Eraser.load(path) for path in sorted(folder.glob("*.safetensors"))}
    if not found:
        raise FileNotFoundError(f"erasers: no eraser in {folder}; run the erase stage first (`dvc repro erase`)")
    return found


def by_method(shown: dict) -> tuple[dict, dict]:
    """Split {(method, attack): (images, hits)} into images[method][attack] and hits[method][attack]."""
    images, hits = {}, {}
    for (method, attack), (some, right) in shown.items():
        images.setdefault(method, {})[attack] = some
        hits.setdefault(method, {})[attack] = right
    return images, hits
