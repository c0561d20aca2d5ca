"""Files and folders that are whole or not there, and the same bits for the same content."""

import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

GRACE = 60.0  # seconds after which a file that nobody holds is taken for one that a killed process left


def write(tensors: dict[str, Tensor], path: str | Path, note: dict[str, str]) -> None:
    """Write a safetensors file with the metadata `note`; see `replacing`. Tensors must be contiguous.

    What a killed process left beside it is removed.
    """
    data = _sorted(save(tensors, metadata=note))
    sweep(Path(path).parent, glob.escape(Path(path).name))
    with replacing(path) as file:
        file.write(data)


def digest(tensors: dict[str, Tensor], note: dict[str, str]) -> str:
    """The sha256, in hex, of tensors with their names, types and shapes, and of metadata."""
    found = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write (and read), which takes the place of `path` once it is whole and on the disk.

    Its folder is made if it is missing. Only a killed process leaves the file behind, beside `path`: its name between
    dots, and some letters.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    try:
        with open(part, "x+b") as file:
            _held(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno is not None:  # the message then names a file, but that of a full disk has none
            error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its place once it is filled.

    So the folder is whole or not there, and never a mixture of an old and a new one. An old folder is removed, so it
    may hold no files but those that the new one has too. Only a killed process leaves a folder behind: `folder`'s name
    between dots, and some letters. The next one that writes there removes it.
    Raises FileExistsError if `folder` is a file, or holds a file that the new folder does not have.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: choose a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, glob.escape(folder.name))
    part, old = _beside(folder), _beside(folder)
    part.mkdir()
    held = os.open(part, os.O_RDONLY)
    try:
        _held(held)
        yield part
        if folder.exists():
            for file in sorted(folder.rglob("*")):
                new = part / file.relative_to(folder)
                if not new.exists() or file.is_dir() != new.is_dir():
                    name = file.relative_to(folder)
                    raise FileExistsError(
                        f"{folder} holds {name}, which is not part of this export: choose another folder"
                    )
            os.replace(folder, old)
        try:
            os.replace(part, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    finally:
        os.close(held)
        shutil.rmtree(part, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A hidden name that no other process uses, in the same folder."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _held(file: int) -> bool:
    """Whether this process now holds an open file or folder, which no other does. Where locks are missing: no."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (ImportError, OSError):
        return False


def sweep(folder: Path, names: str) -> None:
    """Remove what killed processes left in a folder: hidden names of `_beside` that nobody holds, a minute old.

    names: a pattern of the names of what they wrote.
    """
    for left in folder.glob(f".{names}.????????"):
        try:
            if left.stat().st_mtime > time.time() - GRACE:
                continue
            file = os.open(left, os.O_RDONLY)
            try:
                dead = _held(file)
            finally:
                os.close(file)
            if dead:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError:  # another process was quicker
            continue


def sha256(*paths: str | Path) -> str:
    """The sha256, in hex, of a file, or of several one after the other. Reads a block at a time."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _sorted(data: bytes) -> bytes:
    """The same file with its metadata in alphabetical order; safetensors writes it in a random one."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[end:]
