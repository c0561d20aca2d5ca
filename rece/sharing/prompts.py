"""The prompt files of published experiments: their columns under one set of names, their defects mended and told."""

import csv
import io
import math
import operator
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

PAIR = ("sensitive prompt", "normal prompt")
IMAGES = {".jpg", ".jpeg", ".png", ".webp"}


class PromptFile(NamedTuple):
    """A prompt file as read: its table, and one line for each kind of defect that was mended or left."""

    table: pd.DataFrame
    repairs: list[str]


def _whole(cell: str) -> int:
    """A whole number that int64 holds, without passing through float: "12.0" is one, "12.5" and "-1" are not."""
    number = re.fullmatch(r"([0-9]+)(\.0*)?", cell.strip())
    if not number or int(number[1]) >= 2**63:
        raise ValueError
    return int(number[1])


def _pixels(cell: str) -> int:
    if _whole(cell) < 8 or _whole(cell) % 8:
        raise ValueError
    return _whole(cell)


def _finite(cell: str) -> float:
    if "_" in cell or not math.isfinite(float(cell)):
        raise ValueError
    return float(cell)


MISSING = -1  # a case number that the file does not give
WHOLE, PIXELS = "a whole number, 0 to 2⁶³ - 1", "a multiple of 8 pixels, 8 or more"
# Our columns: the names in files, of which the first that a file has is read; the dtype; what reads a cell (ValueError
# if it cannot); what a cell must be; and the value of an empty cell, if it may be empty and is not read.
COLUMNS = {
    "case": (("case", "case_number"), "int64", _whole, WHOLE, MISSING),
    "prompt": (("prompt",), "str", str, "", None),
    "seed": (("seed", "evaluation_seed"), "int64", _whole, WHOLE, None),
    "guidance": (("guidance", "evaluation_guidance"), "float64", _finite, "a finite number", math.nan),
    "width": (("width", "sd_image_width"), "Int64", _pixels, PIXELS, pd.NA),
    "height": (("height", "sd_image_height"), "Int64", _pixels, PIXELS, pd.NA),
    "label": (("label", "class", "artist", "categories"), "str", str, "", None),
}


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
    cells, repairs = _cells(path, join="prompt")
    found = {name: next((n for n in names if n in cells), None) for name, (names, *_) in COLUMNS.items()}
    for name in ("prompt", "seed"):
        if found[name] is None:
            pairs = "; read_pairs reads files of pairs" if set(PAIR) <= set(cells) else ""
            raise ValueError(f"{path}: no column {' or '.join(COLUMNS[name][0])} among {', '.join(cells)}{pairs}")
    table = pd.DataFrame(index=cells.index)
    for name, (_, dtype, parse, must_be, empty) in COLUMNS.items():
        values = []
        for line, cell in (cells[found[name]] if found[name] else pd.Series("", cells.index)).items():
            try:
                values.append(parse(cell) if cell.strip() or empty is None else empty)
            except ValueError:
                what = f"{name} must be {must_be}, not {cell!r}; mend the line"
                raise ValueError(f"{path}, line {line}: {what}") from None
        table[name] = pd.array(values, dtype=dtype)
    missing = table["case"] == MISSING
    again = table["case"].duplicated() & ~missing
    repairs += _told("case numbers missing, rows numbered from 0", table.index[missing])
    repairs += _told("case numbers that occur again, rows numbered from 0", table.index[again])
    if missing.any() or again.any():
        table["case"] = range(len(table))
    for name in cells:
        if name not in found.values():
            try:
                table[name] = pd.to_numeric(cells[name])
            except ValueError:
                table[name] = cells[name]
    repairs += _told("empty prompts, kept as they are", table.index[table["prompt"].str.strip() == ""])
    return PromptFile(table.reset_index(drop=True), repairs)


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read the pairs of a file with the columns "sensitive prompt" and "normal prompt": with the concept, without it.

    Raises FileNotFoundError, and ValueError naming the file and the line: no such columns, an empty text, a line with
    too few or too many fields.
    """
    cells, _ = _cells(path)
    for name in PAIR:
        if name not in cells:
            raise ValueError(f"{path}: no column {name} among {', '.join(cells)}; read reads files of prompts")
    pairs = list(cells[list(PAIR)].itertuples(index=False, name=None))
    for pair, line in zip(pairs, cells.index, strict=True):
        if not all(text.strip() for text in pair):
            raise ValueError(f"{path}, line {line}: an empty text; give both of the pair, or drop the line")
    return pairs


def labelled(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """The rows of a table of `read` whose label is `label` or has it as an item of its comma-separated list.

    Case does not matter: the published files write both "English springer" and "english springer". Raises ValueError
    if no row has it.
    """
    wanted = label.strip().casefold()
    rows = table[[wanted in (item.strip().casefold() for item in (cell, *cell.split(","))) for cell in table["label"]]]
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


def _cells(path: str | Path, join: str | None = None) -> tuple[pd.DataFrame, list[str]]:
    """A file's cells as text, indexed by the line where each row begins, and what was mended.

    join: the column that is put together again where it holds commas without quotes.
    """
    path = Path(path)
    if not path.is_file():
        fetch = f"dvc --cd {path.parent} pull {path.name}.dvc"
        raise FileNotFoundError(f"{path} is missing; if it is a published file, `{fetch}` gets it")
    text, repairs = _decoded(path.read_bytes())
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    rows, blank, reader, line = {}, [], csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows[line] = row
            else:
                blank.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: {error}; double the quotes inside a quoted field") from None
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows; fetch it again or fill it")
    header = [name.strip() for name in rows.pop(next(iter(rows)))]
    split = []
    for line, row in rows.items():
        more = len(row) - len(header)
        if more > 0 and join in header and "categories" not in header:
            start = header.index(join)
            if any(re.fullmatch(r"\s*[-+.\d]*\s*", cell) for cell in row[start + 1 : start + more + 1]):
                raise ValueError(
                    f"{path}, line {line}: {len(row)} fields under {len(header)} columns, and which belong to {join} "
                    f"is not clear; quote {join}, and write numbers with a point"
                )
            rows[line] = [*row[:start], ",".join(row[start : start + more + 1]), *row[start + more + 1 :]]
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
    cells = pd.DataFrame.from_dict(rows, orient="index", columns=header, dtype="str")
    cells = cells.iloc[:, [n for n in range(len(header)) if n not in index]]
    if not cells.columns.is_unique:
        twice = cells.columns[cells.columns.duplicated()][0]
        raise ValueError(f"{path}: column {twice} occurs twice; drop or rename one")
    return cells, repairs


def _decoded(data: bytes) -> tuple[str, list[str]]:
    """Text of a file, and what was unusual about its bytes."""
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    repairs = ["a byte order mark, dropped"] if wide or data.startswith(b"\xef\xbb\xbf") else []
    bad = 1
    for encoding in ("utf-16" if wide else "utf-8-sig", "cp1252", "latin-1"):
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError as error:
            bad = data.count(b"\n", 0, error.start) + 1
    if encoding != "utf-8-sig":
        repairs.append(f"not UTF-8, the first on line {bad}: read as {encoding}")
    windows = text.count("\r\n")
    return text, repairs + ([f"Windows line ends: {windows}"] if windows else [])


def _told(what: str, lines: Sequence[int]) -> list[str]:
    return [f"{what}: {len(lines)}, the first on line {lines[0]}"] if len(lines) else []
