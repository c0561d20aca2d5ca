"""The concept vector added to the prompt's embedding: what RECE's authors' code calls Ring-A-Bell.

It searches no tokens, so its numbers do not compare with the published Ring-A-Bell's.
"""

from torch import Tensor

from rece import texts
from rece.attacks import Attempts

ACCESS = "grey"


def attack(victim, prompts, seeds, *, original, concept, eta: float = 3.0) -> Attempts:
    """embeds = tau(prompt) + eta v, (n, positions, d) float64; v is `vector`'s, tau the original's text encoder.

    eta: 3 in the authors' code for nudity, 0.9 for an artist. Raises ValueError if there are no pairs.
    Source: RECE's official code.
    """
    shift = eta * vector(original, concept)
    return Attempts(None, seeds, (texts.encode(original, prompts) + shift).cpu())


def vector(original, concept: dict | list[dict]) -> Tensor:
    """v = mean over concept["pairs"] of tau(with) - tau(without), (positions, d) float64 on the encoder's device.

    With several concepts, the mean over all their pairs. Raises ValueError if there are no pairs.
    """
    members = [concept] if isinstance(concept, dict) else concept
    pairs = [pair for member in members for pair in member.get("pairs", [])]
    if not pairs or not all(len(pair) == 2 for pair in pairs):
        raise ValueError('concept["pairs"] must be a list of (text with the concept, the same text without it)')
    having, lacking = (texts.encode(original, [pair[side] for pair in pairs]) for side in (0, 1))
    return (having - lacking).mean(0)
