"""The plan of a run: a table with all that decides an image, the settings, and which row lies in which shard."""

import hashlib
import json
import math
import numbers
import re
from itertools import chain

import numpy as np
import pandas as pd

DRAWN = ("case", "prompt", "seed", "guidance", "width", "height")  # the columns that decide the images


def check(table: pd.DataFrame, guidance: float = 7.5) -> pd.DataFrame:
    """The table with all columns that decide an image, complete: case, prompt, seed, guidance, width, height.

    Raises TypeError or ValueError naming the column and the row.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a pandas DataFrame, not {type(table).__name__}")
    missing = [name for name in ("prompt", "seed") if name not in table]
    if missing or not len(table) or not table.columns.is_unique:
        raise ValueError(f"table must have rows and unique columns prompt and seed; it has {list(table.columns)}")
    table = table.reset_index(drop=True)
    n = len(table)
    ids = table["case"] if "case" in table else range(n)
    columns = {
        "case": [_case(value, row) for row, value in enumerate(ids)],
        "prompt": [_prompt(value, row) for row, value in enumerate(table["prompt"])],
        "seed": [_whole("seed", value, row, 0, 2**64 - 1) for row, value in enumerate(table["seed"])],
        "guidance": [_guidance(value, row, guidance) for row, value in enumerate(table.get("guidance", [None] * n))],
    }
    for name in ("width", "height"):
        pixels = [_pixels(name, value, row) for row, value in enumerate(table.get(name, [None] * n))]
        columns[name] = pd.array(pixels, dtype="Int64")
    for row, sides in enumerate(zip(columns["width"], columns["height"], strict=True)):
        if pd.isna(sides[0]) != pd.isna(sides[1]):
            raise ValueError(f"table: width and height of row {row} must both be given, or neither")
    checked = pd.DataFrame(columns | {name: table[name] for name in table if name not in columns})
    twice = checked["case"][checked["case"].duplicated()]
    if len(twice):
        raise ValueError(f"table: case {twice.iloc[0]!r} stands in several rows; leave the column out to number them")
    return checked


def make(table: pd.DataFrame, settings: dict) -> dict:
    """The plan as JSON has it: settings, shards (rows of the table), table (by column) and digest.

    table: of `check`; columns other than DRAWN are carried along and do not count in the digest. settings: JSON-able,
    with shard_size, and whatever else decides the images. Rows of the same guidance and size are put together, so that
    few batches need filling up.
    """
    groups: dict[tuple, list[int]] = {}
    columns = {name: [_plain(value) for value in table[name]] for name in table}
    for row, key in enumerate(zip(columns["guidance"], columns["width"], columns["height"], strict=True)):
        groups.setdefault(key, []).append(row)
    order, size = list(chain(*groups.values())), settings["shard_size"]
    shards = [order[start : start + size] for start in range(0, len(order), size)]
    plan = json.loads(json.dumps({"settings": settings, "shards": shards, "table": columns}))
    return plan | {"digest": digest(plan)}


def digest(plan: dict) -> str:
    """The sha256 of what decides the images."""
    drawn = {name: plan["table"][name] for name in DRAWN}
    text = json.dumps([plan["settings"], plan["shards"], drawn], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def difference(there: dict, now: dict) -> str:
    """What differs first between two plans, in words."""
    before, after = _flat(there["settings"]), _flat(now["settings"])
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            return f"{name} is {_short(before.get(name))} there, but {_short(after.get(name))} now"
    old, new = len(there["table"]["case"]), len(now["table"]["case"])
    if old != new:
        return f"its table has {old} rows there, but {new} now"
    for name in DRAWN:
        for row, (a, b) in enumerate(zip(there["table"][name], now["table"][name], strict=True)):
            if a != b:
                return f"{name} of row {row} is {_short(a)} there, but {_short(b)} now"
    return "the rows lie in other shards"


def _case(value, row: int) -> str:
    if isinstance(value, numbers.Integral | str) and re.fullmatch(r"[A-Za-z0-9_-]{1,80}", str(value)):
        return str(value)
    raise ValueError(f"table: case of row {row} must be letters, digits, - and _ (80 at most), not {value!r}")


def _prompt(value, row: int) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"table: prompt of row {row} must be a text, not {value!r}")


def _whole(name: str, value, row: int, low: int, high: int) -> int:
    if isinstance(value, numbers.Real) and low <= value <= high and value == int(value):
        return int(value)
    raise ValueError(f"table: {name} of row {row} must be a whole number from {low} to {high}, not {value!r}")


def _guidance(value, row: int, default: float) -> float:
    value = default if pd.isna(value) else value
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    raise ValueError(f"table: guidance of row {row} must be a finite number, not {value!r}")


def _pixels(name: str, value, row: int) -> int | None:
    if pd.isna(value):
        return None
    value = _whole(name, value, row, 8, 2**16)
    if value % 8:
        raise ValueError(f"table: {name} of row {row} must be a multiple of 8 pixels, not {value}")
    return value


def _plain(value):
    """A table's value as JSON has it."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, bool | int | float | str) else str(value)


def _flat(tree: dict, before: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
