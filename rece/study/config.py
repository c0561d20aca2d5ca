"""The study's parameters: params.yaml read and checked, and the pipelines and judges that it names.

`python -m rece.study.config FILE` checks a file of parameters.
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

if TYPE_CHECKING:  # torch and diffusers take seconds, and who runs a stage's notebook only reads parameters
    from diffusers import DiffusionPipeline


class Loader(yaml.SafeLoader):
    """YAML in which, as in DVC's, 1e-3 is a number and no key stands twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for n, key in enumerate(keys) if key in keys[:n]]:
            raise yaml.YAMLError(
                f"the key {twice[0]!r} stands twice, the second time near line {node.start_mark.line + 1}"
            )
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class Section(BaseModel):
    """A part of a file of parameters: no other keys, no text where a number belongs, and finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, le=1)]


class Generate(Section):
    steps: PositiveInt
    guidance: float
    batch_size: PositiveInt
    bf16: bool | Literal["auto"]


class Prompts(Section):
    """A set of published prompts, see `plan.from_file`."""

    file: str
    label: str | None = None
    without: str | None = None
    n: PositiveInt | None = None


class Kept(Prompts):
    scores: list[str]


class Concept(Section):
    """What is erased. judge: instead of the study's. attacks: those of the budget that are run, if not all.

    Of photographs: asked, sets of prompts that ask for it, attacks being run on the first; preserve, a file whose
    labels are preserved; known, what attacks may know; kept, sets of prompts that should stay as they are; others,
    synonyms, texts for the certificate.
    """

    kind: Literal["object", "style", "category", "joint"]
    erase: list[str] = Field(min_length=1)
    target: str | list[str]
    numbers: dict[str, dict] = {}
    judge: str | dict | None = None
    attacks: list[str] = []
    asked: dict[str, Prompts] = {}
    preserve: str | None = None
    known: dict = {}
    kept: dict[str, Kept] = {}
    others: list[str] = []
    synonyms: dict[str, list[str]] = {}


class Attack(Section):
    n: PositiveInt
    seed: NonNegativeInt
    budget: Literal["quick", "full"]
    quick: dict[str, dict]
    full: dict[str, dict]


class Evaluate(Section):
    n: NonNegativeInt
    seed: NonNegativeInt
    show: NonNegativeInt
    threshold: Share
    images: str | None
    scores: dict[str, dict] | None


class Sweep(Section):
    n: PositiveInt
    preserve_n: PositiveInt
    seed: NonNegativeInt
    threshold: Share
    grid: dict[str, list[dict[str, list]]]
    attacks: dict[str, dict]


class Fair(Section):
    """The fair study, see `rece.study.fair`. per, kept: how many prompts. groups, validation: how many groups.

    split: the seed that divides the objects. seed: that of prompts and noise.
    """

    split: NonNegativeInt
    seed: NonNegativeInt
    threshold: Share
    reported: list[str]
    seen: list[str]
    groups: dict[str, PositiveInt]
    validation: dict[str, PositiveInt]
    per: dict[str, PositiveInt]
    kept: dict[Literal["neighbour", "other"], PositiveInt]
    grid: dict[str, list[dict[str, list]]]


class Limits(Section):
    """The numbers of `rece.study.ablation` and `rece.study.relearning`; tried: see `rece.study.spending`."""

    object: PositiveInt
    twenty: NonNegativeInt
    pictures: PositiveInt
    n: PositiveInt
    steps: list[NonNegativeInt]
    lr: PositiveFloat
    batch_size: PositiveInt
    tried: dict[str, dict[str, list]]


class Arena(Section):
    """The arena, see `rece.study.arena`: how many groups of each kind are reported and how many numbers are chosen on;
    of each method the numbers that are given, and those that are tried, as in `Fair`."""

    groups: dict[str, PositiveInt]
    validation: dict[str, PositiveInt]
    given: dict[str, dict]
    grid: dict[str, list[dict[str, list]]]


class Rounding(Section):
    """On how many groups, and with which lines of fair_attacks, rounded weights are measured."""

    object: PositiveInt
    attacks: list[str]


class Audits(Section):
    """Audits, see `rece.study.auditing`: how many groups, n prompts of each, and the settings of each audit.

    transfer: lines of fair_attacks whose prompts all methods draw.
    """

    object: PositiveInt
    n: PositiveInt
    tried: dict[str, dict]
    relearning: dict[str, dict]
    rounding: Rounding
    transfer: list[str]


class Study(Section):
    """The sections that every study has."""

    model: str | dict
    control: str | None
    judge: str | dict | None
    generate: Generate
    concepts: list[str]
    concept: dict[str, Concept]
    erase: dict[str, dict]
    attack: Attack
    evaluate: Evaluate

    @model_validator(mode="after")
    def names_are_there(self):
        for key in {"concepts", "sweep_concepts", "validation"} & set(type(self).model_fields):
            known(getattr(self, key), self.concept, key, "section in concept")
        for name, one in self.concept.items():
            known(one.attacks, self.attack.quick | self.attack.full, f"concept.{name}.attacks", "line in attack")
            known(one.numbers, self.erase, f"concept.{name}.numbers", "line in erase")
        return self


class EmbeddedStudy(Study):
    """Those of the embedded model's study too."""

    fair: Fair
    fair_attacks: dict[str, dict]
    limits: Limits
    fair_kinds: list[str]
    arena: Arena
    arena_methods: list[str]
    audits: Audits
    sweep_concepts: list[str]
    validation: list[str]
    sweep: Sweep
    dataset: dict[Literal["objects", "variants", "phrases", "seed"], int]
    pretrain: dict[Literal["text", "vae", "unet", "seed"], int]
    train_judge: dict[Literal["minutes", "held_out", "seed"], int]
    train_control: dict[Literal["without", "minutes", "seed"], int | list[str]]

    @model_validator(mode="after")
    def lines_are_there(self):
        known(self.arena_methods, self.arena.given, "arena_methods", "line in arena.given")
        known(self.arena_methods, self.arena.grid, "arena_methods", "line in arena.grid")
        audits, where = self.audits, "line in fair_attacks"
        known(audits.rounding.attacks, self.fair_attacks, "audits.rounding.attacks", where)
        known(audits.transfer, self.fair_attacks, "audits.transfer", where)
        known(self.limits.tried, self.fair_attacks, "limits.tried", where)
        return self


