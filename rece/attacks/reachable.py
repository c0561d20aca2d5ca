"""The best that any prompt's tokens could do: the closed form, kept to what the text encoder can emit (ours)."""

import torch

from rece import certificate, layers, solver, texts
from rece.attacks import Attempts

ACCESS = "white"


def attack(victim, prompts, seeds, *, original, concept) -> Attempts:
    """embeds: the minimisers of the certificate for the prompts' tokens; (n, positions, d) float64.

    That is, for each token c of a prompt, the point of the encoder's set whose keys and values in the victim come
    closest to those of c in the original. The first token is the same for every prompt and stays.
    No prompt brings any single token closer than this; that a prompt emits all of these at once is not said, so that
    it bounds from above what matching keys and values by prompts can do.
    losses: the distance, summed over positions, at h = c and at the solution.
    Raises ValueError if the victim carries no eraser; TypeError if its encoder does not end in one LayerNorm.
    """
    M = layers.fused(victim)
    if M is None:
        raise ValueError("victim must carry an eraser: the attack asks what its map leaves within reach")
    gamma, beta = texts.final_norm(victim)
    G = solver.gram(layers.originals(victim).values()).to(gamma.device)
    M = M.to(G)
    C = texts.encode(original, prompts).to(G)
    tokens = C[:, 1:].flatten(0, 1)
    distance, found = certificate.bound(M, G, tokens, gamma, beta)
    before = certificate.norm(tokens @ M.T - tokens, G)
    losses = torch.stack([before, distance], 1).reshape(len(C), -1, 2).sum(1).tolist()
    embeds = torch.cat([C[:, :1], found.reshape(C[:, 1:].shape)], 1)
    return Attempts(None, seeds, embeds.cpu(), losses)
