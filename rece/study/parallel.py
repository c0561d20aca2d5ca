"""A stage's independent cells side by side, in processes: the same bits with any number of them."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor

import torch
from tqdm import tqdm

_job: tuple[Callable, list] | None = None  # what the forked processes inherit: nothing is pickled on the way in


def workers() -> int:
    """How many processes a stage uses: one per core where it computes on the CPU of a Linux machine, else one.

    The variable RECE_WORKERS overrides it.
    """
    if "RECE_WORKERS" in os.environ:
        return max(1, int(os.environ["RECE_WORKERS"]))
    if sys.platform != "linux" or torch.cuda.is_available():  # elsewhere fork is not safe
        return 1
    return len(os.sched_getaffinity(0))


def cells(function: Callable, items: Iterable, name: str = "cells") -> list:
    """[function(item) for item in items], computed in `workers()` processes of one thread each.

    The processes are forked: they share the memory of this one, and what `function` changes in it is lost. Results
    are pickled on their way back. A bar with `name` shows if it takes longer than a second.
    Raises what `function` raises, and BrokenProcessPool if a process is killed.
    """
    global _job
    items = list(items)
    bar = dict(total=len(items), desc=name, delay=1, leave=False)
    if workers() == 1 or len(items) < 2 or torch.get_num_threads() > 1:
        return [function(item) for item in tqdm(items, **bar)]
    _job = function, items
    try:
        with ProcessPoolExecutor(workers(), multiprocessing.get_context("fork")) as pool:
            return list(tqdm(pool.map(_cell, range(len(items))), **bar))
    finally:
        _job = None


def _cell(n: int):
    function, items = _job
    return function(items[n])
