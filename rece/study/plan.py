"""The study's plan: which prompts are asked of a model, and which answers count as the concept.

A concept's section in params.yaml is about the embedded model's world (data/concepts.yaml), or, if it names files of
prompts, about photographs.
"""

import numpy as np
import pandas as pd

from rece.emoji import world as worlds
from rece.emoji.world import World
from rece.sharing import prompts
from rece.study.config import root

ORIGINAL, CONTROL, ANY = "original", "control", "any"  # what results call models beside the methods


def numbers(concept: dict, method: str, settings: dict) -> dict:
    """What a method gets for a concept: the target, the method's settings, and the concept's own over them.

    The labels of a file in `preserve`, but for those that are erased, are preserved; compared in lower case and as a
    whole, as the published code does.
    """
    if "preserve" in concept:
        labels = dict.fromkeys(prompts.read(root() / concept["preserve"]).table.label)
        erased = {text.lower() for text in concept["erase"]}
        settings = settings | {"preserve": [label for label in labels if label.lower() not in erased]}
    return merged({"target": concept["target"]} | settings, concept.get("numbers", {}).get(method, {}))


def merged(settings: dict, over: dict) -> dict:
    """The settings with those of `over` in their place; of a dict in both, item by item."""
    found = {**settings, **over}
    for key in settings.keys() & over.keys():
        if isinstance(settings[key], dict) and isinstance(over[key], dict):
            found[key] = merged(settings[key], over[key])
    return found


def nested(flat: dict) -> dict:
    """{"each.lamb": 1} as {"each": {"lamb": 1}}."""
    found = {}
    for name, value in flat.items():
        for part in reversed(name.split(".")[1:]):
            value = {part: value}
        found = merged(found, {name.split(".")[0]: value})
    return found


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

    source: file (relative to the checkout); then, if given, only rows with the label, or without it, and of those the
    first n. Raises ValueError if no row is left, and as `prompts.read` does.
    """
    found = prompts.read(root() / source["file"])
    table = found.table
    if "label" in source:
        table = prompts.labelled(table, source["label"])
    if "without" in source:
        table = table.drop(prompts.labelled(table, source["without"]).index)
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
