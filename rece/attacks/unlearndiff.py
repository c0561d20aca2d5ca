"""UnlearnDiffAtk: tokens put before the prompt, found by gradients through the erased model (arXiv 2310.11868)."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rece import solver
from rece.attacks import Attempts, _denoise, _tokens

ACCESS = "white"
NEEDS = ("text encoder", "weights")
SETTINGS = _denoise.Settings(updates=2000, lr=0.01, weight_decay=0.1, check_every=None)
applies = _denoise.applies


def attack(victim, prompts, seeds, *, original, concept, tokens: int = 5, times: int = 50, **settings) -> Attempts:
    """Find `tokens` tokens before each prompt with which the victim denoises the original's image of that prompt.

    Each token is a point of the probability simplex over the vocabulary, at first its centre. An update draws one
    token id from each point and computes the victim's denoising loss with these ids: |eps - eps_victim(x_t, t,
    prompt)|^2 in the mean (for v-prediction with velocities). x_t is the original's image of the same prompt and
    seed, encoded and freshly noised. The loss's gradient is passed straight through to all probabilities, clipped to
    -1..1. Then follow an Adam step and a projection back to the simplex. All prompts are searched side by side.

    tokens: in the paper 5 for nudity, 3 for styles and objects. times: the updates are spread in order over so many
    timesteps, from low to high noise (published: 50, which are 10, 30, ..., 990 of 1000).
    settings: see `_denoise.Settings`. Published are 2000 updates. The likeliest tokens become a candidate after every
    `check_every` updates. None, as published, means after every updates // times updates, which is after each timestep
    if times divides updates.
    Ours: the published attack stops a prompt at its first success, or else returns the last candidate. Ours asks no
    judge. Only words of `_tokens.whole_words` take part.
    """
    settings = replace(SETTINGS, **settings)
    solver.whole(tokens=tokens, times=times)
    n, updates = len(prompts), settings.updates
    blanks = _tokens.Blanks(victim, [["", prompt] for prompt in prompts], tokens, "lower tokens")
    task = _denoise.Denoising(victim, original, prompts, seeds, settings)

    def encode(rows: list[int], picks: Tensor, soft: Tensor | None = None) -> Tensor:
        return task.encode(blanks.ids(rows, picks), blanks.slots[rows], soft)

    path = [int((step * times // updates + 0.5) * task.horizon / times) for step in range(updates)]
    table = victim.text_encoder.get_input_embeddings().weight[blanks.known].detach()
    simplex = torch.full((n, tokens, len(table)), 1 / len(table), device=victim.device)
    simplex.grad = torch.zeros_like(simplex)
    adam = torch.optim.Adam([simplex], settings.lr, weight_decay=settings.weight_decay)
    with task.underway():
        for step, due in task.updates("unlearndiff", max(1, updates // times)):
            for rows in task.batches(n):
                uniform = torch.stack([torch.rand(tokens, 1, generator=task.generators[row]) for row in rows])
                picks = _sample(simplex[rows], uniform.to(victim.device))
                slope = task.slope(task.noised(rows, path[step]), table[picks], partial(encode, rows, picks))
                # One product per prompt: the rounding of a joint one depends on how many prompts there are.
                products = torch.bmm(slope.float(), table.float().T.expand(len(rows), -1, -1))
                simplex.grad[rows] = F.hardtanh(products)
            adam.step()
            simplex.copy_(project(simplex))
            if due:
                likeliest = simplex.argmax(-1)
                candidates = [blanks.text(row, picks) for row, picks in enumerate(likeliest)]
                task.offer(candidates, lambda rows, picks=likeliest: encode(rows, picks[rows]))
    return Attempts(task.best, seeds, losses=task.losses, evaluations=task.evaluations)


def project(points: Tensor) -> Tensor:
    """The nearest points of the probability simplex, over the last dimension; any shape, float.

    Exact in finitely many steps (Michelot 1986), where the published code bisects for the same point.
    """
    points = points - points.amax(-1, keepdim=True)
    shift = (points.sum(-1, keepdim=True) - 1) / points.shape[-1]
    while True:
        active = points > shift
        sums = torch.where(active, points, 0).sum(-1, keepdim=True)
        new = (sums - 1) / active.sum(-1, keepdim=True)
        if not (new > shift).any():
            return (points - shift).clamp(min=0)
        shift = torch.maximum(shift, new)


def _sample(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index per point of the simplex (..., V), by inverting the distribution at uniform (..., 1) in 0..1."""
    sums = weights.cumsum(-1)
    return torch.searchsorted(sums, uniform * sums[..., -1:], right=True)[..., 0].clamp(max=weights.shape[-1] - 1)
