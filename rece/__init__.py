"""Erase concepts from text-to-image models in closed form: RECE and UCE as one small matrix."""

import os
from importlib import import_module

# Idle OpenMP threads sleep. Spinning ones make a small model ten times slower on a busy machine.
# torch reads this when it is imported, so set it before.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# onnxruntime, which diffusers imports where NudeNet is installed, otherwise numbers this machine and keeps a record.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

HOMES = {  # public name: the module it is in
    "Certificate": "certificate",
    "Edit": "edits",
    "Eraser": "eraser",
    "Round": "erasing",
    "Start": "erasing",
    "certify": "certificate",
    "debias": "debiasing",
    "erase": "erasing",
    "guard": "guarding",
}
__all__ = list(HOMES)


def __getattr__(name: str):
    """Imports a name when it is first used: torch and diffusers take seconds, and `rece --help` needs neither."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"rece.{HOMES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return [*globals(), *HOMES]
