"""Tens of thousands of images, in batches, resumable: `python -m rece draw`.

The plan (every row of the table, the settings, what the pipeline is) is written first; another plan is refused in the
same folder. Each batch is saved at once, so whatever ends a run, even kill -9 or a power cut, loses the batch that
was being drawn and no other; the same call again draws what is missing, to the same bits. See `rece.shards` for the
files.

Several GPUs can share the work, in the same folder (shared between the machines), by parts here or by Dask in
`rece.cluster`; all give the bits of a serial run on the same device, and can go on from each other's work.
"""

import hashlib
import json
import numbers
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import diffusers
import numpy as np
import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from rece import plan, writing
from rece.images import bfloat16, generate
from rece.shards import Shards, parallel

SMALLER = "images drawn in smaller batches may differ in rounding from those of a run without (see the jsonl files)"


def draw(
    pipe: DiffusionPipeline,
    table: pd.DataFrame,
    folder: str | Path,
    *,
    steps: int = 50,
    guidance: float = 7.5,
    batch_size: int = 8,
    bf16: bool | str = False,
    shard_size: int = 256,
    identity: dict | None = None,
    part: tuple[int, int] | None = None,
    repair: bool = False,
    progress: bool = True,
) -> Shards:
    """Draw an image for every row of the table into the folder, as far as it is not there yet.

    table: columns prompt (text) and seed (0 to 2^64 - 1); optionally guidance, width and height (pixels, multiples of
    8), where a missing value is `guidance` and the pipeline's own size, and case (unique, of letters, digits, - and
    _; by default the number of the row). Other columns are carried along for readers.
    steps, batch_size, bf16: see `generate`; the images do not depend on shard_size (images in a file; best a multiple
    of batch_size) and the order of the rows, if batch_size is even. identity: what else must be the same when a
    run goes on, JSON-able; the pipeline's class, scheduler, weights (a hash of them all, with an applied eraser) and
    device are compared in any case. part: (k, n) draws only the k-th of n parts, k from 1: every n-th shard, for job
    arrays. repair: check all hashes first, and draw damaged shards again; without it a shard that was cut short is an
    error.

    Out of memory, the batch is halved, and a warning says that the rounding of those images may differ; each image's
    batch_size is in the shard's jsonl. The bar counts missing images. Several processes may draw into one folder.
    Raises ValueError or TypeError naming the parameter, or what differs from the plan in the folder, before anything
    is drawn; ValueError if an image is not finite (its batch is not saved); RuntimeError if one image alone is too
    large for the memory.
    """
    k, n = part or (1, 1)
    if not 1 <= k <= n:
        raise ValueError(f"part must be (k, n) with k from 1 to n, not {part}")
    rows = plan.check(table, guidance)
    shards = writing.begin(folder, rows, settings(pipe, steps, batch_size, bf16, shard_size, identity))
    todo = unfinished(shards, range(k - 1, len(shards.shards), n), repair, progress)
    with tqdm(total=missing(shards, todo), desc="draw", unit=" images", smoothing=0.1, disable=not progress) as bar:
        fill(pipe, shards, todo, bar.update)
    return shards


def fingerprint(pipe: DiffusionPipeline) -> dict:
    """What a pipeline is: its class, its scheduler with its settings, and a sha256 of all its weights.

    Weights count with name, shape, dtype and bits, wherever they are; of weights that are not in memory (sequential
    offload) the bits are left out. Takes about half a second per gigabyte and core.
    """
    weights = {
        f"{part}.{name}": tensor
        for part, module in pipe.components.items()
        if isinstance(module, torch.nn.Module)
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor)
    }
    names = sorted(weights)
    lines = zip(names, parallel(_hash, [weights[name] for name in names]), strict=True)
    sha256 = hashlib.sha256("".join(f"{name} {line}\n" for name, line in lines).encode())
    config = json.loads(pipe.scheduler.to_json_string())
    scheduler = {name: value for name, value in config.items() if not name.startswith("_")}
    scheduler["class"] = type(pipe.scheduler).__name__
    return {"pipeline": type(pipe).__name__, "scheduler": scheduler, "weights": sha256.hexdigest()}


def settings(
    pipe: DiffusionPipeline, steps: int, batch_size: int, bf16: bool | str, shard_size: int, identity: dict | None
) -> dict:
    """What decides the images beside the table, as JSON has it.

    Raises ValueError or TypeError naming the parameter.
    """
    counts(steps=steps, batch_size=batch_size, shard_size=shard_size)
    device = pipe._execution_device
    try:
        identity = json.loads(json.dumps(identity or {}))
    except TypeError as error:
        raise TypeError(f"identity must be JSON-able: {error}") from None
    found = {"steps": int(steps), "batch_size": int(batch_size), "shard_size": int(shard_size), "identity": identity}
    found |= {"bf16": bfloat16(device, bf16), "device": device.type, **fingerprint(pipe)}
    return found | ({"threads": torch.get_num_threads()} if device.type == "cpu" else {})


