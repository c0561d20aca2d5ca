"""The prompt files of published experiments: their columns under one set of names, their defects mended and told."""

import csv
import io
import math
import operator
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

# Our name of a column, then those of the published files; of several for the label, the first that a file has.
NAMES = {
    "case": ("case_number",),
    "prompt": (),
    "seed": ("evaluation_seed",),
    "guidance": ("evaluation_guidance",),
    "width": ("sd_image_width",),
    "height": ("sd_image_height",),
    "label": ("class", "artist", "categories"),
}
PAIR = ("sensitive prompt", "normal prompt")
IMAGES = {".jpg", ".jpeg", ".png", ".webp"}


class PromptFile(NamedTuple):
    """A prompt file as read: its table, and one line for each kind of defect that was mended or left."""

    table: pd.DataFrame
    repairs: list[str]


class _Raw(NamedTuple):
    header: list[str]
    rows: list[list[str]]
    lines: list[int]  # where in the file each row begins
    repairs: list[str]


def read(path: str | Path) -> PromptFile:
    """Read a prompt file: comma-separated, with columns for prompt and seed.

    The table has one row per prompt, in the order of the file, and these columns, then the file's others as they are
    (as numbers where every cell is one):

    case: int64, the file's own number; the row's where numbers are missing or occur twice.
    prompt: str, every character as published, spaces and newlines at its ends too: that text is what was run.
    seed: int64, exact (published seeds exceed int32).
    guidance: float64, NaN where the file has none.
    width, height: Int64, pixels, NA where the file has none.
    label: str, the class, artist or comma-separated categories, "" where the file has none; see `labelled`.

    Also read, and told in `repairs`: another encoding than UTF-8, a byte order mark, Windows line ends, blank lines,
    index columns without a name (dropped), commas in prompts without quotes, empty prompts (kept as "").

    Raises FileNotFoundError, and ValueError naming the file, the line and what to do: no prompt or seed column, a
    number that is not one (a seed must be whole, 0 to 2⁶³ - 1; sizes must be multiples of 8), a line with too few or
    too many fields, no rows.
    """
    raw = _raw(path, join="prompt")
    columns = {name: [row[n] for row in raw.rows] for n, name in enumerate(raw.header)}
    found = {name: next((n for n in (name, *other) if n in columns), None) for name, other in NAMES.items()}
    for name in ("prompt", "seed"):
        if found[name] is None:
            pairs = "; read_pairs reads files of pairs" if set(PAIR) <= set(columns) else ""
            wanted = " or ".join((name, *NAMES[name]))
            raise ValueError(f"{path}: no column {wanted} among {', '.join(raw.header)}{pairs}")

    def parsed(name, parse, empty):
        cells = columns[found[name]] if found[name] else [""] * len(raw.rows)
        values = []
        for cell, line in zip(cells, raw.lines, strict=True):
            try:
                values.append(parse(cell) if cell.strip() else empty)
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {name} {error}, not {cell!r}; mend the line") from None
        return values

    seeds = parsed("seed", _whole, None)
    if None in seeds:
        raise ValueError(f"{path}, line {raw.lines[seeds.index(None)]}: no seed; give one to every prompt")
    cases, numbering = _numbered(parsed("case", _whole, None), raw.lines)
    prompts = columns[found["prompt"]]
    empty = [line for prompt, line in zip(prompts, raw.lines, strict=True) if not prompt.strip()]
    table = pd.DataFrame(
        {
            "case": np.array(cases, dtype=np.int64),
            "prompt": pd.array(prompts, dtype="str"),
            "seed": np.array(seeds, dtype=np.int64),
            "guidance": np.array(parsed("guidance", _number, math.nan), dtype=np.float64),
            "width": pd.array(parsed("width", _size, pd.NA), dtype="Int64"),
            "height": pd.array(parsed("height", _size, pd.NA), dtype="Int64"),
            "label": pd.array(columns[found["label"]] if found["label"] else [""] * len(prompts), dtype="str"),
        }
    )
    for name, cells in columns.items():
        if name not in found.values():
            table[name] = _typed(cells)
    return PromptFile(table, raw.repairs + numbering + _told("empty prompts, kept as they are", empty))


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read the pairs of a file with the columns "sensitive prompt" and "normal prompt": with the concept, without it.

    Raises FileNotFoundError, and ValueError naming the file and the line: no such columns, an empty text, a line with
    too few or too many fields.
    """
    raw = _raw(path)
    for name in PAIR:
        if name not in raw.header:
            raise ValueError(f"{path}: no column {name} among {', '.join(raw.header)}; read reads files of prompts")
    pairs = [tuple(row[raw.header.index(name)] for name in PAIR) for row in raw.rows]
    for pair, line in zip(pairs, raw.lines, strict=True):
        if not all(text.strip() for text in pair):
            raise ValueError(f"{path}, line {line}: an empty text; give both of the pair, or drop the line")
    return pairs


def labelled(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """The rows of a table of `read` whose label is `label` or has it as an item of its comma-separated list.

    Case does not matter: the published files write both "English springer" and "english springer". Raises ValueError
    if no row has it.
    """
    wanted = label.strip().casefold()
    items = [[item.strip().casefold() for item in (cell, *cell.split(","))] for cell in table["label"]]
    rows = table[[wanted in row for row in items]]
    if rows.empty:
        known = sorted({item.strip() for cell in table["label"] for item in cell.split(",")})
        shown = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
        raise ValueError(f"label: no row has {label!r}; there are {shown}")
    return rows


def match_images(ids: Iterable[int], folder: str | Path) -> list[Path]:
    """The image of every id in `folder`, sub-folders aside, by the number at the end of the file's name.

    Numbers are compared, not texts: 203564 is COCO_val2014_000000203564.jpg or 000000203564.jpg, and 3564 is neither.
    Raises TypeError if an id is not a whole number, FileNotFoundError if the folder or an image is missing, and
    ValueError if an id has two images.
    """
    try:
        ids = [operator.index(number) for number in ids]
    except TypeError:
        raise TypeError("ids must be whole numbers, like the column coco_id") from None
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: {folder} is not a folder")
    files: dict[int, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        number = re.search(r"[0-9]+$", file.stem)
        if number and file.suffix.lower() in IMAGES:
            files.setdefault(int(number[0]), []).append(file)
    missing = [number for number in ids if number not in files]
    if missing:
        raise FileNotFoundError(f"folder: {folder} lacks the images of {len(missing)} ids, the first {missing[0]}")
    for number in ids:
        if len(files[number]) > 1:
            two = " and ".join(file.name for file in files[number][:2])
            raise ValueError(f"folder: {folder} has more than one image of id {number}: {two}; keep one")
    return [files[number][0] for number in ids]


def _raw(path: str | Path, join: str | None = None) -> _Raw:
    """Header and rows of equal length as text; `join` is the column that is put together again at its commas."""
    path = Path(path)
    if not path.is_file():
        fetch = f"dvc --cd {path.parent} pull {path.name}.dvc"
        raise FileNotFoundError(f"{path} is missing; if it is a published file, `{fetch}` gets it")
    text, repairs = _decoded(path.read_bytes())

    rows, lines, blank, reader, line = [], [], [], csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(line)
            else:
                blank.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: {error}; double the quotes inside a quoted field") from None
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows; fetch it again or fill it")
    (header, *rows), (_, *lines) = rows, lines
    header = [name.strip() for name in header]

    split = []
    for n, (row, line) in enumerate(zip(rows, lines, strict=True)):
        more = len(row) - len(header)
        if more > 0 and join in header and "categories" not in header:
            start = header.index(join)
            rows[n] = [*row[:start], ",".join(row[start : start + more + 1]), *row[start + more + 1 :]]
            split.append(line)
        elif more:
            raise ValueError(
                f"{path}, line {line}: {len(row)} fields under {len(header)} columns; quote fields that hold commas"
            )
    repairs += _told("blank lines, dropped", blank)
    repairs += _told(f"commas without quotes in {join}, put together again", split)

    index = [n for n, name in enumerate(header) if re.fullmatch(r"|Unnamed: [0-9]+", name)]
    if index:
        repairs.append(f"index columns without a name, dropped: {len(index)}, the first is column {index[0] + 1}")
    kept = [n for n in range(len(header)) if n not in index]
    header, rows = [header[n] for n in kept], [[row[n] for n in kept] for row in rows]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: column {twice[0]} occurs twice; drop or rename one")
    return _Raw(header, rows, lines, repairs)


def _decoded(data: bytes) -> tuple[str, list[str]]:
    """Text of a file, and what was unusual about its bytes."""
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    marked = wide or data.startswith(b"\xef\xbb\xbf")
    bad = 1
    for encoding in ("utf-16" if wide else "utf-8-sig", "cp1252", "latin-1"):
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError as error:
            bad = data.count(b"\n", 0, error.start) + 1
    repairs = ["a byte order mark, dropped"] if marked else []
    if encoding != "utf-8-sig":
        repairs.append(f"not UTF-8, the first on line {bad}: read as {encoding}")
    windows = text.count("\r\n")
    if windows:
        repairs.append(f"Windows line ends: {windows}")
    return text, repairs


def _told(what: str, lines: list[int]) -> list[str]:
    return [f"{what}: {len(lines)}, the first on line {lines[0]}"] if lines else []


def _numbered(cases: list[int | None], lines: list[int]) -> tuple[list[int], list[str]]:
    """The case numbers, or the rows' own if some are missing or occur twice."""
    missing = [line for case, line in zip(cases, lines, strict=True) if case is None]
    seen, twice = set(), []
    for case, line in zip(cases, lines, strict=True):
        if case in seen and case is not None:
            twice.append(line)
        seen.add(case)
    if not missing and not twice:
        return cases, []
    repairs = _told("case numbers missing, rows numbered from 0", missing)
    repairs += _told("case numbers that occur again, rows numbered from 0", twice)
    return list(range(len(cases))), repairs


def _whole(cell: str) -> int:
    """A whole number that int64 holds, without passing through float: "12.0" is one, "12.5" and "-1" are not."""
    number = re.fullmatch(r"([0-9]+)(\.0*)?", cell.strip())
    if not number or int(number[1]) >= 2**63:
        raise ValueError("must be a whole number, 0 to 2⁶³ - 1")
    return int(number[1])


def _size(cell: str) -> int:
    pixels = _whole(cell)
    if pixels < 8 or pixels % 8:
        raise ValueError("must be a multiple of 8 pixels")
    return pixels


def _number(cell: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise ValueError("must be a number")
    return number


def _typed(cells: list[str]):
    """The cells as numbers if all are, else as text."""
    try:
        return pd.to_numeric(pd.Series(cells, dtype="str"))
    except ValueError:
        return pd.array(cells, dtype="str")
