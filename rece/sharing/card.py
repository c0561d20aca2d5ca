"""Model cards: what an eraser's file erases, how it was made and is used, what is known of it and what is not."""

import json
import re
from pathlib import Path

import jinja2
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
TEMPLATE = Path(__file__).with_name("card.md.jinja")
HUB_ID = r"[\w.-]+/[\w.-]+"
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

    Text that comes from files stands in code spans, where neither Markdown nor HTML has a meaning.
    Raises ValueError naming the parameter, or if the eraser's provenance is not of the form that this library writes.
    """
    if kind not in FILES:
        raise ValueError(f"kind must be one of {', '.join(FILES)}, not {kind!r}")
    try:
        return _card(eraser, base_model, licence, certificate, results, kind, rank, part)
    except (AttributeError, KeyError, TypeError, RecursionError, jinja2.TemplateError) as error:
        raise ValueError(
            f"the eraser's provenance is not of the form that this library writes ({error!r}): make the eraser again"
        ) from None


def _card(eraser: Eraser, base_model, licence, certificate, results, kind, rank, part) -> str:
    steps = _steps(eraser.provenance)
    if base_model is None:
        base_model = next((step["base_model"] for step in steps if "base_model" in step), "an unnamed model")
    if not isinstance(base_model, str) or not base_model.strip():
        raise ValueError("base_model must be the name of the model that was edited, e.g. its hub id")
    if results is not None:
        missing = [column for column in RATE_COLUMNS if column not in results]
        if missing or results.empty:
            raise ValueError(f"results must have rows, with columns {', '.join(RATE_COLUMNS)}; missing: {missing}")
    columns = [
        name
        for name in ("method", "concept", "budget", "judge", "threshold")
        if name in (() if results is None else results)
    ]
    data = ModelCardData(
        library_name="diffusers",
        base_model=base_model if re.fullmatch(HUB_ID, base_model) else None,
        license=licence,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "concept-erasure", *(["lora"] if kind == "lora" else [])],
    )
    made = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        base_model=base_model,
        located="/" in base_model,  # a hub id or a path, where the name of a folder is not enough to find it
        kind=kind,
        file=FILES[kind],
        part=part,
        steps=steps,
        erased=[text for step in steps if "target" in step for text in step["concepts"]],
        revision=next((step["revision"] for step in steps if "revision" in step), None),
        rank=rank,
        full_rank=eraser.rank,
        loss=None if kind != "lora" or rank is None or rank >= eraser.rank else eraser.loss(rank),
        licence=licence,
        certificate=certificate,
        certified=[] if certificate is None else [_bound(row) for row in certificate.words.itertuples()],
        compared=certificate is not None and not certificate.words.other.isna().any(),
        results=results,
        columns=columns,
        rates=[] if results is None else [_rate(row, columns) for row in results.itertuples()],
        settings=lambda step: _rows({k: v for k, v in step.items() if k not in ("versions", "composed")}),
        rows=_rows,
        changes=_changes,
        how=_how,
        plain=_plain,
        short=_short,
        code=_code,
        codes=lambda texts: ", ".join(map(_code, texts)),
        literal=_literal,
    )
    return re.sub(r"\n{3,}", "\n\n", str(made)).rstrip() + "\n"


def _steps(provenance: dict) -> list[dict]:
    """The provenance of each eraser that was composed into this one, in the order they edit the weights."""
    if "composed" in provenance:
        return [step for part in provenance["composed"] for step in _steps(part)]
    return [provenance]


def _changes(step: dict) -> str:
    pairs = list(zip(step["concepts"], step["target"], strict=True))
    sent = ", ".join(f"{_code(concept)} (now {_code(target)})" for concept, target in pairs[:SHOWN])
    return sent + (f" … {len(pairs)} concepts in all, listed in the file's metadata" if len(pairs) > SHOWN else "")


def _how(step: dict) -> str:
    rounds = step.get("rounds_run", step.get("rounds"))
    return (
        "UCE"
        if rounds == 0
        else f"UCE and {_value(rounds)} {'anchored ' if step.get('anchored') else ''}rounds of RECE"
    )


def _bound(row) -> tuple[str, ...]:
    other = "not compared" if pd.isna(row.other) else f"{row.other:.4g} ({_code(row.nearest)})"
    return _code(row.concept), f"{row.distance:.4g}", f"{row.distance / row.target:.2f}", other


def _rate(row, columns: list[str]) -> tuple[str, ...]:
    known = (_value(getattr(row, name)) for name in ("attack", *columns))
    return *known, str(int(row.n)), f"{row.rate:.2f}", f"{row.low:.2f} to {row.high:.2f}"


def _rows(values: dict) -> list[tuple[str, str]]:
    return [(_value(name), _value(value)) for name, value in values.items()]


def _value(value) -> str:
    if isinstance(value, list):
        more = f" … {len(value)} in all" if len(value) > SHOWN else ""
        return ", ".join(_value(item) for item in value[:SHOWN]) + more or "none"
    if isinstance(value, dict):
        return ", ".join(f"{_value(name)} {_value(item)}" for name, item in value.items())
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w.:/+-]+", value) else _code(value)
    return "–" if value is None else str(value)


def _short(texts: list[str]) -> str:
    texts = list(dict.fromkeys(map(_plain, texts)))
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


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
