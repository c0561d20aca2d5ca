"""Erase concepts from text-to-image models in closed form: RECE and UCE as one small matrix."""

from rece.eraser import Eraser, erase

__all__ = ["Eraser", "erase"]
