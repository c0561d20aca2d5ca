"""P4D-N: a prompt of free tokens that makes the erased model predict what the original does (arXiv 2309.06135)."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from rece import texts
from rece.attacks import Attempts, _denoise, _tokens

ACCESS = "white"
NEEDS = ("text encoder", "weights")
SETTINGS = _denoise.Settings(updates=3000, lr=0.1, weight_decay=0.1, check_every=50)

applies = _denoise.applies


def attack(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    original: DiffusionPipeline,
    concept: dict | list[dict] | None = None,
    tokens: int = 16,
    **settings,
) -> Attempts:
    """Find a prompt of `tokens` free tokens for each prompt, which takes the prompt's place: see `search`.

    settings: see `_denoise.Settings`. Raises ValueError that names the parameter, before anything is drawn.
    """
    settings = replace(SETTINGS, **settings)
    _tokens.check_counts({"tokens": tokens})
    ids = _tokens.place(victim.tokenizer, [""] * len(prompts), tokens)
    slots = [list(range(1, 1 + tokens))] * len(prompts)
    return search(victim, original, prompts, seeds, ids, slots, lambda row, words: " ".join(words), settings)


def search(
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    ids: Tensor,
    slots: list[list[int]],
    compose: Callable[[int, list[str]], str],
    settings: _denoise.Settings,
) -> Attempts:
    """Find words for the slots of each row of ids with which the victim predicts what the original does of the prompt.

    Each slot holds a free vector, at first the token embedding of a random word. An update reads, in its place, the
    nearest token embedding (by the normalised dot product), and computes |eps_original(x_t, t, prompt) -
    eps_victim(x_t, t, ids)|^2 in the mean (for v-prediction with velocities). x_t is the original's image of the same
    prompt and seed, encoded and freshly noised; t is uniform. The gradient is passed straight through to the vector,
    and AdamW makes a step. All rows are searched side by side and do not influence one another.

    ids: (n, positions) long; only the slots change. slots: for each row, positions from 1 on.
    compose(row, words): the text of a row with these words in its slots.
    settings: published are 3000 updates, lr 0.1, weight_decay 0.1 and check_every 50. The nearest words become a
    candidate after every `check_every` updates; None means after the last update only.
    No judge is asked, and no prompt stops early.
    Ours: the published attack returns the candidate whose image CLIP finds most similar to the original's, ours the
    one of the lowest score. `losses` holds the scores of all candidates in turn. The draws of a prompt depend on its
    seed and `repeat` only.

    The slots take only ids whose text tokenises back to that one id: whole printable words and no special tokens. So
    the returned texts tokenise to exactly the ids that were attacked.
    The models' parameters are frozen inside and restored after.
    Raises ValueError if one pipeline predicts the noise and the other the velocity, and RuntimeError if a text does
    not tokenise to its ids; both before anything is drawn.
    """
    kinds = [pipe.scheduler.config.prediction_type for pipe in (original, victim)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"victim must predict what original does ({kinds[0]}), not {kinds[1]}: leave this attack out")
    n, device, encoder = len(prompts), victim.device, victim.text_encoder
    words, known = _tokens.whole_words(victim.tokenizer)
    filled = ids.clone()

    def text(row: int, picks: Tensor) -> str:
        picks = picks[: len(slots[row])].cpu()
        filled[row, slots[row]] = known[picks]
        composed = compose(row, [words[pick] for pick in picks.tolist()])
        return _tokens.checked(victim.tokenizer, composed, filled[row].tolist())

    for row, some in enumerate(slots):
        text(row, torch.zeros(len(some), dtype=torch.long))

    latents = _denoise.draw_latents(original, prompts, seeds, settings)
    task = _denoise.Denoising(victim, latents, seeds, settings, teacher=(original, texts.encode(original, prompts)))

    drawers = zip(slots, task.generators, strict=True)
    first = [torch.randint(len(known), (len(some),), generator=generator) for some, generator in drawers]
    # If a row has fewer slots than another, its spare ones stand at the start token and hold that token.
    places = pad_sequence([torch.tensor(some) for some in slots], batch_first=True).to(device)
    free, ids, on_device = places > 0, ids.to(device), known.to(device)
    table = encoder.get_input_embeddings().weight[on_device].detach()
    units = F.normalize(table.float(), dim=-1)
    vectors = table[pad_sequence(first, batch_first=True).to(device)].float()
    vectors.grad = torch.zeros_like(vectors)
    adam = torch.optim.AdamW([vectors], settings.lr, weight_decay=settings.weight_decay)

    def full(rows: list[int]) -> Tensor:
        there, picks = ids[rows], nearest(vectors[rows], units)
        return there.scatter(1, places[rows], torch.where(free[rows], on_device[picks], there[:, :1]))

    updates, check_every = settings.updates, settings.check_every or settings.updates
    found, evaluations = _denoise.Candidates(n), 0
    with task.underway():
        for step in tqdm(range(updates), desc="p4d", delay=1, leave=False, disable=not settings.progress):
            for rows in task.batches(n):
                ts, noise = task.times(rows), task.noise(rows)
                there = full(rows)
                soft = encoder.get_input_embeddings()(there.gather(1, places[rows]))
                with torch.enable_grad():
                    embeds = task.encode(there, places[rows], soft.requires_grad_())
                    (slope,) = torch.autograd.grad(task.losses(rows, embeds, noise, ts).sum(), soft)
                vectors.grad[rows] = torch.where(free[rows][..., None], slope.float(), 0)
            adam.step()
            evaluations += 1
            if (step + 1) % check_every and step + 1 < updates:
                continue
            scores = task.score(lambda rows: task.encode(full(rows)))
            found.offer([text(row, picks) for row, picks in enumerate(nearest(vectors, units))], scores)
            evaluations += settings.score_times
    return Attempts(found.best, seeds, losses=found.losses, evaluations=evaluations)


def nearest(vectors: Tensor, units: Tensor) -> Tensor:
    """The index of the unit vector of units (V, d) with the largest dot product, for each of vectors (..., d)."""
    return (vectors @ units.T).argmax(-1)
