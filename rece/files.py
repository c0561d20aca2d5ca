"""Files that are whole or not there, and the same bits for the same content."""

import json
import os
import tempfile
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def write(tensors: dict[str, Tensor], path: str | Path, note: dict[str, str]) -> None:
    """Write a safetensors file with the metadata `note` beside `path`, then rename it: it is whole or not there.

    Missing folders are made; tensors must be contiguous.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_sorted(save(tensors, metadata=note)))
        os.chmod(part, 0o644)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def _sorted(data: bytes) -> bytes:
    """The same file with its metadata in alphabetical order; safetensors writes it in a random one."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[end:]
