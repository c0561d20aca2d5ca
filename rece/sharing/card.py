"""Model cards: what an eraser's file erases, how it was made and is used, what is known of it and what is not."""

import json
import re
from pathlib import Path

import jinja2
import pandas as pd
from huggingface_hub import ModelCardData

from rece.certificate import Certificate
from rece.eraser import LORA, Eraser

# What a folder with a card holds, by kind; a pipeline is many files.
FILES = {
    "lora": LORA,
    "weights": "weights.safetensors",
    "eraser": "eraser.safetensors",
    "pipeline": None,
}
HUB_ID = r"[\w.-]+/[\w.-]+"
SHOWN = 20  # texts of a list that a card spells out
COLUMNS = {"results": ("attack", "n", "rate", "low", "high"), "kept": ("text", "n", "before", "after")}


def card(
    eraser: Eraser,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    certificate: Certificate | None = None,
    results: pd.DataFrame | None = None,
    kept: pd.DataFrame | None = None,
    kind: str = "lora",
    rank: int | None = None,
    part: str = "unet",
) -> str:
    """A model card in Markdown, with the hub's YAML front matter: what was erased, how, how to use it, what is known.

    base_model: the model that was edited, by default the name that the eraser knows; a hub id goes into the front
    matter too. licence: the hub's name of one ("creativeml-openrail-m"); edited weights are derived from the base
    model and carry its licence; None leaves it open and says so. certificate: of `rece.certify`. results: attack
    success, one row per attack, with columns attack, n, rate, low, high (95 % interval) as `statistics.success` makes
    them. kept: other texts, with columns text, n, before and after, the shares of pictures that show them. What is not
    given is said to be not measured. kind: see `export.save_folder`. rank: of a LoRA that was cut.
    part: of the pipeline that holds the edited layers.

    Text that comes from files stands in code spans, where neither Markdown nor HTML has a meaning.
    Raises ValueError naming the parameter, or if the eraser's provenance is not of the form that this library writes.
    """
    if kind not in FILES:
        raise ValueError(f"kind must be one of {', '.join(FILES)}, not {kind!r}")
    kept = None if kept is not None and kept.empty else kept
    for name, table in {"results": results, "kept": kept}.items():
        missing = [] if table is None else [column for column in COLUMNS[name] if column not in table]
        if missing or (table is not None and table.empty):
            raise ValueError(f"{name} must have rows, with columns {', '.join(COLUMNS[name])}; missing: {missing}")
    try:
        steps = _steps(eraser.provenance)
        if base_model is None:
            base_model = next((step["base_model"] for step in steps if "base_model" in step), "an unnamed model")
        if not isinstance(base_model, str) or not base_model.strip():
            raise ValueError("base_model must be the name of the model that was edited, e.g. its hub id")
        data = ModelCardData(
            library_name="diffusers",
            base_model=base_model if re.fullmatch(HUB_ID, base_model) else None,
            license=licence,
            pipeline_tag="text-to-image",
            tags=["text-to-image", "concept-erasure", *(["lora"] if kind == "lora" else [])],
        )
        text = _template().render(
            card_data=data.to_yaml(),
            base_model=base_model,
            kind=kind,
            file=FILES[kind],
            part=part,
            steps=steps,
            erased=[text for step in steps if "target" in step for text in step["concepts"]],
            revision=next((step["revision"] for step in steps if "revision" in step), None),
            rank=rank,
            full_rank=eraser.rank,
            loss=eraser.loss(rank) if kind == "lora" and rank is not None and rank < eraser.rank else None,
            licence=licence,
            certificate=certificate,
            results=results,
            kept=kept,
            shown=SHOWN,
        )
    except (AttributeError, KeyError, TypeError, RecursionError, jinja2.TemplateError) as error:
        raise ValueError(
            f"the eraser's provenance is not of the form that this library writes ({error!r}): make the eraser again"
        ) from None
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"value": _value, "plain": _plain, "code": _code, "literal": _literal}
    return environment.get_template("card.md.jinja", globals={"zip": zip})


def _steps(provenance: dict) -> list[dict]:
    """The provenance of each eraser that was composed into this one, in the order they edit the weights."""
    if "composed" in provenance:
        return [step for part in provenance["composed"] for step in _steps(part)]
    return [provenance]


def _value(value) -> str:
    if isinstance(value, list):
        more = f" … {len(value)} in all" if len(value) > SHOWN else ""
        return ", ".join(_value(item) for item in value[:SHOWN]) + more or "none"
    if isinstance(value, dict):
        return ", ".join(f"{_value(name)} {_value(item)}" for name, item in value.items())
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w.:/+-]+", value) else _code(value)
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """The text itself if it is made of letters, digits, blanks and dots, else inline code."""
    text = " ".join(text.split())
    return text if re.fullmatch(r"[\w ./+-]+", text) else _code(text)


def _code(text: str) -> str:
    """Inline code of one line, quoted, so that blanks show. Signs that do not print are escaped."""
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in json.dumps(text, ensure_ascii=False))
    return "`" + line.replace("`", "'").replace("|", "\\|") + "`"


def _literal(text: str) -> str:
    """The text as a literal of Python, in one line."""
    return f'"{text}"' if re.fullmatch(r"[\w ./+-]+", text) else repr(text)
