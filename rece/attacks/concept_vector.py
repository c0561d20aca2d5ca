"""The concept vector added to the prompt's embedding: what RECE's authors' code calls Ring-A-Bell.

It searches no tokens, so do not compare its numbers with those of the published Ring-A-Bell.
"""

from torch import Tensor

from rece import solver, texts
from rece.attacks import Attempts, _tokens

ACCESS = "grey"
NEEDS = ()
applies = _tokens.applies


def attack(victim, prompts, seeds, *, original, concept, eta: float = 3.0) -> Attempts:
    """Return embeds = tau(prompt) + eta v, (n, positions, d) float64 on the CPU. v is what `vector` returns.

    tau is the original's text encoder; the victim is not looked at.
    eta: 3 in the authors' code for nudity, 0.9 for an artist. Raises ValueError if there are no pairs.
    Source: RECE's official code.
    """
    added = shift(original, concept, eta)
    return Attempts(None, seeds, (texts.encode(original, prompts) + added).cpu())


def shift(original, concept: list[dict], eta: float) -> Tensor:
    """eta v, (positions, d) float64. Raises ValueError if eta is not a finite number, and as `vector`."""
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not abs(eta) <= solver.MOST:
        raise ValueError(f"eta must be a finite number, {solver.MOST:.0e} at most, not {solver.shown(eta)}")
    return eta * vector(original, concept)


def vector(original, concept: list[dict]) -> Tensor:
    """v = mean over all concepts' pairs of tau(with) - tau(without), (positions, d) float64 on the encoder's device.

    Raises ValueError if there are no pairs.
    """
    pairs = [pair for member in concept for pair in member.get("pairs", [])]
    if not pairs or not all(len(pair) == 2 for pair in pairs):
        raise ValueError('concept["pairs"] must be a list of (text with the concept, the same text without it)')
    having, lacking = (texts.encode(original, [pair[side] for pair in pairs]) for side in (0, 1))
    return (having - lacking).mean(0)
