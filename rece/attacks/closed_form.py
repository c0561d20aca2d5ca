"""The closed-form white-box embedding: RECE's own derived embedding, turned against the victim."""

import torch
from torch import Tensor

from rece import layers, solver, texts
from rece.attacks import Attempts

ACCESS = "white"


def attack(victim, prompts, seeds, *, original, concept, lamb: float = 0.1) -> Attempts:
    """embeds: for each token c of the original's prompt embedding (rows of its own, all positions) the minimiser

        c' = argmin sum_i |W'_i c' - W_i c|^2 + lamb |c'|^2 = (sum W'^T W' + lamb I)^-1 (sum W'^T W) c,

    over all layers that read the prompt, W' the victim's and W the original's; (n, positions, d) float64.
    losses: the objective, summed over positions, at c' = c and at the solution.
    Raises ValueError if lamb is negative, if the models' layers differ, or if the system is singular to float64.
    Source: RECE, eq. of the derived embedding with zero regularisation (arXiv 2407.12383).
    """
    if not lamb >= 0:
        raise ValueError(f"lamb must be 0 or more, not {lamb}")
    edited, plain = layers.prompt_layers(victim), layers.prompt_layers(original)
    if {k: v.weight.shape for k, v in edited.items()} != {k: v.weight.shape for k, v in plain.items()}:
        raise ValueError("victim and original must be of one architecture: their layers differ")
    C = texts.encode(original, prompts)
    d = C.shape[-1]
    A, B, G = (torch.zeros(d, d, dtype=torch.float64, device=C.device) for _ in range(3))
    for name, layer in edited.items():
        W, V = (solver.precise(module.weight.detach()).to(C.device) for module in (plain[name], layer))
        A += V.T @ V
        B += V.T @ W
        G += W.T @ W
    L, failed = torch.linalg.cholesky_ex(A + lamb * torch.eye(d, dtype=A.dtype, device=A.device))
    pivots = L.diagonal()
    # A ratio of pivots below 1e-7 means a condition number above 1e14: no digit of float64 would be left.
    if failed or pivots.min() < 1e-7 * pivots.max():
        raise ValueError(f"the system for c' is singular at lamb = {lamb}: raise lamb")
    found = torch.cholesky_solve((C @ B.T).flatten(0, 1).T, L).T.reshape(C.shape)

    def objective(X: Tensor) -> Tensor:
        fit = (X @ A * X).sum(-1) - 2 * (X @ B * C).sum(-1) + (C @ G * C).sum(-1)
        return (fit + lamb * X.square().sum(-1)).sum(-1)

    losses = torch.stack([objective(C), objective(found)], 1).tolist()
    return Attempts(None, seeds, found.cpu(), losses)
