"""Model cards: what an eraser's file erases, how it was made and is used, what is known of it and what is not."""

import json
import re

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from rece.certificate import Certificate
from rece.eraser import Eraser

# What a folder with a card holds, by kind; a pipeline is many files.
FILES = {
    "lora": "pytorch_lora_weights.safetensors",
    "weights": "weights.safetensors",
    "eraser": "eraser.safetensors",
    "pipeline": None,
}
SHOWN = 20  # texts of a list that a card spells out
RATE_COLUMNS = ("attack", "n", "rate", "low", "high")


def card(
    eraser: Eraser,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    certificate: Certificate | None = None,
    results: pd.DataFrame | None = None,
    kind: str = "lora",
    rank: int | None = None,
    part: str = "unet",
) -> str:
    """A model card in Markdown, with the hub's YAML front matter: what was erased, how, how to use it, what is known.

    base_model: the model that was edited, by default the name that the eraser knows; a hub id goes into the front
    matter too. licence: the hub's name of one ("creativeml-openrail-m"); edited weights are derived from the base
    model and carry its licence; None leaves it open and says so. certificate: of `rece.certify`. results: attack
    success, one row per attack, with columns attack, n, rate, low, high (95 % interval) as `statistics.success` makes
    them. What is not given is said to be not measured. kind: see `export.save_folder`. rank: of
    a LoRA that was cut. part: of the pipeline that holds the edited layers.
    Raises ValueError naming the parameter.
    """
    if kind not in FILES:
        raise ValueError(f"kind must be one of {', '.join(FILES)}, not {kind!r}")
    steps = _steps(eraser.provenance)
    if base_model is None:
        base_model = next((step["base_model"] for step in steps if "base_model" in step), "an unnamed model")
    if not isinstance(base_model, str) or not base_model.strip():
        raise ValueError("base_model must be the name of the model that was edited, e.g. its hub id")
    if results is not None:
        missing = [column for column in RATE_COLUMNS if column not in results]
        if missing or results.empty:
            raise ValueError(f"results must have rows, with columns {', '.join(RATE_COLUMNS)}; missing: {missing}")
    erased = [text for step in steps if "target" in step for text in step["concepts"]]
    data = ModelCardData(
        library_name="diffusers",
        base_model=base_model if re.fullmatch(r"[\w.-]+/[\w.-]+", base_model) else None,
        license=licence,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "concept-erasure", *(["lora"] if kind == "lora" else [])],
    )
    body = [
        f"# {base_model}{f' without {_short(erased)}' if erased else ', edited'}",
        _summary(steps, base_model, kind),
        "## Use",
        _use(base_model, kind, part, next((step["revision"] for step in steps if "revision" in step), None)),
        "## Settings",
        *_settings(steps),
        *([_lora(eraser, rank)] if kind == "lora" else []),
        "## What is certified",
        _certified(certificate),
        "## What attacks reach",
        _attacked(results),
        "## Limits",
        _limits(kind, licence, certificate, results),
        "## Versions",
        "\n\n".join(_table(step["versions"].items(), ("package", "version")) for step in steps if "versions" in step)
        or "Not recorded.",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n"))


def _steps(provenance: dict) -> list[dict]:
    """The provenance of each eraser that was composed into this one, in the order they edit the weights."""
    if "composed" in provenance:
        return [step for part in provenance["composed"] for step in _steps(part)]
    return [provenance]


def _summary(steps: list[dict], base_model: str, kind: str) -> str:
    what = {
        "lora": "A LoRA that edits",
        "weights": "The edited layers of",
        "pipeline": "The whole pipeline of",
        "eraser": "An eraser: one matrix that edits",
    }
    lines = [f"{what[kind]} {base_model}. The layers that read the prompt were edited in closed form:", ""]
    for step in steps:
        if "recovered" in step:
            found = step["recovered"]
            lines.append(
                f"- What {_code(found.get('file') or 'a set of edited weights')} erases: this is the map recovered "
                f"from it, which lacks {found['residual']:.2g} of that edit."
            )
            continue
        if "target" not in step:
            changed = ", ".join(map(_code, step.get("concepts", []))) or "concepts that the file does not name"
            balanced = ", balanced over " + ", ".join(map(_code, step["attributes"])) if "attributes" in step else ""
            lines.append(f"- {changed}{balanced}.")
            continue
        pairs = list(zip(step["concepts"], step["target"], strict=True))
        sent = ", ".join(f"{_code(concept)} (now {_code(target)})" for concept, target in pairs[:SHOWN])
        more = f" … {len(pairs)} concepts in all, listed in the file's metadata" if len(pairs) > SHOWN else ""
        rounds = step.get("rounds_run", step.get("rounds"))
        how = "UCE" if rounds == 0 else f"UCE and {rounds} {'anchored ' if step.get('anchored') else ''}rounds of RECE"
        lines.append(f"- Erased {sent}{more}, by {how}.")
    return "\n".join(lines)


def _use(base_model: str, kind: str, part: str, revision: str | None) -> str:
    pinned = f', revision="{revision}"' if revision else ""
    pipe = f'pipe = DiffusionPipeline.from_pretrained("{base_model}"{pinned})'
    start = ["from diffusers import DiffusionPipeline"]
    lines = {
        "lora": [*start, pipe, f'pipe.load_lora_weights("<this folder>", weight_name="{FILES["lora"]}")'],
        "weights": [
            *start,
            "from safetensors.torch import load_file",
            pipe,
            f'unused = pipe.{part}.load_state_dict(load_file("{FILES["weights"]}"), strict=False).unexpected_keys',
            "assert not unused",
        ],
        "pipeline": [*start, 'pipe = DiffusionPipeline.from_pretrained("<this folder>")'],
        "eraser": ["import rece", *start, pipe, f'rece.Eraser.load("{FILES["eraser"]}").apply(pipe)'],
    }
    return "\n".join(["```python", *lines[kind], 'image = pipe("a photograph").images[0]', "```"])


def _settings(steps: list[dict]) -> list[str]:
    apart = ("versions", "composed")
    return [_table(((k, v) for k, v in step.items() if k not in apart), ("setting", "value")) for step in steps]


def _lora(eraser: Eraser, rank: int | None) -> str:
    if rank is None or rank >= eraser.rank:
        return f"The LoRA has the edit's own rank, {eraser.rank}, and is exact but for rounding. Its strength is 1."
    return (
        f"The LoRA is cut to rank {rank} of {eraser.rank} and lacks {eraser.loss(rank):.1%} of the edit (Frobenius "
        f"norm of map − I). Its strength is 1."
    )


def _certified(certificate: Certificate | None) -> str:
    if certificate is None:
        return "Not measured."
    rows = [
        (
            _code(row.concept),
            f"{row.distance:.4g}",
            f"{row.distance / row.target:.2f}",
            "not compared" if pd.isna(row.other) else f"{row.other:.4g} ({_code(row.nearest)})",
        )
        for row in certificate.words.itertuples()
    ]
    compared = not certificate.words.other.isna().any()
    if not compared:
        verdict = "It was not compared with other concepts."
    elif certificate.passed:
        verdict = "No prompt comes as close to a concept as some other concept already is."
    else:
        verdict = "It is not proven that every prompt stays further away than some other concept already is."
    head = ("concept", "no prompt's token comes closer than", "as a share of the target's distance", "nearest other")
    return f"{_rows(rows, head)}\n\n{verdict} The bound is on keys and values, token by token, not on images."


def _attacked(results: pd.DataFrame | None) -> str:
    if results is None:
        return "Not measured."
    extra = [column for column in ("method", "concept", "budget", "judge", "threshold") if column in results]
    rows = [
        (*(_value(getattr(row, column)) for column in ("attack", *extra)), int(row.n), f"{row.rate:.2f}")
        + (f"{row.low:.2f} to {row.high:.2f}",)
        for row in results.itertuples()
    ]
    table = _rows(rows, ("attack", *extra, "N", "success rate", "95 % interval"))
    return f"{table}\n\nA rate is a lower bound on what an attacker with a larger budget reaches."


def _limits(kind: str, licence: str | None, certificate: Certificate | None, results: pd.DataFrame | None) -> str:
    lines = [
        "The edit is an invertible matrix: whoever may feed embeddings, or has the original weights, can undo it.",
        "Concepts that nobody named, and what the edit does to neighbouring ones, are not covered.",
    ]
    if kind == "lora":
        lines.insert(0, "An adapter that can be unloaded is no safety mechanism: fuse it where the erasure must hold.")
    if kind in ("weights", "eraser"):
        lines.insert(0, "Whoever loads the base model without this file has the concept back.")
    unmeasured = [n for n, x in (("the certificate", certificate), ("success of attacks", results)) if x is None]
    lines.append(f"Not measured: {', '.join([*unmeasured, 'image quality', 'other concepts'])}.")
    if licence is None:
        lines.append("No licence is stated here; the base model's licence applies to weights derived from it.")
    return "\n".join(f"- {line}" for line in lines)


def _short(texts: list[str]) -> str:
    texts = list(dict.fromkeys(" ".join(text.split()) for text in texts))
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def _code(text: str) -> str:
    """Inline code of one line, quoted, so that blanks show."""
    return "`" + json.dumps(text, ensure_ascii=False).replace("`", "'").replace("|", "\\|") + "`"


def _value(value) -> str:
    if isinstance(value, list):
        more = f" … {len(value)} in all" if len(value) > SHOWN else ""
        return ", ".join(_value(item) for item in value[:SHOWN]) + more or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w.:/+-]+", value) else _code(value)
    return "–" if value is None else str(value)


def _table(pairs, head: tuple[str, str]) -> str:
    return _rows([(name, _value(value)) for name, value in pairs], head)


def _rows(rows: list[tuple], head: tuple) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
