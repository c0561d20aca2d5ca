"""What was computed before, by what it was computed from: a changed method or attack costs its own cells, no others.

Attempts and images lie in .cache/study of the checkout, or in the folder that the variable RECE_CACHE names. Every
name is a digest of all that decides the content: code, versions, processor, weights, prompts, seeds and numbers. So
nothing there is ever out of date, and all of it may be deleted.
"""

import ast
import hashlib
import json
import os
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import rece
from rece import families, layers
from rece.edits import CARRIED, Hooks
from rece.images import bfloat16, fingerprint
from rece.study import config

CODE = Path(rece.__file__).parents[1]  # the folder that `rece` is in


def folder() -> Path:
    """Where the cache is."""
    return Path(os.environ.get("RECE_CACHE") or config.root() / ".cache/study")


def imported(source: str) -> set[str]:
    """The files of rece that Python source imports, directly or not, also inside of functions: paths like
    "rece/solver.py". Modules that are found by name (attacks, methods, judges) are not among them."""
    todo, found = [source], set()
    while todo:
        names = set()
        for node in ast.walk(ast.parse(todo.pop())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        for name in (name for name in names if name.split(".")[0] == "rece"):
            parts = name.split(".")
            for path in ("/".join(parts[:n]) for n in range(1, len(parts) + 1)):
                new = {file for file in (f"{path}.py", f"{path}/__init__.py") if (CODE / file).exists()} - found
                todo += [(CODE / file).read_text() for file in new]
                found |= new
    return found


@cache
def code(module: str) -> str:
    """A digest of what a module computes with: its source and all of rece that it imports, the versions of the
    libraries, and what the processor and the GPU can do."""
    source = Path(find_spec(module).origin).read_text()
    files = {file: (CODE / file).read_text() for file in imported(source)}
    versions = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers", "peft")}
    device = [torch.backends.cpu.get_cpu_capability(), bfloat16(torch.device("cpu"), "auto")]
    device += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return digest([source, sorted(files.items()), versions, device])


def weights(pipe: DiffusionPipeline) -> dict:
    """What a pipeline is, see `images.fingerprint`, with the map and the hooks that it carries and the number of
    threads."""
    maps = [layers.fused(pipe, path) for path in families.paths(pipe)]
    carried = [None if map is None else hashlib.sha256(map.numpy().tobytes()).hexdigest() for map in maps]
    more = {"maps": carried, "device": str(pipe.device), "threads": torch.get_num_threads()}
    return {**fingerprint(pipe), **more, **hooks(pipe)}


def hooks(pipe: DiffusionPipeline) -> dict:
    """The code of the hooks that a pipeline carries, whose tensors alone are among its weights; {} if it has none."""
    edits = [getattr(part, CARRIED).edit for part in pipe.components.values() if hasattr(part, CARRIED)]
    found = [code(f"rece.methods.{edit.rule}") for edit in edits if isinstance(edit, Hooks)]
    return {"hooks": found} if found else {}


def digest(content) -> str:
    """A name for anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
