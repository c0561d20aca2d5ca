"""What the stage notebooks call: victims, attempts, judgements, preservation, sweeps, and the files between stages."""

import copy
import time
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline

from rece import attacks, methods, metrics, study
from rece.attacks import Attempts
from rece.certificate import Certificate, certify
from rece.emoji.world import World
from rece.eraser import Eraser
from rece.generate import generate as draw
from rece.judges.embedded import Judge

ORIGINAL, CONTROL, ANY = "original", "control", "any"


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


def victims(
    pipe: DiffusionPipeline, folder: str | Path, control: str | Path | None = None
) -> dict[str, DiffusionPipeline]:
    """The original pipeline and one victim per eraser in `folder`, by method, and the control if one is named.

    control: a folder with a UNet that never saw the concept, to stand in the original's place.
    """
    found = {ORIGINAL: pipe} | {method: victim(pipe, eraser) for method, eraser in erasers(folder).items()}
    if control is not None:
        found[CONTROL] = study.control(pipe, control)
    return found


def budgets(attack: dict) -> dict[str, dict]:
    """The attacks to run and their budgets, by the section `attack` of params.yaml: quick or full.

    A budget may hold, beside the attack's own keywords, `attack` (which attack it is, if its name is another), `n` (on
    how many of the prompts it is run) and `control` (whether it is run on the control too).
    """
    return attack[attack["budget"]]


def module(name: str, budget: dict) -> str:
    """The attack that a line of the budget runs."""
    return budget.get("attack", name)


def sources(name: str, budget: dict, victims: dict[str, DiffusionPipeline]) -> dict[str, DiffusionPipeline]:
    """The models an attack is run against, by name: all erased ones if it looks at them, else the original alone,
    under the name "any"."""
    if attacks.access(module(name, budget)) in ("none", "grey"):
        return {ANY: victims[ORIGINAL]}
    left_out = {ORIGINAL} if budget.get("control") else {ORIGINAL, CONTROL}
    return {method: victim for method, victim in victims.items() if method not in left_out}


def attempt(
    name: str,
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    cases: pd.DataFrame,
    world: World,
    concept: dict,
    budget: dict,
) -> Attempts:
    """Run one attack on the first `budget["n"]` cases (all, if the budget names no n); see `budgets`."""
    keywords = {key: value for key, value in budget.items() if key not in ("attack", "n", "control")}
    asked = cases.head(budget.get("n", len(cases)))
    return attacks.run(
        module(name, budget),
        victim,
        list(asked.prompt),
        list(asked.seed),
        original=original,
        concept=study.named(world, concept),
        **keywords,
    )


def images_of(pipe: DiffusionPipeline, attempts: Attempts, generate: dict) -> np.ndarray:
    """Draw attempts, texts or embeddings: uint8 (n, h, w, 3)."""
    return draw(pipe, attempts.prompts, attempts.seeds, embeds=attempts.embeds, **generate)


def draw_attempts(
    victims: dict[str, DiffusionPipeline],
    folder: str | Path,
    budgets: dict[str, dict],
    cases: pd.DataFrame,
    judge: Judge,
    generate: dict,
    threshold: float,
    show: int,
) -> tuple[pd.DataFrame, dict]:
    """Draw and judge the attack stage's attempts with every model they are meant for.

    Those that no erased model was looked at for are drawn with all models; those found against one with that one, and
    if they are texts, with the others too. The control draws plain prompts and what was found against it.

    Returns one row per image, and for figures {(method, attack): (first `show` images, whether each is a success)} of
    each method's own attempts. Columns: method (the model that drew), attack, access, kind ("text" or "embedding"),
    source (the model it was found against, or "any"), case (row of `cases`), prompt (the attempt's), asked (the
    case's), seed, label and probability (the judge's answer), top1 (whether it is the concept), hit (and is at least
    `threshold` sure), seconds (of drawing).
    Raises FileNotFoundError naming the attack stage if an attempt is missing.
    """
    parts, shown = [], {}
    for name, budget in budgets.items():
        for source in sources(name, budget, victims):
            path = study.root() / folder / f"{source}-{name}.safetensors"
            if not path.exists():
                raise FileNotFoundError(
                    f"attempts: {path} is missing; run the attack stage first (`dvc repro attack`)"
                )
            attempts = Attempts.load(path)
            asked = cases.head(len(attempts)).reset_index(drop=True)
            for method, pipe in victims.items():
                transferred = source not in (ANY, method)
                if transferred and (attempts.prompts is None or CONTROL in (source, method)):
                    continue
                if method == CONTROL and source == ANY and name != "plain":
                    continue
                with timer() as drawing:
                    images = images_of(pipe, attempts, generate)
                answers = study.labelled(judge, judge.classify(images), asked)
                row = {"method": method, "attack": name, "access": attempts.access}
                row |= {"kind": "text" if attempts.embeds is None else "embedding", "source": source}
                part = pd.DataFrame({**row, "case": range(len(attempts)), "prompt": attempts.prompts or ""})
                part["asked"], part["seed"] = asked.prompt, attempts.seeds
                part["label"], part["probability"], part["top1"] = answers.label, answers.probability, answers.wanted
                part["hit"] = part.top1 & (part.probability >= threshold)
                part["seconds"] = drawing.seconds / len(part)
                parts.append(part)
                if not transferred:
                    shown[method, name] = (images[:show], part.hit.to_numpy()[:show])
    return pd.concat(parts, ignore_index=True), shown


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


