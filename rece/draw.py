"""`python -m rece.draw`: tens of thousands of images, in batches, resumable, on one GPU or many.

The plan (every row of the table, the settings, what the pipeline is) is written first; another plan is refused in the
same folder. Each batch is saved at once, so whatever ends a run, even kill -9 or a power cut, loses the batch that
was being drawn and no other; the same call again draws what is missing, to the same bits. See `rece.shards` for the
files.

Three ways to use several GPUs, all of which give the bits of a serial run on the same device and can go on from each
other's work in the same folder (shared between the machines):

- `--part 3/16` draws every 16th shard, beginning with the third: for job arrays. No engine, nothing to install.
- `--workers 4` starts that many processes on this machine, each with a GPU of its own.
- `draw_distributed` (`--scheduler-file`) gives the shards to the workers of any Dask cluster. Dask rather than
  accelerate: accelerate splits the prompts once and for all, and ends all processes if one ends; Dask hands the next
  shard to whoever is free and a lost worker's shard to another.
"""

import argparse
import hashlib
import inspect
import json
import logging
import math
import numbers
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import diffusers
import numpy as np
import pandas as pd
import torch
import transformers
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers import DiffusionPipeline, SchedulerMixin
from tqdm import tqdm

from rece import shards as disk
from rece.eraser import Eraser
from rece.generate import bfloat16, generate
from rece.shards import Shards

DTYPES = ("float32", "float16", "bfloat16")
LOAD = ("model", "revision", "eraser", "dtype", "scheduler", "device")

