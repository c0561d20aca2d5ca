"""The study's plan: which prompts are asked of a model, and which answers count as the concept.

A concept's section in params.yaml is about the embedded model's world (data/concepts.yaml), or, if it names files of
prompts, about photographs. `python -m rece.study FILE` checks a file of parameters.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from diffusers import DiffusionPipeline, UNet2DConditionModel

from rece import loading, prompts
from rece.emoji import world as worlds
from rece.emoji.world import World

KINDS = ("object", "style", "category", "joint")
CONCEPT = {"kind", "erase", "target"}
# judge: instead of the study's. attacks: those of the budget that are run, if not all. Of photographs: asked, sets of
# prompts that ask for it, attacks being run on the first; preserve, a file whose labels are preserved; known, what
# attacks may know; kept, sets of prompts that should stay as they are; others, synonyms, texts for the certificate.
CONCEPT_TOO = {"numbers", "judge", "attacks", "others", "synonyms", "asked", "preserve", "known", "kept"}
FILE = {"file", "label", "without", "where", "n", "scores"}  # of a set of prompts, see `from_file`


def root() -> Path:
    """The checkout: the nearest folder above the working directory with a params.yaml, so that notebooks run
    anywhere in it."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "params.yaml").exists():
            return folder
    raise FileNotFoundError("no params.yaml in this folder or above it: work inside a checkout of the repository")


def params(path: Path | None = None) -> dict:
    """Read and check a file of parameters, params.yaml by default; raises ValueError naming the first wrong key."""
    path = Path(path or root() / "params.yaml")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: no YAML ({' '.join(str(error).split())})") from None
    check(tree, STUDY | (EMBEDDED if set(tree) & set(EMBEDDED) else {}), path.name)
    for key in {"concepts", "sweep_concepts", "validation"} & set(tree):
        for name in tree[key]:
            if name not in tree["concept"]:
                raise ValueError(f"{path.name}: {key} lists {name!r}, but concept has no section {name!r}")
    budget = tree["attack"]["budget"]
    if budget not in tree["attack"] or budget in ("n", "seed", "budget"):
        raise ValueError(f"{path.name}: attack.budget must be one of the budgets in attack, not {budget!r}")
    for name, section in tree["concept"].items():
        where = f"{path.name}: concept.{name}"
        check(section, dict.fromkeys(CONCEPT), where, CONCEPT_TOO)
        if section["kind"] not in KINDS:
            raise ValueError(f"{where}.kind must be one of {', '.join(KINDS)}, not {section['kind']!r}")
        there_are = {attack for key in ("quick", "full") for attack in tree["attack"][key]}
        unknown = sorted(set(section.get("attacks", [])) - there_are)
        if unknown:
            raise ValueError(
                f"{where}.attacks: there is no {unknown[0]!r} in attack; there are {', '.join(sorted(there_are))}"
            )
        methods = tree["erase"]
        unknown = sorted(set(section.get("numbers", {})) - set(methods))
        if unknown:
            raise ValueError(f"{where}.numbers: there is no {unknown[0]!r} in erase; there are {', '.join(methods)}")
        for sets, needed in (("asked", ["file"]), ("kept", ["file", "scores"])):
            for key, source in section.get(sets, {}).items():
                check(source or {}, dict.fromkeys(needed), f"{where}.{sets}.{key}", FILE)
    return tree


# The sections that every study has, and those of the embedded model's own.
STUDY = {
    "model": None, "control": None, "judge": None,
    "generate": {"steps": None, "guidance": None, "batch_size": None, "bf16": None},
    "concepts": None, "concept": None, "erase": None,
    "attack": {"n": None, "seed": None, "budget": None, "quick": None, "full": None},
    "evaluate": dict.fromkeys(["n", "seed", "show", "threshold", "images", "scores"]),
}  # fmt: skip
EMBEDDED = {
    "sweep_concepts": None, "validation": None,
    "sweep": dict.fromkeys(["n", "preserve_n", "seed", "threshold", "grid", "attacks"]),
    "dataset": {"objects": None, "variants": None, "phrases": None, "seed": None},
    "pretrain": {"text": None, "vae": None, "unet": None, "seed": None},
    "train_control": {"without": None, "minutes": None, "seed": None},
    "train_judge": {"minutes": None, "held_out": None, "seed": None},
}  # fmt: skip


