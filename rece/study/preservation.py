"""What an eraser leaves as it was: prompts that do not ask for the concept, drawn by every method and scored."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from diffusers import DiffusionPipeline

from rece.emoji.world import World
from rece.judges import scores
from rece.sharing.prompts import match_images
from rece.study import config, plan, statistics
from rece.study.experiment import ORIGINAL, drawn, images_folder, images_of
from rece.study.parallel import cells


def measure(
    victims: dict[str, DiffusionPipeline], world: World, concept: dict, judge, generate: dict, evaluate: dict
) -> pd.DataFrame:
    """What prompts that do not ask for the concept still give, one row per method; of photographs see `kept_sets`.

    object_accuracy and style_accuracy with Wilson intervals; drift: mean absolute pixel difference (0..1) from the
    original's image of the same prompt and seed; judge_fid and judge_kid: between the method's and the original's
    images, in the judge's features (compare only within this study; 0 is equal).
    """
    if "asked" in concept:
        return kept_sets(victims, concept, judge, generate, evaluate)
    others = plan.others(world, concept, evaluate["n"], evaluate["seed"])
    size = 20  # prompts of a cell
    jobs = [(method, others[start : start + size]) for method in victims for start in range(0, len(others), size)]
    parts = cells(lambda job: images_of(victims[job[0]], job[1], generate), jobs, "draw")
    made = {
        method: np.concatenate([part for (of, _), part in zip(jobs, parts, strict=True) if of == method])
        for method in victims
    }
    reference, rows = made[ORIGINAL], []
    fid = scores.FID(reference, features=judge, resize=None, batch_size=256, device="cpu")
    for method, images in made.items():
        objects, styles = judge.labels(images)
        row = {"method": method, "n": len(others)}
        for kind, right in (("object", objects == others.object), ("style", styles == others["style"])):
            score = statistics.success_rate(right.to_numpy())
            row |= {f"{kind}_accuracy": score["rate"], f"{kind}_low": score["low"], f"{kind}_high": score["high"]}
        row |= {"drift": scores.drift(images, reference), "judge_fid": fid(images)["value"]}
        rows.append(row | {"judge_kid": scores.kid(images, reference, judge)})
    return pd.DataFrame(rows)


def kept_sets(
    victims: dict[str, DiffusionPipeline], concept: dict, judge, generate: dict, evaluate: dict
) -> pd.DataFrame:
    """Scores of each method's photographs on the concept's sets of prompts in `kept`: one row per set, method, score.

    Scores, with their settings in evaluate["scores"]: accuracy, how often the judge sees the prompt's own label; clip,
    the agreement of image and prompt; lpips, the distance from the original model's image of the same prompt and seed;
    fid, from photographs found by the set's column coco_id in the folder `reference`, or left out if that is null.
    Columns: set, method, score, value, low, high (95 %: Wilson for accuracy, normal for means; nan for FID), n.
    Raises ValueError or FileNotFoundError naming the parameter before anything is drawn.
    """
    settings, sets = evaluate["scores"] or {}, []
    for name, source in concept.get("kept", {}).items():
        rows, wanted = plan.from_file(source), source["scores"]
        unknown = sorted(set(wanted) - set(settings))
        if unknown:
            raise ValueError(f"kept.{name}: no settings for {unknown[0]!r} in evaluate.scores")
        if "accuracy" in wanted and judge is None:
            raise ValueError(f"kept.{name}: accuracy needs a judge: give `judge`, or leave accuracy out")
        numbers, photographs = {score: dict(settings[score]) for score in wanted}, None
        if "fid" in wanted:
            folder = numbers["fid"].pop("reference", None)
            if folder is None:
                del numbers["fid"]
            elif "coco_id" not in rows:
                raise ValueError(f"kept.{name}: fid needs a column coco_id, which {source['file']} lacks")
            else:
                photographs = match_images(rows.coco_id, config.root() / folder)
        sets.append((name, source, rows, numbers, photographs))
    found = []
    for name, source, rows, numbers, photographs in sets:
        if photographs:  # read once for all methods
            given = numbers["fid"]
            fid = scores.FID(scores.reference_batches(photographs, given.get("size", 299)), **given)
        there = {method: _folder(evaluate, concept, method, name, source) for method in victims}
        for method, pipe in victims.items():
            images = partial(_images, pipe, rows, generate, there[method])
            for score, given in numbers.items():
                if score == "accuracy":
                    parts = drawn(pipe, rows, generate, folder=there[method])
                    answers = [judge.answers(some, part.reset_index(drop=True)) for part, some in parts]
                    right = statistics.success_rate(plan.hits(judge, pd.concat(answers, ignore_index=True)))
                    value = {"value": right["rate"], "low": right["low"], "high": right["high"]}
                elif score == "clip":
                    value = _mean(scores.clip_score(images(), list(rows.prompt), **given))
                elif score == "lpips":
                    originals = _images(victims[ORIGINAL], rows, generate, there[ORIGINAL])
                    value = _mean(scores.lpips(images(), originals, **given))
                else:
                    value = {"value": fid(images())["value"]}
                found.append({"set": name, "method": method, "score": score, "n": len(rows)} | value)
    return pd.DataFrame(found, columns=["set", "method", "score", "value", "low", "high", "n"])


def _images(pipe: DiffusionPipeline, rows: pd.DataFrame, generate: dict, folder: Path | None) -> Iterator[np.ndarray]:
    """The batches of images alone, without their rows."""
    return (images for _, images in drawn(pipe, rows, generate, folder=folder))


def _folder(evaluate: dict, concept: dict, method: str, name: str, source: dict) -> Path | None:
    """Where images of a set go; those of the original model serve all concepts if the set is a whole file."""
    if evaluate["images"] and method == ORIGINAL and set(source) <= {"file", "scores"}:
        return config.root() / evaluate["images"] / ORIGINAL / Path(source["file"]).stem
    return images_folder(evaluate, concept, method, f"kept-{name}")


def _mean(values: np.ndarray) -> dict:
    """A mean and its 95 % interval by the normal approximation."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return {"value": values.mean(), "low": values.mean() - half, "high": values.mean() + half}