def frontier(
    pipe: DiffusionPipeline, judge: Judge, world: World, concept: dict, erase: dict, sweep: dict, generate: dict
) -> pd.DataFrame:
    """Erasure against preservation, one row per eraser, as each method's numbers vary over sweep["grid"].

    grid: for each method, one or more grids, each a list of values for any of its numbers; `rounds` may hold "auto".
    Columns: method; lamb, preserve_scale, rounds (of UCE its own lambda and scale, and 0), auto (whether the
    certificate chose the rounds); text (success rate of the strongest attack by prompts in sweep["attacks"]) with
    text_low, text_high and text_attack; embedding (of the strongest by embeddings) with embedding_low, embedding_high;
    kept (object accuracy on prompts of other concepts; of a style eraser style accuracy) with kept_low, kept_high;
    certified (the certificate's least relative distance). sweep["attacks"] must hold one of each kind.
    """
    cases = study.cases(world, concept, sweep["n"], sweep["seed"])
    others = study.others(world, concept, sweep["preserve_n"], sweep["seed"])
    rows, measured = [], {}
    for method, grid in ((method, grid) for method, grids in sweep["grid"].items() for grid in grids):
        for values in product(*grid.values()):
            numbers = study.numbers(concept, method, erase[method]) | dict(zip(grid, values, strict=True))
            eraser = methods.run(method, pipe, concept["erase"], **numbers)
            made, n = eraser.provenance, eraser.provenance["rounds_run"]
            start = "uce_" if n == 0 else ""
            row = {"method": method, "lamb": made[f"{start}lamb"], "preserve_scale": made[f"{start}preserve_scale"]}
            row |= {"rounds": n, "auto": numbers.get("rounds") == "auto"}
            key = eraser.map.numpy().tobytes()
            if key not in measured:  # "auto" may choose rounds that are on the grid
                measured[key] = _measure(pipe, eraser, judge, world, concept, cases, others, sweep, generate)
            rows.append(row | measured[key])
    return pd.DataFrame(rows)


def _measure(pipe, eraser, judge, world, concept, cases, others, sweep, generate) -> dict:
    """A row of `frontier` for one eraser."""
    edited = victim(pipe, eraser)
    found = {"text": [], "embedding": []}
    for name, budget in sweep["attacks"].items():
        attempts = attempt(name, edited, pipe, cases, world, concept, budget)
        asked = cases.head(len(attempts))
        hits = study.hits(judge, judge.classify(images_of(edited, attempts, generate)), asked, sweep["threshold"])
        found["text" if attempts.embeds is None else "embedding"].append(metrics.success(hits, attack=name))
    objects, styles = judge.labels(draw(edited, list(others.prompt), list(others.seed), **generate))
    right = styles == others["style"] if concept["kind"] == "style" else objects == others.object
    text, kept = max(found["text"], key=lambda row: row["rate"]), metrics.success(right.to_numpy())
    row = {"text": text["rate"], "text_low": text["low"], "text_high": text["high"], "text_attack": text["attack"]}
    worst = max(found["embedding"], key=lambda row: row["rate"])
    row |= {"embedding": worst["rate"], "embedding_low": worst["low"], "embedding_high": worst["high"]}
    row |= {"kept": kept["rate"], "kept_low": kept["low"], "kept_high": kept["high"]}
    certificate = certify(pipe, eraser, concept["erase"], target=concept["target"])
    return row | {"certified": certificate.relative}


def certificates(pipe: DiffusionPipeline, erasers: dict[str, Eraser], world: World, concept: dict) -> pd.DataFrame:
    """What can be proven of each method after each of its rounds, one row per erased text.

    Columns: method, round, the columns of the last word token in `Certificate.table`, and end_distance and end_target
    of the end token. Compared with all other concepts of its kind and with all its synonyms.
    """
    known = {"target": concept["target"], "others": study.innocents(world, concept)}
    known["synonyms"] = study.synonyms(world, concept)
    plain = certify(pipe, None, concept["erase"], **known)
    parts = [_by_text(plain, ORIGINAL, 0)]
    for method, eraser in erasers.items():
        for step, map in enumerate(eraser.history):
            found = certify(pipe, Eraser(map), concept["erase"], target=concept["target"])
            found.table[["other", "synonym", "nearest"]] = plain.table[["other", "synonym", "nearest"]]
            parts.append(_by_text(found, method, step))
    return pd.concat(parts, ignore_index=True)


def _by_text(certificate: Certificate, method: str, step: int) -> pd.DataFrame:
    words = certificate.table[certificate.table["last"]].reset_index(drop=True)
    ends = certificate.table[certificate.table.kind == "end"].reset_index(drop=True)
    words = words.drop(columns=["kind", "last", "position"]).assign(end_distance=ends.distance, end_target=ends.target)
    words.insert(0, "method", method)
    words.insert(1, "round", step)
    return words


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
