"""Erase concepts from text-to-image models in closed form: RECE and UCE as one small matrix."""

from rece.certificate import Certificate, certify
from rece.debiasing import debias
from rece.eraser import Eraser
from rece.erasing import erase

__all__ = ["Certificate", "Eraser", "certify", "debias", "erase"]
