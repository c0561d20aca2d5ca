"""Many images on disk: shards of PNGs with their hashes, checked when read.

A folder holds `plan.json` (see `rece.plan`) and for each shard

- `shard-00000.tar`: a plain tar of `<case>.png`, the layout that webdataset reads and every archive tool opens. The
  same images give the same bytes (for one version of Pillow): fixed order, no times, no owners.
- `shard-00000.jsonl`: first a line on the tar (its bytes and sha256, the plan it belongs to), then a line per image:
  case, offset and bytes of the PNG in the tar, its sha256, the batch_size it was drawn in, seconds (of its batch,
  divided by the images of it), and the versions and device it was drawn with.

A shard counts as finished when both are there; `rece.writing` makes them. To draw a shard again delete its tar or its
jsonl and run the drawing again. Tar rather than parquet: an image is found by its offset without reading the others,
and no further library is needed.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from rece import files, plan

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
            raise FileNotFoundError(f"{path} is missing: there are no images in this folder; draw some")
        try:
            made = json.loads(path.read_text(encoding="utf-8"))
            self.settings, self.digest, self.shards = made["settings"], made["digest"], made["shards"]
            self.table = pd.DataFrame(made["table"]).astype({"width": "Int64", "height": "Int64"})
            whole = self.digest == plan.digest(made) and sorted(chain(*self.shards)) == list(range(len(self.table)))
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
                if files.sha256(self.path(shard)) != self._read(shard)[0]["sha256"]:
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
        for entry, right in zip(entries, parallel(sha256_of, found), strict=True):
            if entry["sha256"] != right:
                raise self._damaged(self.path(shard), f"{entry['case']}.png has another sha256")
        return found

    def _damaged(self, path: Path, reason: str) -> ValueError:
        return ValueError(f"{path} is damaged ({reason}): delete it and draw again with the same settings")


def parallel(function: Callable, items: Iterable) -> list:
    """The function of every item, in threads: for PNGs and hashes, which release the interpreter's lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))


def sha256_of(data) -> str:
    """The hex digest of bytes, or of anything else with a buffer."""
    return hashlib.sha256(data).hexdigest()


def _decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))