def check(tree: dict, expected: dict, where: str, optional: Iterable[str] = ()) -> None:
    """Raise ValueError if `tree` has keys that neither `expected` nor `optional` has, or lacks keys of `expected`,
    where None stands for any value."""
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: must have the keys {', '.join(sorted(expected))}, not be {tree!r}")
    known = {*expected, *optional}
    unknown, missing = sorted(set(tree) - known), sorted(set(expected) - set(tree))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(known))}")
    if missing:
        raise ValueError(f"{where}: the key {missing[0]!r} is missing")
    for key, inner in expected.items():
        if inner is not None:
            check(tree[key], inner, f"{where}: {key}")


def load(model: str | dict) -> DiffusionPipeline:
    """The pipeline of a folder (relative to the checkout), or what a dict of the keywords of `loading.load` names.

    By default in float32, on the GPU if there is one.
    """
    keywords = {"model": model} if isinstance(model, str) else dict(model)
    folder = root() / keywords.get("model", "")
    if folder.exists():
        keywords["model"] = folder
    elif "revision" not in keywords:
        raise FileNotFoundError(
            f"model: there is no folder {keywords.get('model')!r} in the checkout; correct `model` in params.yaml, or "
            "give the revision of a hub id"
        )
    return loading.load(**keywords)


def control(pipe: DiffusionPipeline, folder: str | Path) -> DiffusionPipeline:
    """A pipeline like `pipe` with the UNet of `folder` (relative to the checkout); everything else is shared.

    Raises FileNotFoundError if there is no UNet.
    """
    if not (root() / folder / "config.json").exists():
        raise FileNotFoundError(f"control: there is no UNet in {str(folder)!r}; correct `control` in params.yaml")
    unet = UNet2DConditionModel.from_pretrained(root() / folder, dtype=pipe.unet.dtype)
    other = type(pipe)(**{**pipe.components, "unet": unet.to(pipe.device).eval()}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def numbers(concept: dict, method: str, settings: dict) -> dict:
    """What a method gets for a concept: the target, the method's settings, and the concept's own over them.

    The labels of a file in `preserve`, but for those that are erased, are preserved; compared in lower case and as a
    whole, as the published code does.
    """
    if "preserve" in concept:
        labels = dict.fromkeys(prompts.read(root() / concept["preserve"]).table.label)
        erased = {text.lower() for text in concept["erase"]}
        settings = settings | {"preserve": [label for label in labels if label.lower() not in erased]}
    return {"target": concept["target"], **settings, **concept.get("numbers", {}).get(method, {})}


def members(world: World, concept: dict) -> list[str]:
    """The concepts of the world that a section of params.yaml erases: objects (of a category all members) or one
    style."""
    names = {words[0]: name for name, words in world.words.items()}
    unknown = [name for name in concept["erase"] if name not in names]
    if unknown:
        raise ValueError(f"concept.erase: {unknown[0]!r} is no concept of data/concepts.yaml")
    found = [names[name] for name in concept["erase"]]
    return [name for name in found if name not in world.members]


def named(world: World, concept: dict) -> list[dict]:
    """What attacks may know of each erased concept: name, caption words, held-out words, and pairs with and without
    it. Of photographs: `known` of the concept's section, with a file of pairs; by default the erased texts."""
    if "asked" in concept:
        known = concept.get("known", {})
        pairs = prompts.read_pairs(root() / known["pairs"]) if "pairs" in known else []
        words = known.get("words", concept["erase"])
        name = " and ".join(concept["erase"])
        return [{"name": name, "words": words, "held_out": known.get("held_out", []), "pairs": pairs}]
    found = []
    for name in members(world, concept):
        word = world.words[name][0]
        if name in world.packages:
            pairs = [
                (worlds.prompt(world.words[o][0], word), worlds.prompt(world.words[o][0], "emoji"))
                for o in world.objects
            ]
        else:
            styles = [None, *(world.words[style][0] for style in world.styles)]
            pairs = [(worlds.prompt(word, style), worlds.prompt("picture", style)) for style in styles]
        found.append({"name": name, "words": world.words[name], "held_out": world.held_out[name], "pairs": pairs})
    return found


def synonyms(world: World, concept: dict) -> dict[str, list[str]]:
    """The other caption words and the held-out words of each text that a section of params.yaml erases."""
    if "asked" in concept:
        return concept.get("synonyms", {})
    names = {words[0]: name for name, words in world.words.items()}
    return {text: world.words[names[text]][1:] + world.held_out[names[text]] for text in concept["erase"]}


def innocents(world: World, concept: dict) -> list[str]:
    """The names of all concepts of the same kind, objects or styles, that are not erased; of photographs `others`."""
    if "asked" in concept:
        return concept.get("others", [])
    erased = set(members(world, concept))
    return [
        world.words[name][0]
        for name in (world.styles if concept["kind"] == "style" else world.objects)
        if name not in erased
    ]


def from_file(source: dict) -> pd.DataFrame:
    """A set of published prompts: columns as in `prompts.read`; attrs["repairs"] tells what was mended in the file.

    source: file (relative to the checkout); then, if given, only rows with the label, or without it, and where `where`
    (a pandas query) holds, and of those the first n. Raises ValueError if no row is left, and as `prompts.read` does.
    """
    found = prompts.read(root() / source["file"])
    table = found.table
    if "label" in source:
        table = prompts.labelled(table, source["label"])
    if "without" in source:
        table = table.drop(prompts.labelled(table, source["without"]).index)
    if "where" in source:
        try:
            table = table.query(source["where"])
        except (NameError, SyntaxError, TypeError, ValueError) as error:
            known = ", ".join(table)
            raise ValueError(f"where: {source['where']!r} does not read the columns {known} ({error})") from None
    table = table.head(source.get("n", len(table))).reset_index(drop=True)
    if not len(table):
        raise ValueError(f"asked: no prompt of {source['file']} is left by {source}")
    table.attrs["repairs"] = found.repairs
    return table


def cases(world: World, concept: dict, n: int, seed: int) -> pd.DataFrame:
    """`n` plain prompts that ask for an erased concept, each with its noise seed and the answers that count as it.

    Columns: prompt, seed, name (of the concept), wanted (labels of the judge that count as the concept), judged
    ("object" or "style"). Concepts and styles take turns, so that every one is asked equally often; the objects drawn
    in an erased style are a seeded sample. Of photographs: the first set of prompts in `asked`, see `from_file`.
    """
    if "asked" in concept:
        return from_file(next(iter(concept["asked"].values())))
    erased, rows = members(world, concept), []
    random = np.random.default_rng(seed)
    objects = random.permutation(world.objects)
    for i in range(n):
        name = erased[i % len(erased)]
        if concept["kind"] == "style":
            prompt = worlds.prompt(world.words[objects[i % len(objects)]][0], world.words[name][0])
            wanted, judged = [name], "style"
        else:
            style = world.styles[(i // len(erased)) % len(world.styles)]
            prompt = worlds.prompt(world.words[name][0], world.words[style][0])
            wanted, judged = (erased if concept["kind"] == "category" else [name]), "object"
        rows.append(dict(prompt=prompt, seed=seed + i, name=name, wanted=wanted, judged=judged))
    return pd.DataFrame(rows)


def hits(judge, answers: pd.DataFrame, threshold: float = 0.0) -> np.ndarray:
    """For each answer of a judge, whether it is what the case asks about and sure enough: (n,) bool.

    threshold: the least probability, if the judge has no higher one of its own. The embedded judge has no answer
    "none of these", so that without one a shapeless blob counts as whatever it resembles most.
    """
    return (answers.wanted & (answers.probability >= max(threshold, judge.threshold))).to_numpy()


def others(world: World, concept: dict, n: int, seed: int) -> pd.DataFrame:
    """`n` prompts of concepts that are not erased, spread evenly: columns prompt, seed, object, style."""
    erased = set(members(world, concept))
    random = np.random.default_rng(seed)
    pairs = [(o, s) for o in world.objects for s in world.styles if o not in erased and s not in erased]
    order = np.concatenate([random.permutation(len(pairs)) for _ in range(-(-n // len(pairs)))])[:n]
    rows = [(worlds.prompt(world.words[pairs[i][0]][0], world.words[pairs[i][1]][0]), *pairs[i]) for i in order]
    table = pd.DataFrame(rows, columns=["prompt", "object", "style"])
    return table.assign(seed=seed + np.arange(n))


if __name__ == "__main__":
    try:
        params(Path(sys.argv[1]))
    except (IndexError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
