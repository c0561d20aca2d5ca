"""What a file of ours says about itself, read without torch: the rows that `rece show` prints."""

import json
from pathlib import Path

import numpy as np

LARGEST_HEADER = 100_000_000  # bytes, as safetensors has it
KINDS = {"weights": "changes of weights", "hooks": "hooks"}  # of `rece.edits`


def rows(path: str | Path) -> list[tuple[str, str]]:
    """Names and values about an eraser, a LoRA, edited weights, or a folder that `apply` or `lora` wrote.

    Raises FileNotFoundError if there is nothing at `path`, and ValueError if it is no file or folder of ours.
    """
    path = Path(path)
    if path.is_dir():
        path = next(
            (file for file in (path / "rece.json", *sorted(path.glob("*.safetensors"))) if file.is_file()), path
        )
    if path.is_dir():
        raise ValueError(f"{path} is no folder of `rece apply` or `rece lora`")
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        if path.suffix == ".json":
            return [("folder", "edited pipeline"), *_described(json.loads(path.read_text(encoding="utf-8")))]
        header, start = _header(path)
        note = header.pop("__metadata__")
        return [*_facts(path, header, start, note.get("kind")), *_described(json.loads(note["rece"]))]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is no file of ours; `rece import` reads other projects' weights") from None


def _header(path: Path) -> tuple[dict, int]:
    """The header of a safetensors file, and where its tensors begin."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(LARGEST_HEADER, path.stat().st_size):
            raise ValueError("no safetensors header")
        return json.loads(file.read(size)), 8 + size


def _facts(path: Path, header: dict, start: int, kind: str | None) -> list[tuple[str, str]]:
    if kind not in (None, "map") or "map" not in header:
        lora = any(name.endswith("lora_A.weight") for name in header)
        kind = KINDS.get(kind, "LoRA" if lora else "edited weights")
        return [("file", kind), ("tensors", str(len(header)))]
    (d, _), (begin, end) = header["map"]["shape"], header["map"]["data_offsets"]
    change = np.fromfile(path, "<f8", (end - begin) // 8, offset=start + begin).reshape(d, d) - np.eye(d)
    sizes = np.linalg.svd(change, compute_uv=False)
    rank = int((sizes > np.finfo(np.float32).eps * max(1.0, sizes[0])).sum())  # as in solver.factor
    pooled = f"width {header['pooled']['shape'][0]}" if "pooled" in header else "none"
    size = f"{np.linalg.norm(sizes):.4g}"
    return [("file", "eraser"), ("width", str(d)), ("rank", str(rank)), ("|map - I|", size), ("pooled map", pooled)]


def _described(provenance: dict) -> list[tuple[str, str]]:
    found = []
    for step, part in enumerate(provenance.get("composed", [])):
        found += [("", ""), (f"edit {step + 1}", ""), *_described(part)]
    pairs = list(zip(provenance.get("concepts", []), provenance.get("target", []), strict=False))
    found += [("erases" if n == 0 else "", f"{concept!r} → {target!r}") for n, (concept, target) in enumerate(pairs)]
    apart = {"composed", "versions"} | ({"concepts", "target"} if pairs else set())
    found += [(name, _text(value)) for name, value in provenance.items() if name not in apart]
    return found + ([("versions", _text(provenance["versions"]))] if "versions" in provenance else [])


def _text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        more = f" … {len(value)} in all" if len(value) > 8 else ""
        return ", ".join(map(repr, value[:8])) + more or "none"
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