def counts(**given: int) -> None:
    """Raises ValueError naming the first of these that is no whole number, 1 or more."""
    for name, value in given.items():
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, not {value!r}")


def unfinished(shards: Shards, among: Sequence[int], repair: bool, progress: bool) -> list[int]:
    """Those of the shards that are to be drawn, after a check of the others; see `draw`."""
    if repair:
        for shard, reason in shards.damaged(among, progress).items():
            warnings.warn(f"drawing a damaged shard again: {reason}", stacklevel=3)
            writing.discard(shards, shard)
    todo = [shard for shard in among if not shards.finished(shard)]
    for shard in sorted(set(among) - set(todo)):
        shards.entries(shard)
        shutil.rmtree(shards.path(shard, "parts"), ignore_errors=True)
    return todo


def missing(shards: Shards, todo: list[int]) -> int:
    """How many images of these shards are not saved yet."""
    return sum(len(shards.shards[shard]) - len(writing.kept(shards, shard)) for shard in todo)


def fill(pipe: DiffusionPipeline, shards: Shards, todo: list[int], drawn: Callable[[int], object]) -> None:
    """Draw what is missing of these shards; `drawn` is told how many images each batch gave."""
    fits: dict[tuple, int] = {}
    for shard in todo:
        while not shards.finished(shard):
            saved = writing.kept(shards, shard)
            left = [row for row in shards.shards[shard] if row not in saved]
            try:
                if not left:
                    writing.finish(shards, shard, saved)
                for rows in _alike(shards.table, left):
                    while rows and not shards.finished(shard):
                        start = time.monotonic()
                        images, size = _batch(pipe, shards.table.iloc[rows], shards.settings, fits)
                        seconds = round((time.monotonic() - start) / len(images), 4)
                        note = {"batch_size": size, "seconds": seconds, "drawn_with": _drawn_with(pipe)}
                        writing.keep(shards, shard, rows[:size], images, note)
                        rows = rows[size:]
                        drawn(len(images))
            except FileNotFoundError:  # another process was faster, and has removed the parts
                if not shards.folder.exists():
                    raise


def _hash(tensor: Tensor) -> str:
    sha256 = hashlib.sha256()
    if not tensor.is_meta:
        sha256.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return f"{tensor.dtype} {tuple(tensor.shape)} {sha256.hexdigest()}"


def _alike(table: pd.DataFrame, rows: list[int]) -> list[list[int]]:
    """The rows of a shard by guidance and size, which the plan has put together."""
    return [list(group) for _, group in groupby(rows, key=lambda row: _kind(table.iloc[row]))]


def _kind(row: pd.Series) -> tuple[float, int | None, int | None]:
    return row["guidance"], *(None if pd.isna(row[side]) else int(row[side]) for side in ("width", "height"))


def _batch(pipe: DiffusionPipeline, rows: pd.DataFrame, settings: dict, fits: dict) -> tuple[np.ndarray, int]:
    """The images of the first of these rows, as many as a batch holds, and the batch size.

    fits: batch sizes that were small enough, by image size; a smaller one is added if the memory does not suffice.
    """
    guidance, width, height = _kind(rows.iloc[0])
    while True:
        size = fits.get((width, height), settings["batch_size"])
        now = rows.iloc[:size]
        try:
            images = generate(
                pipe, now["prompt"].tolist(), now["seed"].tolist(), steps=settings["steps"], guidance=guidance,
                width=width, height=height, batch_size=size, bf16=settings["bf16"], progress=False,
            )  # fmt: skip
            return images, size
        except ValueError as error:
            raise ValueError(f"{error} (cases {', '.join(now['case'])})") from error
        except RuntimeError as error:
            if not should_reduce_batch_size(error) and "out of memory" not in str(error):
                raise
            reason = " ".join(str(error).split())  # nothing else is kept: its traceback holds the batch's memory
        clear_device_cache(garbage_collection=True)
        pixels = f"{width} x {height} pixels" if width else "the model's own size"
        if size == 1:
            raise RuntimeError(f"out of memory with one image of {pixels}: use dtype float16, or a smaller size")
        fits[width, height] = max(1, size // 4 * 2)
        warnings.warn(
            f"batch_size {size} is out of memory ({reason}): going on with {fits[width, height]}; {SMALLER}",
            stacklevel=2,
        )


def _drawn_with(pipe: DiffusionPipeline) -> str:
    device = pipe._execution_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"torch {torch.__version__}, diffusers {diffusers.__version__}, {name}"
