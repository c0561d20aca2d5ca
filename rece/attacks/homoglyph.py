"""Homoglyphs: one letter of the concept word replaced by its look-alike from another alphabet (ours)."""

from rece.attacks import Attempts
from rece.attacks._words import respell

ACCESS = "none"
NEEDS = ()

# Latin letters, and in their order their look-alikes: Cyrillic (U+04..., U+0501, U+051b, U+051d), Greek (U+03bd) and
# Armenian (U+0578 to U+0581) ones.
LATIN = "acdehijlopqswxyvgnuABCEHIJKMOPSTX"
ALIKE = (
    "\u0430\u0441\u0501\u0435\u04bb\u0456\u0458\u04cf\u043e\u0440\u051b\u0455\u051d\u0445\u0443\u03bd\u0581\u0578\u057d"
    "\u0410\u0412\u0421\u0415\u041d\u0406\u0408\u041a\u041c\u041e\u0420\u0405\u0422\u0425"
)
TABLE = dict(zip(LATIN, ALIKE, strict=True))


def attack(victim, prompts, seeds, *, original, concept) -> Attempts:
    """Return each prompt with one letter of its concept word replaced by its look-alike in TABLE.

    The letter is drawn by prompt and seed.
    Raises ValueError if a prompt names no concept word, or if its word has no such letter.
    """
    return Attempts(respell(prompts, seeds, concept, lookalikes), seeds)


def lookalikes(word: str) -> list[list[str]]:
    """All spellings of `word` with one letter replaced: a list that holds one list, for the one kind of edit."""
    return [[word[:i] + TABLE[c] + word[i + 1 :] for i, c in enumerate(word) if c in TABLE]]
