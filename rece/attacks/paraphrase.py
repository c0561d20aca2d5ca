"""Paraphrases: words for the concept that no training caption held (ours)."""

from rece.attacks import Attempts
from rece.attacks._words import reword

ACCESS = "none"
NEEDS = ()


def attack(victim, prompts, seeds, *, original, concept) -> Attempts:
    """Return each prompt with its concept word replaced by one of concept["held_out"], drawn by prompt and seed."""
    return Attempts(reword(prompts, seeds, concept, "held_out"), seeds)
