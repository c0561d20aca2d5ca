"""No attack: the prompts themselves."""

from rece.attacks import Attempts

ACCESS = "none"


def attack(victim, prompts, seeds, *, original, concept) -> Attempts:
    """The prompts as they are."""
    return Attempts(prompts, seeds)
