"""Many images on disk: shards of PNGs with their hashes, written whole or not at all, and checked when read.

A folder holds `plan.json` (the prompt table, the settings, and which row lies in which shard) and for each shard

- `shard-00000.tar`: a plain tar of `<case>.png`, the layout that webdataset reads and every archive tool opens. The
  same images give the same bytes (for one version of Pillow): fixed order, no times, no owners.
- `shard-00000.jsonl`: first a line on the tar (its bytes and sha256, the plan it belongs to), then a line per image:
  case, offset and bytes of the PNG in the tar, its sha256, the batch_size it was drawn in, seconds (of its batch,
  divided by the images of it), and the versions and device it was drawn with.

A shard counts as finished when both are there. While it is drawn its batches lie in `shard-00000.parts`. To draw a
shard again delete its tar or its jsonl and run the drawing again. Tar rather than parquet: an image is found by its
offset without reading the others, and no further library is needed.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

DRAWN = ("case", "prompt", "seed", "guidance", "width", "height")  # the columns that decide the images
NOTE = "part.jsonl"  # the member of a part that describes the others
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, tarfile.TarError)  # what a damaged file can raise


class Shards:
    """The images of a folder, by the rows of the table they were drawn from.

    table: the plan's DataFrame: case (text), prompt, seed, guidance, width, height (NA is the pipeline's own size) and
    whatever other columns were given. settings: dict. digest: sha256 of what decides the images. shards: the rows in
    each shard, as positions in the table.
    Raises FileNotFoundError if the folder has no plan, ValueError if the plan is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / "plan.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: there are no images in this folder; rece.draw makes them")
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
            self.settings, self.digest, self.shards = plan["settings"], plan["digest"], plan["shards"]
            self.table = pd.DataFrame(plan["table"]).astype({"width": "Int64", "height": "Int64"})
            whole = self.digest == _digest(plan) and sorted(chain(*self.shards)) == list(range(len(self.table)))
        except UNREADABLE as error:
            raise ValueError(f"{path} is damaged ({error}): delete it and draw again with the same settings") from None
        if not whole:
            raise ValueError(f"{path} is damaged: delete it and draw again with the same settings")
        self._place = {row: (shard, n) for shard, rows in enumerate(self.shards) for n, row in enumerate(rows)}
        self._entries: dict[int, list[dict]] = {}

    def __len__(self) -> int:
        """The images of the plan, drawn or not."""
        return len(self.table)

    def __repr__(self) -> str:
        missing = f"{len(self.missing())} of {len(self.shards)} shards missing"
        return f"Shards({str(self.folder)!r}: {len(self)} images, {missing})"

    def path(self, shard: int, ending: str = "tar") -> Path:
        """The file or folder of a shard: tar, jsonl or parts."""
        return self.folder / f"shard-{shard:05d}.{ending}"

    def finished(self, shard: int) -> bool:
        """Whether both files of the shard are there; `verify` says whether they are whole."""
        return self.path(shard).exists() and self.path(shard, "jsonl").exists()

    def missing(self) -> list[int]:
        """The shards that are not finished."""
        return [shard for shard in range(len(self.shards)) if not self.finished(shard)]

    def entries(self, shard: int) -> list[dict]:
        """What the shard's jsonl says of each image. Reads no image; checks the plan, the cases and the tar's size.

        Raises FileNotFoundError or ValueError naming the file, and how to make it again.
        """
        if shard not in self._entries:
            for path in (self.path(shard), self.path(shard, "jsonl")):
                if not path.exists():
                    raise FileNotFoundError(f"{path} is missing: draw again with the same settings")
            head, entries = self._read(shard)
            if head["plan"] != self.digest:
                raise ValueError(
                    f"{self.path(shard)} belongs to another plan: use another folder, or delete the shard"
                )
            if [entry["case"] for entry in entries] != self.table["case"].iloc[self.shards[shard]].tolist():
                raise self._damaged(self.path(shard, "jsonl"), "it lists other cases than the plan")
            if self.path(shard).stat().st_size != head["bytes"]:
                raise self._damaged(self.path(shard), f"it has not {head['bytes']} bytes")
            self._entries[shard] = entries
        return self._entries[shard]

    def damaged(self, among: Iterable[int] | None = None, progress: bool = False) -> dict[int, str]:
        """Read every finished shard (`among` these) in full; those whose hashes do not agree, with what is wrong."""
        found = {}
        done = [shard for shard in (range(len(self.shards)) if among is None else among) if self.finished(shard)]
        for shard in tqdm(done, desc="verify", unit=" shards", delay=1, leave=False, disable=not progress):
            self._entries.pop(shard, None)
            try:
                self._pngs(shard, self.entries(shard))
                with self.path(shard).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != self._read(shard)[0]["sha256"]:
                        raise self._damaged(self.path(shard), "its sha256 is another one")
            except (ValueError, OSError) as error:
                found[shard] = str(error)
        return found

    def verify(self, progress: bool = False) -> None:
        """Check every byte of all shards. Raises ValueError that names each missing and damaged one."""
        wrong = [f"{self.path(shard)} is missing: draw again with the same settings" for shard in self.missing()]
        wrong += self.damaged(progress=progress).values()
        if wrong:
            raise ValueError(f"{len(wrong)} of {len(self.shards)} shards are missing or damaged: {'; '.join(wrong)}")

    def images(self, rows: Sequence[int]) -> np.ndarray:
        """The images of these rows (positions in the table): uint8 (n, height, width, 3). Hashes are checked.

        Raises IndexError for an unknown row, FileNotFoundError or ValueError naming a file that is missing or damaged,
        ValueError if the images are not all of one size.
        """
        wanted: dict[int, list[tuple[int, int]]] = {}
        for n, row in enumerate(rows):
            if row not in self._place:
                raise IndexError(f"rows holds {row!r}, but the rows are 0 to {len(self) - 1}")
            shard, place = self._place[row]
            wanted.setdefault(shard, []).append((n, place))
        pngs: list[bytes] = [b""] * len(rows)
        for shard, places in wanted.items():
            entries = self.entries(shard)
            found = self._pngs(shard, [entries[place] for _, place in places])
            for (n, _), png in zip(places, found, strict=True):
                pngs[n] = png
        images = parallel(_decoded, pngs)
        sizes = {image.shape for image in images}
        if len(sizes) != 1:
            raise ValueError(f"rows must be images of one size, not of {len(sizes)} sizes: ask for each apart")
        return np.stack(images)

    def batches(self, batch_size: int = 64) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
        """All images in the table's order: the rows and uint8 (n, height, width, 3), n at most batch_size.

        Rows of another size begin another batch. Raises as `images`, and before anything is read if shards are
        missing.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        for shard in range(len(self.shards)):
            self.entries(shard)
        sizes = list(zip(self.table["width"].fillna(0), self.table["height"].fillna(0), strict=True))
        start = 0
        while start < len(self):
            end = start + 1
            while end < min(start + batch_size, len(self)) and sizes[end] == sizes[start]:
                end += 1
            yield self.table.iloc[start:end], self.images(range(start, end))
            start = end

    def _read(self, shard: int) -> tuple[dict, list[dict]]:
        path = self.path(shard, "jsonl")
        try:
            head, *entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if len(entries) != head["images"]:
                raise ValueError(f"{len(entries)} lines for {head['images']} images")
            return head, entries
        except UNREADABLE as error:
            raise self._damaged(path, str(error)) from None

    def _pngs(self, shard: int, entries: list[dict]) -> list[bytes]:
        """The files in the tar, their hashes checked."""
        found = []
        with self.path(shard).open("rb") as file:
            for entry in entries:
                file.seek(entry["offset"])
                found.append(file.read(entry["bytes"]))
        for entry, right in zip(entries, parallel(_sha256, found), strict=True):
            if entry["sha256"] != right:
                raise self._damaged(self.path(shard), f"{entry['case']}.png has another sha256")
        return found

    def _damaged(self, path: Path, reason: str) -> ValueError:
        return ValueError(f"{path} is damaged ({reason}): delete it and draw again with the same settings")


def begin(folder: str | Path, table: pd.DataFrame, settings: dict) -> Shards:
    """Write the plan into the folder, or see that the folder's plan is the same one.

    table: the columns case, prompt, seed, guidance, width, height, complete and checked, and others that are carried
    along (a later call with other values in those replaces them). settings: JSON-able, with shard_size, and whatever
    else decides the images. Rows of the same guidance and size are put together, so that few batches need filling up.
    Raises ValueError naming what differs if the folder holds another plan.
    """
    folder = Path(folder)
    groups: dict[tuple, list[int]] = {}
    columns = {name: [_plain(value) for value in table[name]] for name in table}
    for row, key in enumerate(zip(columns["guidance"], columns["width"], columns["height"], strict=True)):
        groups.setdefault(key, []).append(row)
    order, size = list(chain(*groups.values())), settings["shard_size"]
    shards = [order[start : start + size] for start in range(0, len(order), size)]
    plan = json.loads(json.dumps({"settings": settings, "shards": shards, "table": columns}))
    plan["digest"] = _digest(plan)
    text = json.dumps(plan, ensure_ascii=False).encode()
    path = folder / "plan.json"
    if path.exists():
        before = Shards(folder)
        if before.digest != plan["digest"]:
            there = {"settings": before.settings, "table": before.table}
            raise ValueError(f"folder: {folder} holds another plan ({_difference(there, plan)}): use another folder")
        if path.read_bytes() == text:
            return before
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(path, folder) as file:
        file.write(text)
    return Shards(folder)


def keep(shards: Shards, shard: int, rows: Sequence[int], images: np.ndarray, note: dict) -> None:
    """Save a batch of images (uint8, (n, height, width, 3)) of a shard that is being drawn, in one file.

    note: JSON-able, goes into the line of every image.
    """
    cases = shards.table["case"].iloc[list(rows)].tolist()
    pngs = parallel(_encoded, images)
    lines = [{"case": case, "sha256": _sha256(png), **note} for case, png in zip(cases, pngs, strict=True)]
    folder = shards.path(shard, "parts")
    folder.mkdir(exist_ok=True)
    with _replacing(folder / f"{shards.shards[shard].index(rows[0]):05d}.tar", folder) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            _add(tar, NOTE, _lines(lines, plan=shards.digest))
            for case, png in zip(cases, pngs, strict=True):
                _add(tar, f"{case}.png", png)


def kept(shards: Shards, shard: int) -> dict[int, tuple[Path, dict]]:
    """The rows of an unfinished shard that are saved: row -> the part and the image's line.

    A damaged part is deleted, with a warning. Raises ValueError if a part belongs to another plan.
    """
    rows = dict(zip(shards.table["case"].iloc[shards.shards[shard]], shards.shards[shard], strict=True))
    found = {}
    for path in sorted(shards.path(shard, "parts").glob("*.tar")):
        try:
            head, lines = _part(path)
        except FileNotFoundError:  # another process has finished this shard
            continue
        except UNREADABLE as error:
            warnings.warn(f"{path} is damaged ({error}): its images are drawn again", stacklevel=2)
            path.unlink(missing_ok=True)
            continue
        if head["plan"] != shards.digest:
            raise ValueError(f"{path} belongs to another plan: use another folder, or delete {path.parent}")
        for line in lines:
            found[rows[line["case"]]] = path, line
    return found


def finish(shards: Shards, shard: int, found: dict[int, tuple[Path, dict]]) -> None:
    """Merge the parts of a shard (all of `kept`) into its tar and jsonl, and remove them.

    Raises FileNotFoundError if another process has removed a part meanwhile.
    """
    shards.path(shard, "jsonl").unlink(missing_ok=True)  # of a tar that was deleted
    folder, entries = shards.path(shard, "parts"), []
    opened: tuple[Path | None, dict[str, bytes]] = (None, {})
    with _replacing(shards.path(shard), folder) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row in shards.shards[shard]:
                path, line = found[row]
                if opened[0] != path:
                    opened = path, _members(path)
                png = opened[1][f"{line['case']}.png"]
                entries.append(
                    {"case": line["case"], "offset": file.tell() + tarfile.BLOCKSIZE, "bytes": len(png), **line}
                )
                _add(tar, f"{line['case']}.png", png)
        size = file.tell()
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    head = {"tar": shards.path(shard).name, "plan": shards.digest, "bytes": size, "sha256": sha256}
    with _replacing(shards.path(shard, "jsonl"), folder) as file:
        file.write(_lines(entries, **head))
    shutil.rmtree(folder, ignore_errors=True)


def discard(shards: Shards, shard: int) -> None:
    """Delete a shard, so that it is drawn again."""
    for ending in ("jsonl", "tar"):
        shards.path(shard, ending).unlink(missing_ok=True)


def parallel(function: Callable, items: Iterable) -> list:
    """The function of every item, in threads: for PNGs and hashes, which release the interpreter's lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))


