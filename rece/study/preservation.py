"""What an eraser leaves as it was: prompts that do not ask for the concept, drawn by every method and scored."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
from diffusers import DiffusionPipeline

from rece.emoji.world import World
from rece.images import generate as draw
from rece.judges import scores
from rece.sharing.prompts import match_images
from rece.study import config, plan, statistics
from rece.study.experiment import ORIGINAL, drawn_in_batches, images_folder
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
    rows, reference, fid = [], None, None
    size = 20  # prompts of a cell
    jobs = [(method, others[start : start + size]) for method in victims for start in range(0, len(others), size)]
    drawn = cells(lambda job: draw(victims[job[0]], list(job[1].prompt), list(job[1].seed), **generate), jobs, "draw")
    for method in victims:
        images = np.concatenate([part for (of, _), part in zip(jobs, drawn, strict=True) if of == method])
        reference = images if reference is None else reference
        objects, styles = judge.labels(images)
        row = {"method": method, "n": len(others)}
        for kind, right in (("object", objects == others.object), ("style", styles == others["style"])):
            score = statistics.success_rate(right.to_numpy())
            row |= {f"{kind}_accuracy": score["rate"], f"{kind}_low": score["low"], f"{kind}_high": score["high"]}
        fid = fid or scores.FID(images, features=judge, resize=None, batch_size=256, device="cpu")
        row |= {"drift": scores.drift(images, reference), "judge_fid": fid(images)["value"]}
        row["judge_kid"] = scores.kid(images, reference, judge)
        rows.append(row)
    return pd.DataFrame(rows)


def kept_sets(
    victims: dict[str, DiffusionPipeline], concept: dict, judge, generate: dict, evaluate: dict
) -> pd.DataFrame:
    """Scores of each method's photographs on the concept's sets of prompts in `kept`: one row per set, method, score.

    Scores, with their settings in evaluate["scores"]: accuracy, how often the judge sees the prompt's own label; clip,
    the agreement of image and prompt; lpips, the distance from the original model's image of the same prompt and seed;
    fid, from photographs found by the set's column coco_id in the folder `reference`.
    Columns: set, method, score, value, low, high (95 %: Wilson for accuracy, normal for means; nan for FID), n.
    Raises ValueError or FileNotFoundError naming the parameter before anything is drawn.
    """
    settings, sets = evaluate["scores"] or {}, {}
    for name, source in concept.get("kept", {}).items():
        rows, wanted = plan.from_file(source), source["scores"]
        unknown = sorted(set(wanted) - set(settings))
        if unknown:
            raise ValueError(f"kept.{name}: no settings for {unknown[0]!r} in evaluate.scores")
        if "accuracy" in wanted and judge is None:
            raise ValueError(f"kept.{name}: accuracy needs a judge: give `judge`, or leave accuracy out")
        own = [column for column in ("guidance", "width", "height") if column in rows]
        if evaluate["images"] is None and len(rows[own].drop_duplicates()) > 1:
            raise ValueError(f"kept.{name}: its rows differ in guidance or size: give a folder as evaluate.images")
        photographs = None
        if "fid" in wanted:
            folder = settings["fid"].get("reference")
            if folder is None:
                wanted = [score for score in wanted if score != "fid"]
            elif "coco_id" not in rows:
                raise ValueError(f"kept.{name}: fid needs a column coco_id, which {source['file']} lacks")
            else:
                photographs = match_images(rows.coco_id, config.root() / folder)
        sets[name] = rows, wanted, photographs
    found = []
    for name, (rows, wanted, photographs) in sets.items():
        numbers = {score: {k: v for k, v in settings[score].items() if k != "reference"} for score in wanted}
        fid = None
        if "fid" in wanted:  # the photographs are read once for all methods
            fid = scores.FID(scores.reference_batches(photographs, numbers["fid"].get("size", 299)), **numbers["fid"])
        originals = None
        for method, pipe in victims.items() if wanted else ():
            drawn = partial(
                drawn_in_batches, pipe, rows, generate, images_folder(evaluate, concept, method, f"kept-{name}")
            )
            if evaluate["images"] is None:  # no folder to read from again: hold the images for all scores
                drawn = partial(iter, list(drawn()))
            originals = drawn if method == ORIGINAL else originals
            for score in wanted:
                row = {"set": name, "method": method, "score": score, "n": len(rows)}
                if score == "accuracy":
                    answers = [judge.answers(pictures, part.reset_index(drop=True)) for part, pictures in drawn()]
                    right = statistics.success_rate(plan.hits(judge, pd.concat(answers, ignore_index=True)))
                    found.append(row | {"value": right["rate"], "low": right["low"], "high": right["high"]})
                elif score == "clip":
                    found.append(row | _mean(scores.clip_score(_images(drawn), list(rows.prompt), **numbers["clip"])))
                elif score == "lpips":
                    found.append(row | _mean(scores.lpips(_images(drawn), _images(originals), **numbers["lpips"])))
                else:
                    found.append(row | {"value": fid(_images(drawn))["value"]})
    return pd.DataFrame(found, columns=["set", "method", "score", "value", "low", "high", "n"])


def _images(drawn: Callable) -> Iterator[np.ndarray]:
    """The batches of images alone, without their rows."""
    return (images for _, images in drawn())


def _mean(values: np.ndarray) -> dict:
    """A mean and its 95 % interval by the normal approximation."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return {"value": values.mean(), "low": values.mean() - half, "high": values.mean() + half}
