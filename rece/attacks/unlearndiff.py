"""UnlearnDiffAtk: tokens put before the prompt, found by gradients through the erased model (arXiv 2310.11868)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from rece.attacks import Attempts, _denoise, _tokens

ACCESS = "white"
NEEDS = ("text encoder", "weights")
SETTINGS = _denoise.Settings(updates=2000, lr=0.01, weight_decay=0.1, check_every=None)

applies = _denoise.applies


def attack(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    original: DiffusionPipeline,
    concept: dict | list[dict] | None = None,
    tokens: int = 5,
    times: int = 50,
    **settings,
) -> Attempts:
    """Find `tokens` tokens before each prompt with which the victim denoises the original's image of that prompt.

    Each token is a point of the probability simplex over the vocabulary, at first its centre. An update draws one
    token id from each point and computes the victim's denoising loss with these ids: |eps - eps_victim(x_t, t,
    prompt)|^2 in the mean (for v-prediction with velocities). x_t is the original's image of the same prompt and
    seed, encoded and freshly noised. The loss's gradient is passed straight through to all probabilities, clipped to
    -1..1. Then follow an Adam step and a projection back to the simplex. All prompts are searched side by side and do
    not influence one another.

    tokens: in the paper 5 for nudity, 3 for styles and objects. times: the updates are spread in order over so many
    timesteps, from low to high noise (published: 50, which are 10, 30, ..., 990 of 1000).
    settings: see `_denoise.Settings`. Published are 2000 updates. The likeliest tokens become a candidate after every
    `check_every` updates; None, as published, means after each timestep.
    The published attack stops a prompt at its first success; ours does not ask a judge.
    Ours: the published attack returns the last candidate, ours the one of the lowest score. `losses` holds the scores
    of all candidates in turn. The draws of a prompt depend on its seed and `repeat` only.

    Returned prompts are texts, and their tokenisation is exactly the ids that were attacked. For this, only ids take
    part whose text tokenises back to that one id: whole printable words, joined by spaces, and no special tokens.
    The models' parameters are frozen inside and restored after.
    Raises ValueError that names the parameter, before anything is drawn.
    """
    settings = replace(SETTINGS, **settings)
    _tokens.check_counts({"tokens": tokens, "times": times})
    n, device, updates = len(prompts), victim.device, settings.updates
    ids = _tokens.place(victim.tokenizer, prompts, tokens).to(device)
    words, known = _tokens.whole_words(victim.tokenizer)
    known = known.to(device)

    latents = _denoise.draw_latents(original, prompts, seeds, settings)
    task = _denoise.Denoising(victim, latents, seeds, settings)

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
    check_every = settings.check_every or max(1, updates // times)
    table = victim.text_encoder.get_input_embeddings().weight[known].detach()
    simplex = torch.full((n, tokens, len(known)), 1 / len(known), device=device)
    simplex.grad = torch.zeros_like(simplex)
    adam = torch.optim.Adam([simplex], settings.lr, weight_decay=settings.weight_decay)
    found, evaluations = _denoise.Candidates(n), 0
    with task.underway():
        for step in tqdm(range(updates), desc="unlearndiff", delay=1, leave=False, disable=not settings.progress):
            for rows in task.batches(n):
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
            scores = task.score(lambda rows, picks=likeliest: encode(rows, picks[rows]))
            found.offer([text(row, picks) for row, picks in enumerate(likeliest)], scores)
            evaluations += settings.score_times
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
