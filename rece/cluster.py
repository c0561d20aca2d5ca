"""`rece.draw` on many GPUs: the shards of a plan as the tasks of a Dask cluster.

Dask rather than accelerate: accelerate splits the prompts once and for all, and ends all processes if one ends; Dask
hands the next shard to whoever is free, and a lost worker's shard to another.
"""

import inspect
import logging
import os
import threading
import warnings
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from rece import draw, loading, plan, writing
from rece.shards import Shards

_one_at_a_time = threading.Lock()  # a worker with several threads has one pipeline, which keeps state while it draws


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
    """`draw.draw` on the workers of a Dask cluster: one task per shard, the same bits, the same files.

    load: keywords of `loading.load`; each worker process loads that once, and its weights must be the plan's. client:
    a `distributed.Client`, whose workers see all files under the same paths and best have one GPU and one thread each
    (threads wait for each other). Other arguments as for `draw.draw`. A lost worker's shard goes to another one, which
    continues after the last batch saved; the bar moves by shards.
    Raises as `draw.draw` and `loading.load`, and RuntimeError if one shard has ended several workers.
    """
    from distributed import KilledWorker, as_completed

    try:
        inspect.signature(loading.load).bind(**load)
    except TypeError as error:
        raise TypeError(f"load must be keywords of rece.loading.load: {error}") from None
    here = {name: load.get(name) for name in ("model", "eraser")}
    load = load | {name: str(Path(path).resolve()) for name, path in here.items() if path and Path(path).exists()}
    rows = plan.check(table, guidance)
    draw.counts(steps=steps, batch_size=batch_size, shard_size=shard_size)
    folder = Path(folder).resolve()
    settings = client.submit(
        _settings, load, torch.get_num_threads(), steps, batch_size, bf16, shard_size, identity, pure=False
    ).result()
    shards = writing.begin(folder, rows, settings)
    todo = draw.unfinished(shards, range(len(shards.shards)), repair, progress)
    futures = [client.submit(_fill, load, str(folder), shard, pure=False) for shard in todo]
    total = draw.missing(shards, todo)
    with tqdm(total=total, desc="draw", unit=" images", smoothing=0.1, disable=not progress) as bar:
        try:
            for future in as_completed(futures):
                bar.update(future.result())
        except KilledWorker as error:
            raise RuntimeError(f"a shard has ended several workers, see their logs; draw again: {error}") from None
        finally:
            client.cancel(futures)
    smaller = sum(entry["batch_size"] < batch_size for shard in todo for entry in shards.entries(shard))
    if smaller:
        warnings.warn(f"{smaller} {draw.SMALLER}", stacklevel=2)
    return shards


def local_cluster(workers: int):
    """A Dask cluster of that many processes on this machine, each with one thread and, round in turn, one GPU.

    Only this machine reaches it. Raises ValueError if workers is less than 1.
    """
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


@lru_cache(maxsize=1)
def _loaded(**load) -> tuple[DiffusionPipeline, dict]:
    """The worker's pipeline, and what it is."""
    loading.quiet()
    pipe = loading.load(**load)
    return pipe, draw.fingerprint(pipe)


def _settings(load: dict, threads: int, *given) -> dict:
    with _one_at_a_time:
        found = draw.settings(_loaded(**load)[0], *given)
    return found | ({"threads": threads} if "threads" in found else {})


def _fill(load: dict, folder: str, shard: int) -> int:
    """Draw the shard on a worker; how many images of it were missing."""
    with _one_at_a_time:
        pipe, is_now = _loaded(**load)
        shards = Shards(folder)
        for name, value in is_now.items():
            if shards.settings[name] != value:
                raise ValueError(
                    f"{name} of the pipeline that a worker loads from {load['model']!r} is not the plan's"
                )
        torch.set_num_threads(shards.settings.get("threads", torch.get_num_threads()))
        missing = draw.missing(shards, [shard])
        draw.fill(pipe, shards, [shard], lambda _: None)
        return missing
