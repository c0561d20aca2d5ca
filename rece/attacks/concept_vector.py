"""The concept vector added to the prompt's embedding: what RECE's authors' code calls Ring-A-Bell.

It searches no tokens, so do not compare its numbers with those of the published Ring-A-Bell.
"""

import math

from torch import Tensor

from rece import solver, texts
from rece.attacks import Attempts

ACCESS = "grey"
NEEDS = ()


def attack(victim, prompts, seeds, *, original, concept, eta: float = 3.0) -> Attempts:
    """Return embeds = tau(prompt) + eta v, (n, positions, d) float64 on the CPU. v is what `vector` returns.

    tau is the original's text encoder; the victim is not looked at.
    eta: 3 in the authors' code for nudity, 0.9 for an artist. Raises ValueError if there are no pairs.
    Source: RECE's official code.
    """
    if isinstance(eta, bool) or not math.isfinite(eta):
        raise ValueError(f"eta must be a finite number, not {solver.shown(eta)}")
    shift = eta * vector(original, concept)
    return Attempts(None, seeds, (texts.encode(original, prompts) + shift).cpu())


def vector(original, concept: list[dict]) -> Tensor:
    """v = mean over all concepts' pairs of tau(with) - tau(without), (positions, d) float64 on the encoder's device.

    Raises ValueError if there are no pairs.
    """
    pairs = [pair for member in concept for pair in member.get("pairs", [])]
    if not pairs or not all(len(pair) == 2 for pair in pairs):
        raise ValueError('concept["pairs"] must be a list of (text with the concept, the same text without it)')
    having, lacking = (texts.encode(original, [pair[side] for pair in pairs]) for side in (0, 1))
    return (having - lacking).mean(0)
