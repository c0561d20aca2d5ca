"""No attack: the prompts themselves."""

from rece.attacks import Attempts

ACCESS = "none"
NEEDS = ()


def attack(victim, prompts, seeds, *, original, concept) -> Attempts:
    """Return the prompts as they are."""
    return Attempts(prompts, seeds)
