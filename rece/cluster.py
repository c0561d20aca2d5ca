"""`rece.images.draw` on several processes, GPUs or machines: its parts as the tasks of a Dask cluster."""

import inspect
import logging
import os
import secrets
import threading
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from rece import images, loading, solver

_one_at_a_time = threading.Lock()  # the threads of a worker share one pipeline, which keeps state while it draws


@lru_cache(maxsize=1)
def _loaded(drawing: str, **load):
    """The pipeline of one `draw_parts`. The next one loads it anew, as files may have changed."""
    return loading.load(**load)


def draw_parts(load: dict, table: pd.DataFrame, folder: str | Path, client, parts: int, **settings) -> Path:
    """`images.draw` in that many parts on the workers of a Dask cluster: the same files as in one process.

    load: keywords of `loading.load`; each worker loads that pipeline once. client: a `distributed.Client`, whose
    workers see all files under the same paths and best have one thread and one GPU each. parts: a few per worker; a
    lost worker's part goes to another one, which continues it. settings: keywords of `images.draw` but part.

    Raises as `images.draw` and `loading.load`, and RuntimeError if one part has ended several workers.
    """
    from distributed import KilledWorker, as_completed

    draw = dict(pipe=None, table=table, folder=folder, part=(1, 1), **settings)
    for name, function, given in (("load", loading.load, load), ("settings", images.draw, draw)):
        try:
            inspect.signature(function).bind(**given)
        except TypeError as error:
            raise TypeError(f"{name} must be keywords of {function.__module__}.{function.__name__}: {error}") from None
    images.checked(table, settings.get("guidance", 7.5))
    solver.whole(parts=parts)
    paths = {name: Path(load[name]).resolve() for name in ("model", "eraser") if load.get(name)}
    load = load | {name: str(path) for name, path in paths.items() if path.exists()}
    given = {"table": table, "folder": Path(folder).resolve(), **settings, "progress": False}
    each = (secrets.token_hex(8), load, torch.get_num_threads())
    tasks = [client.submit(_draw, *each, given | {"part": (k + 1, parts)}, pure=False) for k in range(parts)]
    try:
        quiet = not settings.get("progress", True)
        for task in tqdm(as_completed(tasks), desc="draw", total=parts, unit=" parts", disable=quiet):
            task.result()
    except KilledWorker as error:
        raise RuntimeError(f"a part has ended several workers, see their logs; then draw again: {error}") from None
    finally:
        client.cancel(tasks)
    return Path(folder)


def _draw(drawing: str, load: dict, threads: int, given: dict) -> None:
    with _one_at_a_time:
        loading.quiet()
        torch.set_num_threads(threads)  # the images on a CPU depend on it
        images.draw(_loaded(drawing, **load), **given)


def local_cluster(workers: int):
    """A Dask cluster of that many processes on this machine, each with one task at a time and, in turn, one GPU.

    Only this machine reaches it. Raises ValueError if workers is less than 1.
    """
    from distributed import Nanny, Scheduler, SpecCluster

    solver.whole(workers=workers)
    count = torch.cuda.device_count()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
    common = {"nthreads": 1, "memory_limit": 0, "host": "127.0.0.1", "silence_logs": logging.WARNING}
    envs = [{"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else {} for n in range(workers)]
    spec = {n: {"cls": Nanny, "options": {**common, "env": env}} for n, env in enumerate(envs)}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(workers=spec, scheduler=scheduler)
