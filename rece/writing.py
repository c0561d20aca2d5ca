"""Writing images into shards: batch by batch, so that whatever ends a run, even kill -9, loses no other batch.

While a shard is drawn, each of its batches lies in a file of its own in `shard-00000.parts`: a tar of the PNGs and a
jsonl member with their hashes. Once all are there they are merged into the files that `rece.shards` reads. Every file
is whole or not there, and several processes may write into one folder.
"""

import hashlib
import io
import json
import shutil
import tarfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from rece import files, plan
from rece.shards import UNREADABLE, Shards, parallel, sha256_of

NOTE = "part.jsonl"  # the member of a part that describes the others
LEFTOVER = 3600.0  # seconds after which an unfinished plan.json is a killed run's, and not being written


def begin(folder: str | Path, table: pd.DataFrame, settings: dict) -> Shards:
    """Write the plan into the folder, or see that the folder's plan is the same one.

    table, settings: see `plan.make`. A later call with other values in columns that do not decide the images replaces
    those. Raises ValueError naming what differs if the folder holds another plan.
    """
    path = Path(folder, "plan.json")
    for left in path.parent.glob(f".{path.name}.*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > LEFTOVER:
                left.unlink()
    now = plan.make(table, settings)
    text = json.dumps(now, ensure_ascii=False).encode()
    if path.exists():
        before = Shards(folder)
        if before.digest != now["digest"]:
            differs = plan.difference(json.loads(path.read_bytes()), now)
            raise ValueError(f"folder: {folder} holds another plan ({differs}): use another folder")
        if path.read_bytes() == text:
            return before
    with files.replacing(path) as file:
        file.write(text)
    return Shards(folder)


def keep(shards: Shards, shard: int, rows: Sequence[int], images: np.ndarray, note: dict) -> None:
    """Save a batch of images (uint8, (n, height, width, 3)) of a shard that is being drawn, in one part.

    note: JSON-able, goes into the line of every image. Raises FileNotFoundError if another process has removed the
    folder of the parts meanwhile.
    """
    cases = shards.table["case"].iloc[list(rows)].tolist()
    pngs = parallel(_encoded, images)
    lines = [{"case": case, "sha256": sha256_of(png), **note} for case, png in zip(cases, pngs, strict=True)]
    folder = shards.path(shard, "parts")
    folder.mkdir(exist_ok=True)
    with files.replacing(folder / f"{shards.shards[shard].index(rows[0]):05d}.tar", folder) as file:
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
    if not shards.path(shard).exists():
        shards.path(shard, "jsonl").unlink(missing_ok=True)  # of a tar that was deleted
    folder, entries = shards.path(shard, "parts"), []
    opened: tuple[Path | None, dict[str, bytes]] = (None, {})
    with files.replacing(shards.path(shard), folder) as file:
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
    with files.replacing(shards.path(shard, "jsonl"), folder) as file:
        file.write(_lines(entries, **head))
    shutil.rmtree(folder, ignore_errors=True)


def discard(shards: Shards, shard: int) -> None:
    """Delete a shard, so that it is drawn again."""
    for ending in ("jsonl", "tar"):
        shards.path(shard, ending).unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def _part(path: Path) -> tuple[dict, list[dict]]:
    """The lines of a part, after a check of its hashes."""
    members = _members(path)
    head, *lines = [json.loads(line) for line in members.pop(NOTE).decode().splitlines()]
    for line in lines:
        if sha256_of(members.pop(f"{line['case']}.png")) != line["sha256"]:
            raise ValueError(f"{line['case']}.png has another sha256")
    if members or head["images"] != len(lines):
        raise ValueError("it is not whole")
    return head, lines


def _lines(lines: list[dict], **head) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in ({**head, "images": len(lines)}, *lines)).encode()


def _encoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
