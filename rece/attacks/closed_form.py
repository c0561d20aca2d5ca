"""The closed-form white-box embedding: RECE's own derived embedding, turned against the victim."""

import torch
from torch import Tensor

from rece import layers, solver, texts
from rece.attacks import Attempts, _tokens

ACCESS = "white"
NEEDS = ("weights",)
applies = _tokens.applies


def attack(victim, prompts, seeds, *, original, concept, lamb: float = 0.1) -> Attempts:
    """Return as embeds, for each token c of the original's prompt embedding at all positions, the minimiser

        c' = argmin sum_i |W'_i c' - W_i c|^2 + lamb |c'|^2 = (sum W'^T W' + lamb I)^-1 (sum W'^T W) c.

    The sums run over all layers that read the prompt; W' is the victim's weight and W the original's. The victim's
    text encoder is not read. embeds: (n, positions, d) float64, on the CPU.
    losses: the objective, summed over positions, at c' = c and at the solution.
    Raises ValueError if lamb is negative, if the models' layers differ, if a weight is not finite, or if float64
    cannot solve the system.
    Source: RECE, eq. of the derived embedding with zero regularisation (arXiv 2407.12383).
    """
    solver.positive(lamb, "lamb", or_zero=True)
    C = texts.encode(original, prompts)
    d = C.shape[-1]
    edited, plain = (
        {name: layers.weight_of(layer)[:, :d] for name, layer in layers.prompt_layers(pipe).items()}
        for pipe in (victim, original)
    )
    if {name: W.shape for name, W in edited.items()} != {name: W.shape for name, W in plain.items()}:
        raise ValueError("victim and original must be of one architecture: their layers differ")
    # One Gram matrix of the rows [W' W] has all three sums as its blocks.
    joint = solver.gram(torch.cat([V, plain[name].to(V.device)], 1) for name, V in edited.items()).to(C.device)
    A, B, G = joint[:d, :d], joint[:d, d:], joint[d:, d:]
    left = A + lamb * torch.eye(d, dtype=A.dtype, device=A.device)
    found = solver.solve(left, (C @ B.T).flatten(0, 1).T).T.reshape(C.shape)

    def objective(X: Tensor) -> Tensor:
        fit = (X @ A * X).sum(-1) - 2 * (X @ B * C).sum(-1) + (C @ G * C).sum(-1)
        return (fit + lamb * X.square().sum(-1)).sum(-1)

    losses = torch.stack([objective(C), objective(found)], 1).tolist()
    return Attempts(None, seeds, found.cpu(), losses)
