"""My attack: it puts "a picture of" before each prompt.

Replace this by a sentence that says what yours does.
"""

from rece.attacks import Attempts

ACCESS = "none"  # what the attacker must hold: see rece/attacks/__init__.py
NEEDS = ()  # what is read of the victim: "images", "text encoder", "weights", "map"


def attack(victim, prompts, seeds, *, original, concept):
    """A prompt, or an embedding, for every prompt and seed."""
    return Attempts([f"a picture of {prompt}" for prompt in prompts], seeds)
