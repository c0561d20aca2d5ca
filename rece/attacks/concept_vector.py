"""The concept vector added to the prompt's embedding: what RECE's authors' code calls Ring-A-Bell.

It searches no tokens, so its numbers do not compare with the published Ring-A-Bell's.
"""

from rece import textspace
from rece.attacks import Attempts

ACCESS = "grey"


def attack(victim, prompts, seeds, *, original, concept, eta: float = 3.0) -> Attempts:
    """embeds = tau(prompt) + eta v, v = mean over concept["pairs"] of tau(with) - tau(without), (positions, d).

    tau is the original's text encoder. eta: 3 in the authors' code for nudity, 0.9 for an artist. With several
    concepts, v is the mean over all their pairs. Raises ValueError if there are no pairs.
    Source: RECE's official code.
    """
    members = [concept] if isinstance(concept, dict) else concept
    pairs = [pair for member in members for pair in member.get("pairs", [])]
    if not pairs or not all(len(pair) == 2 for pair in pairs):
        raise ValueError('concept["pairs"] must be a list of (text with the concept, the same text without it)')
    having, lacking = (textspace.encode(original, [pair[side] for pair in pairs]) for side in (0, 1))
    vector = (having - lacking).mean(0)
    return Attempts(None, seeds, (textspace.encode(original, prompts) + eta * vector).cpu())