_one_at_a_time = threading.Lock()  # a worker with several threads has one pipeline, which keeps state while it draws


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
    device are compared in any case. part: (k, n) draws only the k-th of n parts, k from 1. repair: check all hashes
    first, and draw damaged shards again; without it a shard that was cut short is an error.

    Out of memory, the batch is halved, and a warning says that the rounding of those images may differ; each image's
    batch_size is in the shard's jsonl. The bar counts missing images. Several processes may draw into one folder.
    Raises ValueError or TypeError naming the parameter, or what differs from the plan in the folder, before anything
    is drawn; ValueError if an image is not finite (its batch is not saved); RuntimeError if one image alone is too
    large for the memory.
    """
    rows = check(table, guidance)
    settings = _settings(pipe, steps, batch_size, bf16, shard_size, identity)
    shards = disk.begin(folder, rows, settings)
    todo = _todo(shards, part, repair, progress)
    with tqdm(total=_missing(shards, todo), desc="draw", unit=" images", smoothing=0.1, disable=not progress) as bar:
        _fill(pipe, shards, todo, bar.update)
    return shards


def draw_distributed(
    load: dict,
    table: pd.DataFrame,
    folder: str | Path,
    client,
    *,
    steps: int = 50,
    guidance: float = 7.5,
    batch_size: int = 8,
    bf16: bool | str = False,
    shard_size: int = 256,
    identity: dict | None = None,
    repair: bool = False,
    progress: bool = True,
) -> Shards:
    """`draw` on the workers of a Dask cluster: one task per shard, the same bits, the same files.

    load: what `load_pipeline` takes; each worker process loads it once, and its weights must be the plan's. client: a
    `distributed.Client`, whose workers see the folder under the same path and best have one GPU and one thread each
    (threads wait for each other). Other arguments as for `draw`. A lost worker's shard goes to another one, which
    continues after the last batch saved; the bar moves by shards.
    Raises as `draw`, and RuntimeError if one shard has ended several workers.
    """
    from distributed import KilledWorker, as_completed

    rows = check(table, guidance)
    _count(steps=steps, batch_size=batch_size, shard_size=shard_size)
    folder = Path(folder).resolve()
    settings = client.submit(
        _on_worker_settings, load, torch.get_num_threads(), steps, batch_size, bf16, shard_size, identity, pure=False
    ).result()
    shards = disk.begin(folder, rows, settings)
    todo = _todo(shards, None, repair, progress)
    futures = [client.submit(_on_worker_fill, load, str(folder), shard, pure=False) for shard in todo]
    bar = tqdm(total=_missing(shards, todo), desc="draw", unit=" images", smoothing=0.1, disable=not progress)
    try:
        for future in as_completed(futures):
            bar.update(future.result())
    except KilledWorker as error:
        raise RuntimeError(f"a shard has ended several workers, see their logs; then draw again: {error}") from None
    finally:
        bar.close()
        client.cancel(futures)
    smaller = sum(entry["batch_size"] < batch_size for shard in todo for entry in shards.entries(shard))
    if smaller:
        warnings.warn(_smaller(f"{smaller} images"), stacklevel=2)
    return shards


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


def fingerprint(pipe: DiffusionPipeline) -> dict:
    """What a pipeline is: its class, its scheduler with its settings, and the sha256 of all its weights.

    Weights count with name, shape, dtype and bits, wherever they are; of weights that are not in memory (sequential
    offload) the bits are left out. Takes about a second per gigabyte.
    """
    sha256 = hashlib.sha256()
    for part, module in sorted(pipe.components.items()):
        if isinstance(module, torch.nn.Module):
            for name, tensor in sorted(module.state_dict().items()):
                if isinstance(tensor, torch.Tensor):
                    sha256.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                    if not tensor.is_meta:
                        sha256.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    config = {name: value for name, value in sorted(pipe.scheduler.config.items()) if not name.startswith("_")}
    scheduler = {"class": type(pipe.scheduler).__name__, **config}
    return {"pipeline": type(pipe).__name__, "scheduler": scheduler, "weights": sha256.hexdigest()}


def load_pipeline(description: dict) -> DiffusionPipeline:
    """The pipeline that a description names, without safety checker, ready to draw.

    description: model (a folder, or a hub id), revision (the full commit hash; hub ids need it), eraser (a file of
    `Eraser.save`, applied), dtype (float32 by default, float16 or bfloat16), scheduler (the name of a scheduler of
    diffusers, which gets the settings of the model's own), device (by default the GPU if there is one).
    Weights are read from safetensors files only.
    Raises ValueError or FileNotFoundError naming the entry.
    """
    unknown = sorted(set(description) - set(LOAD))
    if unknown or not isinstance(description.get("model"), str):
        raise ValueError(f"load must have model, and may have {', '.join(LOAD[1:])}; it has {sorted(description)}")
    model, revision, eraser, dtype, scheduler, device = (description.get(name) for name in LOAD)
    dtype = dtype or "float32"
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    kind = getattr(diffusers, scheduler, None) if scheduler else None
    if scheduler and not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(
            f"scheduler must be a scheduler of diffusers, such as LMSDiscreteScheduler, not {scheduler!r}"
        )
    eraser = Eraser.load(eraser) if eraser else None
    options = {}
    if not Path(model).is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            raise FileNotFoundError(f"model: there is no folder {model!r}, and it is no hub id (owner/name)")
        if not re.fullmatch("[0-9a-f]{40}", revision or ""):
            raise ValueError(
                f"revision must be the full commit hash (40 digits) of {model} on the hub, not {revision!r}, so that "
                "the images can be drawn again: give --revision; or is the folder missing?"
            )
        options["revision"] = revision
    try:
        name = DiffusionPipeline.load_config(model, **options)["_class_name"]
        parts = inspect.signature(getattr(diffusers, name, DiffusionPipeline).__init__).parameters
        if "safety_checker" in parts:  # files of SD 1.x name a feature extractor that transformers no longer has
            bare = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            options |= {key: value for key, value in bare.items() if key in parts}
        pipe = DiffusionPipeline.from_pretrained(model, dtype=getattr(torch, dtype), use_safetensors=True, **options)
    except (OSError, KeyError) as error:
        where = "not in the local cache, or the hub cannot be reached" if "revision" in options else "not whole"
        raise FileNotFoundError(f"model: {model} cannot be loaded, it is {where} ({_line(error)})") from error
    if kind is not None:
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    if eraser is not None:
        eraser.apply(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    _quiet()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"rece.draw: warning: {message}", file=sys.stderr)
            shards = _command(options)
    except KeyboardInterrupt:
        print("rece.draw: interrupted; the same command again draws what is missing", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        print(f"rece.draw: error: {_line(error)}", file=sys.stderr)
        return 1
    print(shards)
    return 0


def _command(options: argparse.Namespace) -> Shards:
    from rece import prompts

    read = prompts.read(options.prompts)
    for repair in read.repairs:
        print(f"rece.draw: {options.prompts}: {repair}", file=sys.stderr)
    table = read.table
    check(table, options.guidance)
    load = {name: getattr(options, name) for name in LOAD}
    folder = Path(options.model)  # its place may differ between machines
    identity = {"model": folder.name if folder.is_dir() else options.model, "revision": options.revision}
    settings = dict(
        steps=options.steps, guidance=options.guidance, batch_size=options.batch_size, shard_size=options.shard_size,
        bf16="auto" if options.bf16 else False, identity=identity, repair=options.repair, progress=not options.quiet,
    )  # fmt: skip
    if options.workers is None and options.scheduler_file is None:
        return draw(load_pipeline(load), table, options.out, part=options.part, **settings)
    try:
        from distributed import Client
    except ImportError:
        raise ImportError("--workers and --scheduler-file need Dask: pip install distributed") from None
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if options.workers is not None:
        with local_cluster(options.workers) as cluster, Client(cluster) as client:
            return draw_distributed(load, table, options.out, client, **settings)
    with Client(scheduler_file=options.scheduler_file) as client:
        return draw_distributed(load, table, options.out, client, **settings)


def local_cluster(workers: int):
    """A Dask cluster of that many processes on this machine, each with one thread and, round in turn, one GPU.

    Only this machine reaches it. Raises ValueError if workers is less than 1.
    """
    import os

    from distributed import Nanny, Scheduler, SpecCluster

    if workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers}")
    count = torch.cuda.device_count()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
    common = {"nthreads": 1, "memory_limit": 0, "host": "127.0.0.1", "silence_logs": logging.WARNING}
    spec = {
        n: {
            "cls": Nanny,
            "options": {**common, "env": {"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else {}},
        }
        for n in range(workers)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(workers=spec, scheduler=scheduler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rece.draw",
        description="Draw an image for every line of a prompt file, into shards (tar files of PNGs) of a folder. "
        "The same command again draws only what is missing.",
        epilog="exit codes: 0 all drawn, 1 error, 2 wrong arguments, 130 interrupted",
    )
    add = parser.add_argument
    add("--prompts", required=True, metavar="FILE", help="csv with prompts and seeds; see rece.prompts")
    add("--model", required=True, metavar="FOLDER|ID", help="folder of a diffusers pipeline, or a hub id")
    add("--revision", metavar="HASH", help="commit hash of the hub id, needed with one")
    add("--eraser", metavar="FILE", help="eraser (safetensors) to apply; default: none")
    add("--scheduler", metavar="CLASS", help="such as LMSDiscreteScheduler; default: the model's own")
    add("--steps", type=int, default=50, help="default: %(default)s")
    add("--guidance", type=float, default=7.5, help="where the csv has none; default: %(default)s")
    add("--batch-size", type=int, default=8, help="best even; halved when out of memory; default: %(default)s")
    add("--shard-size", type=int, default=256, help="images in a file; default: %(default)s")
    add("--dtype", choices=DTYPES, default="float32", help="of the weights; default: %(default)s")
    add("--bf16", action="store_true", help="compute in bfloat16 where the device does so by itself")
    add("--device", help="such as cuda:1; default: the GPU if there is one")
    add("--out", required=True, metavar="FOLDER", help="folder of the shards; one for each plan")
    add("--repair", action="store_true", help="check all hashes first, and draw damaged shards again")
    add("--quiet", action="store_true", help="no progress bar")
    several = parser.add_mutually_exclusive_group()
    several.add_argument("--part", type=_part, metavar="K/N", help="only the K-th of N parts, K from 1 (job arrays)")
    several.add_argument("--workers", type=int, metavar="N", help="that many processes here, a GPU each (Dask)")
    several.add_argument("--scheduler-file", metavar="FILE", help="of a running Dask scheduler (dask scheduler)")
    return parser


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"must be K/N with K from 1 to N, not {text!r}")
    return int(found[1]), int(found[2])


def _settings(pipe, steps: int, batch_size: int, bf16: bool | str, shard_size: int, identity: dict | None) -> dict:
    """What decides the images beside the table."""
    _count(steps=steps, batch_size=batch_size, shard_size=shard_size)
    device = pipe._execution_device
    settings = {"steps": int(steps), "batch_size": int(batch_size), "shard_size": int(shard_size)}
    settings |= {"bf16": bfloat16(device, bf16), "device": device.type, **fingerprint(pipe)}
    if device.type == "cpu":
        settings["threads"] = torch.get_num_threads()
    try:
        return json.loads(json.dumps({**settings, "identity": identity or {}}))
    except TypeError as error:
        raise TypeError(f"identity must be JSON-able: {error}") from None


def _count(**numbers_given: int) -> None:
    for name, value in numbers_given.items():
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, not {value!r}")


def _todo(shards: Shards, part: tuple[int, int] | None, repair: bool, progress: bool) -> list[int]:
    """The shards of this part that are not finished, after a check of the others."""
    k, n = part or (1, 1)
    if not 1 <= k <= n:
        raise ValueError(f"part must be (k, n) with k from 1 to n, not {part}")
    share = range(k - 1, len(shards.shards), n)
    if repair:
        for shard, reason in shards.damaged(share, progress).items():
            warnings.warn(f"drawing a damaged shard again: {reason}", stacklevel=3)
            disk.discard(shards, shard)
    todo = [shard for shard in share if not shards.finished(shard)]
    for shard in sorted(set(share) - set(todo)):
        shards.entries(shard)
        shutil.rmtree(shards.path(shard, "parts"), ignore_errors=True)
    return todo


def _missing(shards: Shards, todo: list[int]) -> int:
    return sum(len(shards.shards[shard]) - len(disk.kept(shards, shard)) for shard in todo)


def _fill(pipe: DiffusionPipeline, shards: Shards, todo: list[int], drawn: Callable[[int], object]) -> None:
    """Draw what is missing of these shards; `drawn` is told how many images each batch gave."""
    fits: dict[tuple, int] = {}
    for shard in todo:
        while not shards.finished(shard):
            found = disk.kept(shards, shard)
            missing = [row for row in shards.shards[shard] if row not in found]
            for rows in _alike(shards.table, missing):
                while rows and not shards.finished(shard):
                    start = time.monotonic()
                    images, size = _batch(pipe, shards.table.iloc[rows], shards.settings, fits)
                    seconds = round((time.monotonic() - start) / len(images), 4)
                    note = {"batch_size": size, "seconds": seconds, "drawn_with": _drawn_with(pipe)}
                    disk.keep(shards, shard, rows[:size], images, note)
                    rows = rows[size:]
                    drawn(len(images))
            if not missing:
                try:
                    disk.finish(shards, shard, found)
                except FileNotFoundError:  # another process was faster and has removed the parts
                    continue


def _alike(table: pd.DataFrame, rows: list[int]) -> Iterator[list[int]]:
    """The rows by guidance and size."""
    groups: dict[tuple, list[int]] = {}
    for row in rows:
        groups.setdefault(_kind(table.iloc[row]), []).append(row)
    yield from groups.values()


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
            reason = _line(error)  # nothing else of it is kept: its traceback holds the batch's memory
        clear_device_cache(garbage_collection=True)
        pixels = f"{width} x {height} pixels" if width else "the model's own size"
        if size == 1:
            raise RuntimeError(f"out of memory with one image of {pixels}: use --dtype float16, or a smaller size")
        fits[width, height] = max(1, size // 4 * 2)
        warnings.warn(f"batch_size {size} is out of memory ({reason}): going on with {fits[width, height]}; "
                      + _smaller("images"), stacklevel=2)  # fmt: skip


def _smaller(images: str) -> str:
    return (
        f"{images} drawn in smaller batches may differ in rounding from those of a run without (see the jsonl files)"
    )


def _drawn_with(pipe: DiffusionPipeline) -> str:
    device = pipe._execution_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"torch {torch.__version__}, diffusers {diffusers.__version__}, {name}"


def _quiet() -> None:
    """Of the libraries only errors: no bars of their own, no line for every prompt that CLIP cuts at 77 tokens."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


@lru_cache(maxsize=1)
def _loaded(description: str) -> tuple[DiffusionPipeline, dict]:
    """The worker's pipeline, and what it is."""
    _quiet()
    pipe = load_pipeline(json.loads(description))
    return pipe, fingerprint(pipe)


def _on_worker_settings(load: dict, threads: int, *settings) -> dict:
    with _one_at_a_time:
        found = _settings(_loaded(json.dumps(load))[0], *settings)
    return found | ({"threads": threads} if "threads" in found else {})


def _on_worker_fill(load: dict, folder: str, shard: int) -> int:
    """Draw the shard on a worker; how many images of it were missing."""
    with _one_at_a_time:
        pipe, is_now = _loaded(json.dumps(load))
        shards = Shards(folder)
        for name, value in is_now.items():
            if shards.settings[name] != value:
                raise ValueError(
                    f"{name} of the pipeline that a worker loads from {load['model']!r} is not the plan's"
                )
        torch.set_num_threads(shards.settings.get("threads", torch.get_num_threads()))
        missing = _missing(shards, [shard])
        _fill(pipe, shards, [shard], lambda _: None)
        return missing


def _case(value, row: int) -> str:
    if isinstance(value, numbers.Integral | str) and re.fullmatch(r"[A-Za-z0-9_-]{1,80}", str(value)):
        return str(value)
    raise ValueError(f"table: case of row {row} must be letters, digits, - and _ (80 at most), not {value!r}")


def _prompt(value, row: int) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"table: prompt of row {row} must be a text, not {value!r}")


def _whole(name: str, value, row: int, low: int, high: int) -> int:
    if isinstance(value, numbers.Real) and value == value and value == int(value) and low <= value <= high:
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
    if value % 8:
        raise ValueError(f"table: {name} of row {row} must be a multiple of 8 pixels, not {value!r}")
    return _whole(name, value, row, 8, 2**16)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    from rece.draw import main  # under its own name, so that other processes find its functions

    sys.exit(main())