def known(names, there: dict, where: str, kind: str) -> None:
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(f"{where}: {unknown[0]!r} has no {kind}; there are {', '.join(there)}")


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
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader) or {}
        if not isinstance(tree, dict):
            raise ValueError(f"{path.name}: it holds no names with values")
        own = set(EmbeddedStudy.model_fields) - set(Study.model_fields)
        (EmbeddedStudy if own & set(tree) else Study).model_validate(tree)
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: no YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        own = {"missing": "this key is missing", "extra_forbidden": "no such key; delete or correct it"}
        what = own.get(first["type"], what if isinstance(first["input"], dict) else f"{what}, not {first['input']!r}")
        raise ValueError(f"{path.name}: {where}: {what}" if where else f"{path.name}: {what}") from None
    return tree


def load(model: str | dict) -> "DiffusionPipeline":
    """The pipeline of a folder (relative to the checkout), or what a dict of the keywords of `loading.load` names.

    By default in float32, on the GPU if there is one. On a CPU all is computed with one thread from then on: a small
    model gains nothing by a second one, and results do not depend on the number of cores. See `parallel.cells`.
    """
    import torch

    from rece import loading

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


def control(pipe: "DiffusionPipeline", folder: str | Path) -> "DiffusionPipeline":
    """A pipeline like `pipe` with the UNet of `folder` (relative to the checkout); everything else is shared.

    Raises FileNotFoundError if there is no UNet.
    """
    from diffusers import UNet2DConditionModel

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
