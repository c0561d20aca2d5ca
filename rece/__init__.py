"""Erase concepts from text-to-image models in closed form: RECE and UCE as one small matrix."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rece.certificate import Certificate, certify
    from rece.debiasing import debias
    from rece.eraser import Eraser
    from rece.erasing import erase

__all__ = ["Certificate", "Eraser", "certify", "debias", "erase"]

HOMES = {
    "Certificate": "certificate",
    "Eraser": "eraser",
    "certify": "certificate",
    "debias": "debiasing",
    "erase": "erasing",
}


def __getattr__(name: str):
    """Imports a name when it is first used: torch and diffusers take seconds, which `rece --help` need not
    wait for."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"rece.{HOMES[name]}"), name)
    return globals()[name]