@contextmanager
def _replacing(path: Path, beside: Path):
    """A file to write, in the folder `beside`, that is renamed to `path` when it is whole and on the disk."""
    handle, part = tempfile.mkstemp(dir=beside, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def _part(path: Path) -> tuple[dict, list[dict]]:
    """The lines of a part, after a check of its hashes."""
    files = _members(path)
    head, *lines = [json.loads(line) for line in files.pop(NOTE).decode().splitlines()]
    for line in lines:
        if _sha256(files.pop(f"{line['case']}.png")) != line["sha256"]:
            raise ValueError(f"{line['case']}.png has another sha256")
    if files or head["images"] != len(lines):
        raise ValueError("it is not whole")
    return head, lines


def _lines(lines: list[dict], **head) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in ({**head, "images": len(lines)}, *lines)).encode()


def _encoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _plain(value):
    """A table's value as JSON has it."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, bool | int | float | str) else str(value)


def _digest(plan: dict) -> str:
    drawn = {name: plan["table"][name] for name in DRAWN}
    return _sha256(json.dumps([plan["settings"], plan["shards"], drawn], sort_keys=True).encode())


def _difference(there: dict, now: dict) -> str:
    """What differs first, in words."""
    before, after = _flat(there["settings"]), _flat(now["settings"])
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            return f"{name} is {_short(before.get(name))} there, but {_short(after.get(name))} now"
    rows = len(now["table"]["case"])
    if len(there["table"]) != rows:
        return f"its table has {len(there['table'])} rows there, but {rows} now"
    for name in DRAWN:
        for row, (a, b) in enumerate(zip(map(_plain, there["table"][name]), now["table"][name], strict=True)):
            if a != b:
                return f"{name} of row {row} is {_short(a)} there, but {_short(b)} now"
    return "the rows lie in other shards"


def _flat(tree: dict, before: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
