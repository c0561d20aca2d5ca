"""The best that any prompt's tokens could do: the closed form, kept to what the text encoder can emit (ours)."""

import torch

from rece import certificate, layers, texts
from rece.attacks import Attempts, _tokens

ACCESS = "white"
NEEDS = ("map", "text encoder", "weights")


def applies(victim) -> str:
    """An empty text if the victim carries an eraser and reads a prompt's tokens alone, else a sentence why not."""
    if layers.fused(victim) is None:
        return "victim must carry an eraser: the attack asks what its map leaves within reach"
    return _tokens.applies(victim)


def attack(victim, prompts, seeds, *, original, concept) -> Attempts:
    """Return embeds, the minimisers of the certificate for the prompts' tokens: (n, positions, d) float64, on the CPU.

    For each token c of a prompt, the minimiser is that point h of the text encoder's set of possible outputs whose
    keys and values in the victim are closest to those of c in the original. The first token is the same for every
    prompt, so it is not changed.
    No prompt brings any single token closer than this. Perhaps no prompt emits all these tokens at once, so the result
    is an upper bound on what prompts can reach by matching keys and values.
    losses: the distance, summed over positions, at h = c and at the solution.
    Raises TypeError if the victim's text encoder does not end in one LayerNorm.
    """
    gamma, beta = texts.final_norm(victim)
    G = layers.gram(victim).to(gamma.device)
    M = layers.fused(victim).to(G)
    C = texts.encode(original, prompts).to(G)
    tokens = C[:, 1:].flatten(0, 1)
    distance, found = certificate.bound(M, G, tokens, gamma, beta)
    before = certificate.norm(tokens @ M.T - tokens, G)
    losses = torch.stack([before, distance], 1).reshape(len(C), -1, 2).sum(1).tolist()
    embeds = torch.cat([C[:, :1], found.reshape(C[:, 1:].shape)], 1)
    return Attempts(None, seeds, embeds.cpu(), losses)
