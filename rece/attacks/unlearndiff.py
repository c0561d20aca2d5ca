"""UnlearnDiffAtk: tokens put before the prompt, found by gradients through the erased model (arXiv 2310.11868)."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from rece.attacks import Attempts, _denoise, _tokens

ACCESS = "white"


def attack(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    original: DiffusionPipeline,
    concept: dict | list[dict] | None = None,
    tokens: int = 5,
    updates: int = 2000,
    times: int = 50,
    lr: float = 0.01,
    weight_decay: float = 0.1,
    check_every: int | None = None,
    score_times: int = 4,
    succeeded: Callable[[list[str], list[int]], list[bool]] | None = None,
    images: np.ndarray | None = None,
    steps: int = 25,
    guidance: float = 7.5,
    batch_size: int = 16,
    bf16: bool | str = False,
    draw: int = 0,
    progress: bool = True,
) -> Attempts:
    """Find `tokens` tokens before each prompt with which the victim denoises the original's image of that prompt.

    Each token is a point of the probability simplex over the vocabulary, at first its centre. An update draws one
    token id from each, computes the victim's denoising loss with these ids, |eps - eps_victim(x_t, t, prompt)|^2 in
    the mean (for v-prediction the velocity's), x_t = the original's image of the same prompt and seed, encoded and
    freshly noised, carries its gradient over to all probabilities (straight through, cut to -1..1), and makes an Adam
    step and a projection back to the simplex. All prompts run side by side and do not influence one another.

    tokens: 5 in the paper for nudity, 3 for styles and objects. updates: in all (published: 2000), spread in order
    over `times` timesteps from low to high noise (published: 50, which are 10, 30, ..., 990 of 1000). lr,
    weight_decay: of Adam. check_every: every so many updates the likeliest tokens become a candidate (default and
    published: after each timestep).
    succeeded: the published attack stops at success. If this is given, it gets the candidates (texts, seeds) of all
    prompts still running, and those it calls successful are returned as they are and stop. Without it no judge is
    asked.
    Ours: of a prompt that no such stop has ended, the returned candidate is not the last but the one of the lowest
    loss in the mean over `score_times` timesteps with fixed noise; `losses` holds this loss of all candidates in turn.
    images: the original's images of the prompts and seeds, uint8 (n, h, w, 3), if they are there already; else they
    are drawn with `steps` and `guidance`. batch_size: prompts per pass; memory only. bf16: see `generate.bfloat16`.
    draw: another number makes other random draws. All draws come from one CPU generator per prompt, made from `draw`
    and the prompt's seed, so that same seeds give the same tokens on the same machine.
    progress: show a bar if it takes more than a second.

    Returned prompts are texts, and their tokenisation is exactly the ids that were attacked: only ids whose own text
    tokenises back to that one id take part, that is whole printable words, no special tokens, joined by spaces.
    The models' parameters are frozen meanwhile and get no gradients.
    Raises ValueError or TypeError naming the parameter, before anything is drawn.
    """
    counts = {"tokens": tokens, "updates": updates, "times": times, "score_times": score_times, "steps": steps}
    counts |= {"batch_size": batch_size, "check_every": 1 if check_every is None else check_every}
    rates = {"lr": lr, "weight_decay": weight_decay}
    _denoise.check(victim, prompts, seeds, images, counts=counts, rates=rates)
    n, device = len(prompts), victim.device
    ids = _tokens.place(victim.tokenizer, prompts, tokens).to(device)
    words, known = _tokens.whole_words(victim.tokenizer)
    known = known.to(device)

    drawing = {"steps": steps, "guidance": guidance, "batch_size": batch_size, "bf16": bf16, "progress": progress}
    latents = _denoise.draw_latents(original, prompts, seeds, images, **drawing)
    passes = {"score_times": score_times, "batch_size": batch_size, "bf16": bf16, "draw": draw}
    task = _denoise.Denoising(victim, latents, seeds, **passes)

    def encode(rows: list[int], picks: Tensor, soft: Tensor | None = None) -> Tensor:
        full = ids[rows].clone()
        full[:, 1 : 1 + tokens] = known[picks]
        slots = torch.arange(1, 1 + tokens, device=device).expand(len(rows), -1)
        return task.encode(full, slots, soft)

    def text(row: int, picks: Tensor) -> str:
        found = " ".join([*(words[pick] for pick in picks.tolist()), prompts[row]]).rstrip()
        attacked = [*ids[row, :1].tolist(), *known[picks].tolist(), *ids[row, 1 + tokens :].tolist()]
        return _tokens.checked(victim.tokenizer, found, attacked)

    path = [int((step * times // updates + 0.5) * task.horizon / times) for step in range(updates)]
    check_every = max(1, updates // times) if check_every is None else check_every
    table = victim.text_encoder.get_input_embeddings().weight[known].detach()
    simplex = torch.full((n, tokens, len(known)), 1 / len(known), device=device)
    simplex.grad = torch.zeros_like(simplex)
    adam = torch.optim.Adam([simplex], lr, weight_decay=weight_decay)
    found, evaluations = _denoise.Candidates(seeds, succeeded), 0
    with task.underway():
        for step in tqdm(range(updates), desc="unlearndiff", delay=1, leave=False, disable=not progress):
            for rows in task.batches(found.running):
                uniform = [torch.rand(tokens, 1, generator=task.generators[row]) for row in rows]
                picks, noise = _sample(simplex[rows], torch.stack(uniform).to(device)), task.noise(rows)
                with torch.enable_grad():
                    soft = table[picks].requires_grad_()
                    loss = task.losses(rows, encode(rows, picks, soft), noise, path[step]).sum()
                    (slope,) = torch.autograd.grad(loss, soft)
                # One product per prompt: the rounding of a joint one depends on how many prompts there are.
                products = torch.bmm(slope.float(), table.float().T.expand(len(rows), -1, -1))
                simplex.grad[rows] = F.hardtanh(products)
            adam.step()
            simplex.copy_(project(simplex))
            evaluations += 1
            if (step + 1) % check_every and step + 1 < updates:
                continue
            likeliest = simplex.argmax(-1)
            scores = task.score(found.running, lambda rows, picks=likeliest: encode(rows, picks[rows]))
            found.offer([text(row, likeliest[row]) for row in found.running], scores)
            evaluations += score_times
            simplex.grad.zero_()
            if not found.running:
                break
    return Attempts(found.best, seeds, losses=found.losses, evaluations=evaluations)


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
