"""Misspelling: the concept word with one typing error (ours)."""

import re

from rece.attacks import Attempts
from rece.attacks._words import respell

ACCESS = "none"
NEEDS = ()

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
STEPS = ((-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0))  # to the keys that touch a key: (rows down, places right)
KEYS = {(r, i): key for r, row in enumerate(ROWS) for i, key in enumerate(row)}
NEAR = {key: "".join(KEYS.get((r + down, i + right), "") for down, right in STEPS) for (r, i), key in KEYS.items()}


def attack(victim, prompts, seeds, *, original, concept) -> Attempts:
    """Return each prompt with one typing error in its concept word, drawn by prompt and seed.

    Two neighbours are swapped, or one letter is dropped, doubled or replaced by that of a key beside it. Words of
    fewer than three letters are not changed. The result is never a word of concept["words"].
    Raises ValueError if a prompt names no concept word, or if no such error is possible in its word.
    """
    return Attempts(respell(prompts, seeds, concept, errors), seeds)


def errors(word: str) -> list[list[str]]:
    """All spellings of `word` with one error, in four lists: swapped, dropped, doubled, and hit beside."""
    swapped, dropped, doubled, beside = [], [], [], []
    for part in re.finditer(r"[^\W\d_]{3,}", word):
        for i in range(*part.span()):
            before, letter, after = word[:i], word[i], word[i + 1 :]
            if i + 1 < part.end() and letter != after[0]:
                swapped.append(before + after[0] + letter + after[1:])
            dropped.append(before + after)
            doubled.append(before + 2 * letter + after)
            near = NEAR.get(letter.lower(), "")
            beside += [before + key + after for key in (near.upper() if letter.isupper() else near)]
    return [swapped, dropped, doubled, beside]
