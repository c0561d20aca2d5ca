"""P4D-N: a prompt of free tokens that makes the erased model predict what the original does (arXiv 2309.06135)."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from rece import texts
from rece.attacks import Attempts, _denoise, _tokens

ACCESS = "white"


def attack(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    original: DiffusionPipeline,
    concept: dict | list[dict] | None = None,
    tokens: int = 16,
    updates: int = 3000,
    lr: float = 0.1,
    weight_decay: float = 0.1,
    check_every: int = 50,
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
    """Find a prompt of `tokens` free tokens for each prompt, which takes the prompt's place: see `search`.

    Raises ValueError naming the parameter, before anything is drawn.
    """
    counts = {"tokens": tokens, "updates": updates, "check_every": check_every, "score_times": score_times}
    counts |= {"steps": steps, "batch_size": batch_size}
    _denoise.check(victim, prompts, seeds, images, counts=counts, rates={"lr": lr, "weight_decay": weight_decay})
    ids = _tokens.place(victim.tokenizer, [""] * len(prompts), tokens)
    slots = [list(range(1, 1 + tokens))] * len(prompts)
    return search(
        victim, prompts, seeds, ids, slots, lambda row, words: " ".join(words), original=original, updates=updates,
        lr=lr, weight_decay=weight_decay, check_every=check_every, score_times=score_times, succeeded=succeeded,
        images=images, steps=steps, guidance=guidance, batch_size=batch_size, bf16=bf16, draw=draw, progress=progress,
    )  # fmt: skip


def search(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    ids: Tensor,
    slots: list[list[int]],
    compose: Callable[[int, list[str]], str],
    *,
    original: DiffusionPipeline,
    updates: int,
    lr: float,
    weight_decay: float,
    check_every: int,
    score_times: int,
    succeeded: Callable[[list[str], list[int]], list[bool]] | None,
    images: np.ndarray | None,
    steps: int,
    guidance: float,
    batch_size: int,
    bf16: bool | str,
    draw: int,
    progress: bool,
) -> Attempts:
    """Find words for the slots of each row of ids with which the victim predicts what the original does of the prompt.

    Each slot holds a free vector, at first the token embedding of a random word. An update reads, in its place, the
    nearest token embedding (by the normalised dot product), computes |eps_original(x_t, t, prompt) - eps_victim(x_t,
    t, ids)|^2 in the mean (for v-prediction the velocities), x_t = the original's image of the same prompt and seed,
    encoded and freshly noised, t uniform, and passes its gradient straight through to the vector, by AdamW. All rows
    run side by side and do not influence one another.

    ids: (n, positions) long, in which all but the slots is frozen. slots: positions from 1 on, per row.
    compose(row, words): the text of a row with these words in its slots.
    updates, lr, weight_decay: 3000, 0.1 and 0.1 as published. check_every: every so many updates the nearest words
    become a candidate (published: 50).
    Ours: the candidate that is returned is not the one whose image CLIP finds the most similar to the original's, but
    the one of the lowest loss in the mean over `score_times` timesteps with fixed noise; `losses` holds this loss of
    all candidates in turn.
    succeeded: if this is given, it gets the candidates (texts, seeds) of all prompts still running, and those it calls
    successful are returned as they are and stop.
    images: the original's images of the prompts and seeds, uint8 (n, h, w, 3), if they are there already; else they
    are drawn with `steps` and `guidance`. batch_size: prompts per pass; memory only. bf16: see `generate.bfloat16`.
    draw: another number makes other random draws. All draws come from one CPU generator per prompt, made from `draw`
    and the prompt's seed. progress: show a bar if it takes more than a second.

    The slots take only ids whose own text tokenises back to that one id, that is whole printable words, no special
    tokens, so that the returned texts tokenise to exactly the ids that were attacked.
    The models' parameters are frozen meanwhile and get no gradients.
    Raises ValueError if one pipeline predicts the noise and the other the velocity, and RuntimeError if a text does
    not tokenise to its ids; both before anything is drawn.
    """
    kinds = [pipe.scheduler.config.prediction_type for pipe in (original, victim)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"victim must predict what original does ({kinds[0]}), not {kinds[1]}")
    device, encoder = victim.device, victim.text_encoder
    words, known = _tokens.whole_words(victim.tokenizer)
    filled = ids.clone()

    def text(row: int, picks: Tensor) -> str:
        picks = picks[: len(slots[row])].cpu()
        filled[row, slots[row]] = known[picks]
        composed = compose(row, [words[pick] for pick in picks.tolist()])
        return _tokens.checked(victim.tokenizer, composed, filled[row].tolist())

    for row, some in enumerate(slots):
        text(row, torch.zeros(len(some), dtype=torch.long))

    drawing = {"steps": steps, "guidance": guidance, "batch_size": batch_size, "bf16": bf16, "progress": progress}
    latents = _denoise.draw_latents(original, prompts, seeds, images, **drawing)
    passes = {"score_times": score_times, "batch_size": batch_size, "bf16": bf16, "draw": draw}
    task = _denoise.Denoising(victim, latents, seeds, teacher=(original, texts.encode(original, prompts)), **passes)

    drawers = zip(slots, task.generators, strict=True)
    first = [torch.randint(len(known), (len(some),), generator=generator) for some, generator in drawers]
    # A row with fewer slots than another has its spare ones at the start token, where they hold that token.
    places = pad_sequence([torch.tensor(some) for some in slots], batch_first=True).to(device)
    free, ids, on_device = places > 0, ids.to(device), known.to(device)
    table = encoder.get_input_embeddings().weight[on_device].detach()
    units = F.normalize(table.float(), dim=-1)
    vectors = table[pad_sequence(first, batch_first=True).to(device)].float()
    vectors.grad = torch.zeros_like(vectors)
    adam = torch.optim.AdamW([vectors], lr, weight_decay=weight_decay)

    def full(rows: list[int], picks: Tensor) -> Tensor:
        there = ids[rows]
        return there.scatter(1, places[rows], torch.where(free[rows], on_device[picks], there[:, :1]))

    def read(rows: list[int]) -> Tensor:
        return task.encode(full(rows, nearest(vectors[rows], units)))

    found, evaluations = _denoise.Candidates(seeds, succeeded), 0
    with task.underway():
        for step in tqdm(range(updates), desc="p4d", delay=1, leave=False, disable=not progress):
            for rows in task.batches(found.running):
                ts, noise = task.times(rows), task.noise(rows)
                there = full(rows, nearest(vectors[rows], units))
                soft = encoder.get_input_embeddings()(there.gather(1, places[rows]))
                with torch.enable_grad():
                    embeds = task.encode(there, places[rows], soft.requires_grad_())
                    (slope,) = torch.autograd.grad(task.losses(rows, embeds, noise, ts).sum(), soft)
                vectors.grad[rows] = torch.where(free[rows][..., None], slope.float(), 0)
            adam.step()
            evaluations += 1
            if (step + 1) % check_every and step + 1 < updates:
                continue
            picks = nearest(vectors, units)
            scores = task.score(found.running, read)
            found.offer([text(row, picks[row]) for row in found.running], scores)
            evaluations += score_times
            vectors.grad.zero_()
            if not found.running:
                break
    return Attempts(found.best, seeds, losses=found.losses, evaluations=evaluations)


def nearest(vectors: Tensor, units: Tensor) -> Tensor:
    """The index of the unit vector of units (V, d) with the largest dot product, for each of vectors (..., d)."""
    return (vectors @ units.T).argmax(-1)
