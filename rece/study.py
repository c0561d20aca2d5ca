"""The study's plan: which prompts are asked of a model, and which answers count as the concept."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from rece.emoji import world as worlds
from rece.emoji.world import World
from rece.judges.embedded import Judge, Verdict

KINDS = ("object", "style", "category", "joint")
CONCEPT_KEYS = {"kind", "erase", "target"}


def root() -> Path:
    """The checkout: the nearest folder above the working directory with a params.yaml, so that notebooks run
    anywhere in it."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "params.yaml").exists():
            return folder
    raise FileNotFoundError("no params.yaml in this folder or above it: work inside a checkout of the repository")


def params(path: Path | None = None) -> dict:
    """Read and check params.yaml; raises ValueError naming the first unknown or missing key."""
    path = Path(path or root() / "params.yaml")
    tree = yaml.safe_load(path.read_text())
    check(tree, PARAMS, path.name)
    for key in ("concepts", "sweep_concepts", "validation"):
        for name in tree[key]:
            if name not in tree["concept"]:
                raise ValueError(f"{path.name}: {key} lists {name!r}, but concept has no section {name!r}")
    if tree["attack"]["budget"] not in ("quick", "full"):
        raise ValueError(f"{path.name}: attack.budget must be quick or full, not {tree['attack']['budget']!r}")
    for name, section in tree["concept"].items():
        optional = {"numbers"} & set(section)
        check(section, dict.fromkeys(CONCEPT_KEYS | optional), f"{path.name}: concept.{name}")
        if section["kind"] not in KINDS:
            raise ValueError(
                f"{path.name}: concept.{name}.kind must be one of {', '.join(KINDS)}, not {section['kind']!r}"
            )
    return tree


PARAMS = {
    "model": None, "control": None, "judge": None,
    "generate": {"steps": None, "guidance": None, "batch_size": None, "bf16": None},
    "concepts": None, "sweep_concepts": None, "validation": None, "concept": None, "erase": None,
    "attack": {"n": None, "seed": None, "budget": None, "quick": None, "full": None},
    "evaluate": {"n": None, "seed": None, "show": None, "threshold": None},
    "sweep": dict.fromkeys(["n", "preserve_n", "seed", "threshold", "grid", "attacks"]),
    "dataset": {"objects": None, "variants": None, "phrases": None, "seed": None},
    "pretrain": {"text": None, "vae": None, "unet": None, "seed": None},
    "train_control": {"without": None, "minutes": None, "seed": None},
    "train_judge": {"minutes": None, "held_out": None, "seed": None},
}  # fmt: skip


def check(tree: dict, expected: dict, where: str) -> None:
    """Raise ValueError if `tree` has keys that `expected` lacks or lacks keys that it has; None stands for any
    value."""
    unknown, missing = sorted(set(tree) - set(expected)), sorted(set(expected) - set(tree))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(expected))}")
    if missing:
        raise ValueError(f"{where}: the key {missing[0]!r} is missing")
    for key, inner in expected.items():
        if inner is not None:
            check(tree[key], inner, f"{where}: {key}")


def load(model: str, **options) -> DiffusionPipeline:
    """The pipeline of a folder (relative to the checkout) or a hub id, in float32 on the GPU if there is one."""
    folder = root() / model
    if not folder.exists() and (model.count("/") != 1 or model.startswith("data/")):
        raise FileNotFoundError(f"model: there is no folder {model!r} in the checkout; correct `model` in params.yaml")
    pipe = StableDiffusionPipeline.from_pretrained(
        folder if folder.exists() else model, safety_checker=None, dtype=torch.float32, **options
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


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
    """What a method gets for a concept: the target, the method's settings, and the concept's own over them."""
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
    it."""
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
    names = {words[0]: name for name, words in world.words.items()}
    return {text: world.words[names[text]][1:] + world.held_out[names[text]] for text in concept["erase"]}


def innocents(world: World, concept: dict) -> list[str]:
    """The names of all concepts of the same kind, objects or styles, that are not erased."""
    erased = set(members(world, concept))
    return [
        world.words[name][0]
        for name in (world.styles if concept["kind"] == "style" else world.objects)
        if name not in erased
    ]


def cases(world: World, concept: dict, n: int, seed: int) -> pd.DataFrame:
    """`n` plain prompts that ask for an erased concept, each with its noise seed and the answers that count as it.

    Columns: prompt, seed, name (of the concept), wanted (labels of the judge that count as the concept), judged
    ("object" or "style"). Concepts and styles take turns, so that every one is asked equally often; the objects drawn
    in an erased style are a seeded sample.
    """
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


def labelled(judge: Judge, verdict: Verdict, cases: pd.DataFrame) -> pd.DataFrame:
    """The judge's answer to each case's question.

    Columns: label (the top one), probability (of it), wanted (whether the case counts it as the concept).
    """
    styles = (cases.judged == "style").to_numpy()
    label = np.where(
        styles, np.array(judge.styles)[verdict.styles.argmax(1)], np.array(judge.objects)[verdict.objects.argmax(1)]
    )
    sure = np.where(styles, verdict.styles.max(1), verdict.objects.max(1))
    wanted = [answer in wanted for answer, wanted in zip(label, cases.wanted, strict=True)]
    return pd.DataFrame({"label": label, "probability": sure, "wanted": wanted})


def hits(judge: Judge, verdict: Verdict, cases: pd.DataFrame, threshold: float = 0.0) -> np.ndarray:
    """For each judged image of `cases`, whether the judge's top label is one that its case wants: (n,) bool.

    threshold: the least probability of that label. The judge has no answer "none of these", so that without one a
    shapeless blob counts as whatever it resembles most.
    """
    found = labelled(judge, verdict, cases)
    return (found.wanted & (found.probability >= threshold)).to_numpy()


def others(world: World, concept: dict, n: int, seed: int) -> pd.DataFrame:
    """`n` prompts of concepts that are not erased, spread evenly: columns prompt, seed, object, style."""
    erased = set(members(world, concept))
    random = np.random.default_rng(seed)
    pairs = [(o, s) for o in world.objects for s in world.styles if o not in erased and s not in erased]
    order = np.concatenate([random.permutation(len(pairs)) for _ in range(-(-n // len(pairs)))])[:n]
    rows = [(worlds.prompt(world.words[pairs[i][0]][0], world.words[pairs[i][1]][0]), *pairs[i]) for i in order]
    table = pd.DataFrame(rows, columns=["prompt", "object", "style"])
    return table.assign(seed=seed + np.arange(n))
