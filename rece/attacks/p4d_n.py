"""P4D-N: a prompt of free tokens that makes the erased model predict what the original does (arXiv 2309.06135)."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rece import solver
from rece.attacks import Attempts, _denoise, _tokens

ACCESS = "white"
NEEDS = ("text encoder", "weights")
SETTINGS = _denoise.Settings(updates=3000, lr=0.1, weight_decay=0.1, check_every=50)
applies = _denoise.applies


def attack(victim, prompts, seeds, *, original, concept, tokens: int = 16, **settings) -> Attempts:
    """Find a prompt of `tokens` free tokens for each prompt, which takes the prompt's place: see `search`."""
    settings = replace(SETTINGS, **settings)
    solver.whole(tokens=tokens)
    return search(victim, original, prompts, seeds, [["", ""]] * len(prompts), tokens, "lower tokens", settings)


def search(
    victim, original, prompts, seeds, parts: list[list[str]], tokens: int, remedy: str, settings: _denoise.Settings
) -> Attempts:
    """Find words with which the victim predicts what the original does of the prompt: `tokens` between any two parts.

    Each free place holds a vector, at first the token embedding of a random word. An update reads, in its place, the
    nearest token embedding (by the normalised dot product), and computes |eps_original(x_t, t, prompt) -
    eps_victim(x_t, t, ids)|^2 in the mean (for v-prediction with velocities). x_t is the original's image of the same
    prompt and seed, encoded and freshly noised; t is uniform. The gradient is passed straight through to the vector,
    and AdamW makes a step. All prompts are searched side by side.

    parts: of each prompt, texts that do not change. remedy: see `_tokens.Blanks`.
    settings: see `_denoise.Settings`. Published are 3000 updates, lr 0.1, weight_decay 0.1 and check_every 50. The
    nearest words become a candidate after every `check_every` updates; None means after the last update only.
    Ours: the published attack returns the candidate whose image CLIP finds most similar to the original's. Ours asks
    no judge, and no prompt stops early. Only words of `_tokens.whole_words` take part.
    Raises ValueError if one pipeline predicts the noise and the other the velocity.
    """
    kinds = [pipe.scheduler.config.prediction_type for pipe in (original, victim)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"victim must predict what original does ({kinds[0]}), not {kinds[1]}: leave this attack out")
    n, embedding = len(prompts), victim.text_encoder.get_input_embeddings()
    blanks = _tokens.Blanks(victim, parts, tokens, remedy)
    slots, free = blanks.slots, blanks.slots > 0
    for row, some in enumerate(torch.zeros_like(slots)):
        blanks.text(row, some)
    task = _denoise.Denoising(victim, original, prompts, seeds, settings, taught=True)
    table = embedding.weight[blanks.known].detach()
    units = F.normalize(table.float(), dim=-1)
    drawers = zip(free.sum(1).tolist(), task.generators, strict=True)
    first = [torch.randint(len(table), (count,), generator=generator) for count, generator in drawers]
    vectors = table[pad_sequence(first, batch_first=True).to(victim.device)].float()
    vectors.grad = torch.zeros_like(vectors)
    adam = torch.optim.AdamW([vectors], settings.lr, weight_decay=settings.weight_decay)
    with task.underway():
        for _, due in task.updates("p4d"):
            for rows in task.batches(n):
                ids = blanks.ids(rows, nearest(vectors[rows], units))
                soft = embedding(ids.gather(1, slots[rows]))
                slope = task.slope(task.noised(rows), soft, partial(task.encode, ids, slots[rows]))
                vectors.grad[rows] = torch.where(free[rows][..., None], slope.float(), 0)
            adam.step()
            if due:
                picks = nearest(vectors, units)
                candidates = [blanks.text(row, some) for row, some in enumerate(picks)]
                task.offer(candidates, lambda rows, picks=picks: task.encode(blanks.ids(rows, picks[rows])))
    return Attempts(task.best, seeds, losses=task.losses, evaluations=task.evaluations)


def nearest(vectors: Tensor, units: Tensor) -> Tensor:
    """The index of the unit vector of units (V, d) with the largest dot product, for each of vectors (..., d)."""
    return (vectors @ units.T).argmax(-1)
