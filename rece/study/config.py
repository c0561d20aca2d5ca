"""The study's parameters: params.yaml read and checked, and the pipelines and judges that it names.

`python -m rece.study.config FILE` checks a file of parameters.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml
from diffusers import DiffusionPipeline, UNet2DConditionModel

from rece import loading

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

    By default in float32, on the GPU if there is one. On a CPU all is computed with one thread from then on: a small
    model gains nothing by a second one, and results do not depend on the number of cores. See `parallel.cells`.
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
    pipe = loading.load(**keywords)
    if pipe.device.type == "cpu":
        torch.set_num_threads(1)
    return pipe


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


if __name__ == "__main__":
    try:
        params(Path(sys.argv[1]))
    except (IndexError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
