"""Synonyms: the other words by which captions call the concept (ours)."""

from rece.attacks import Attempts
from rece.attacks._words import reword

ACCESS = "none"
NEEDS = ()


def attack(victim, prompts, seeds, *, original, concept) -> Attempts:
    """Return each prompt with its concept word replaced by another of concept["words"], drawn by prompt and seed."""
    return Attempts(reword(prompts, seeds, concept, "words"), seeds)
