"""Files that are whole or not there."""

import os
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write(tensors: dict[str, Tensor], path: str | Path, note: dict[str, str]) -> None:
    """Write a safetensors file with the metadata `note` beside `path`, then rename it: it is whole or not there.

    Missing folders are made; tensors must be contiguous.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, part, metadata=note)
        os.chmod(part, 0o644)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
