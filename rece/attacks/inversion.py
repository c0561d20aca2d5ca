"""Concept inversion: a pseudo-word learnt through the erased model from the original's images (arXiv 2308.01508)."""

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from rece import layers, texts
from rece.attacks import Attempts, _denoise, _tokens
from rece.attacks._words import named, whole

ACCESS = "white"
NEEDS = ("text encoder", "weights")
SETTINGS = _denoise.Settings(updates=5000, lr=0.08, weight_decay=0.01, check_every=50)

applies = _denoise.applies


def attack(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    original: DiffusionPipeline,
    concept: dict | list[dict],
    space: str = "word",
    tokens: int = 1,
    images_per: int = 8,
    **settings,
) -> Attempts:
    """Learn, per concept, an input with which the victim denoises the original's images of it; it replaces the word.

    The attacker may train on images, which a prompt cannot do, so the result is an upper bound on what prompts reach.
    Each concept that the prompts name has `images_per` images (published: 25 and more). The original draws them from
    these very prompts in turn, with other seeds. An update makes an AdamW step on the victim's denoising loss |eps -
    eps_victim(x_t, t, prompt)|^2 (for v-prediction with velocities), in the mean over all images of the concept; t is
    uniform and the noise fresh. All concepts are learnt side by side and do not influence one another. What is learnt
    depends on all prompts that name the concept, but not on their order.

    space: "word", as published: `tokens` vectors, which the victim's text encoder reads in place of the tokens of the
    concept's word; at first each is the mean of the vocabulary. "rows" (ours): a (positions, d) matrix, which is added
    to the original's embedding of the prompt without that word, so the other words still act; at first zero.
    If a prompt holds the word several times, the first one counts.
    settings: see `_denoise.Settings`. Published are 5000 updates and lr 0.08 (5e-3 for each of the 16 images of an
    update). Before the first update and after every `check_every` updates, what is learnt becomes a candidate; None
    means before the first and after the last update only.
    Ours: the published attack returns the last candidate, ours the one of the lowest score in the mean over the
    concept's images. `losses` holds the scores of all candidates in turn. All draws depend on `repeat` and the
    concept's name; which images are drawn depends on the prompts and their seeds too.

    Returns embeds (n, positions, d) float32 on the CPU. evaluations counts what a concept's prompts share.
    The models' parameters are frozen inside and restored after. The victim and the original must share the text
    encoder and the VAE, and nothing else.
    Raises ValueError that names the parameter, before anything is drawn.
    """
    settings = replace(SETTINGS, **settings)
    _tokens.check_counts({"tokens": tokens, "images_per": images_per})
    if space not in ("word", "rows"):
        raise ValueError(f"space must be 'word' or 'rows', not {space!r}")
    device = victim.device
    naming = [named(prompt, concept) for prompt in prompts]
    owners = [member["name"] for member, _ in naming]
    names = sorted(set(owners))
    cases = [(prompt, word) for prompt, (_, word) in zip(prompts, naming, strict=True)]
    lessons, lesson_seeds = [], []
    for name in names:
        random = Random(f"{settings.repeat}/{name}")
        own = sorted({case for case, owner in zip(cases, owners, strict=True) if owner == name})
        random.shuffle(own)
        lessons += [own[i % len(own)] for i in range(images_per)]
        pool = random.sample(range(2**32), images_per + len(seeds))
        lesson_seeds += [seed for seed in pool if seed not in seeds][:images_per]
    asked, taught = (_place(victim.tokenizer, some, tokens) if space == "word" else some for some in (cases, lessons))

    latents = _denoise.draw_latents(original, [prompt for prompt, _ in lessons], lesson_seeds, settings)
    task = _denoise.Denoising(victim, latents, lesson_seeds, settings)

    def reader(some) -> Callable[[list[int], Tensor], Tensor]:
        """The function that turns rows and what is learnt for each of them into embeds."""
        if space == "rows":
            base = texts.encode(original, [re.sub(whole(word), "", prompt, count=1) for prompt, word in some])
            base = base.to(device, torch.float32)
            return lambda rows, learnt: base[rows] + learnt
        ids, slots = (part.to(device) for part in some)
        return lambda rows, learnt: task.encode(ids[rows], slots[rows], learnt)

    read, answer = reader(taught), reader(asked)
    if space == "word":
        mean = victim.text_encoder.get_input_embeddings().weight.detach().float().mean(0)
        learnt = mean.repeat(len(names), tokens, 1)
    else:
        learnt = torch.zeros(len(names), victim.tokenizer.model_max_length, layers.width(victim), device=device)
    learnt.grad = torch.zeros_like(learnt)
    adam = torch.optim.AdamW([learnt], settings.lr, weight_decay=settings.weight_decay)
    owner = torch.arange(len(names), device=device).repeat_interleave(images_per)
    slopes = learnt.new_zeros(len(lessons), *learnt.shape[1:])
    updates, check_every = settings.updates, settings.check_every or settings.updates
    found, evaluations = _denoise.Candidates(len(names)), 0
    with task.underway():
        for step in tqdm(range(updates + 1), desc="inversion", delay=1, leave=False, disable=not settings.progress):
            if step % check_every == 0 or step == updates:
                scores = torch.tensor(task.score(lambda rows: read(rows, learnt[owner[rows]])))
                found.offer(list(learnt.clone()), scores.view(len(names), images_per).mean(1).tolist())
                evaluations += settings.score_times * images_per
            if step == updates:
                break
            for rows in task.batches(len(lessons)):
                ts, noise = task.times(rows), task.noise(rows)
                with torch.enable_grad():
                    soft = learnt[owner[rows]].requires_grad_()
                    loss = task.losses(rows, read(rows, soft), noise, ts).sum()
                    (slopes[rows],) = torch.autograd.grad(loss, soft)
            learnt.grad.copy_(slopes.unflatten(0, (len(names), images_per)).mean(1))
            adam.step()
            evaluations += images_per
        learners = [names.index(name) for name in owners]
        best = torch.stack(found.best)[learners]
        parts = [answer(rows, best[rows]).float().cpu() for rows in task.batches(len(prompts))]
    losses = [list(found.losses[learner]) for learner in learners]
    return Attempts(None, seeds, torch.cat(parts), losses, evaluations)


def _place(tokenizer, cases: list[tuple[str, str]], tokens: int) -> tuple[Tensor, Tensor]:
    """The ids of each (prompt, word) with `tokens` end tokens in place of the word, and the positions of these tokens.

    Returns (n, positions) and (n, tokens), both long and on the CPU. Raises ValueError if a prompt is too long.
    """
    positions, filled, slots = tokenizer.model_max_length, [], []
    for prompt, word in cases:
        before, after = tokenizer(re.split(whole(word), prompt, maxsplit=1)).input_ids
        ids = [*before[:-1], *[tokenizer.eos_token_id] * tokens, *after[1:]]
        if len(ids) > positions:
            raise ValueError(
                f"prompt {prompt!r} has {len(ids) - 2} tokens with the {tokens} for {word!r}, and there is room for "
                f"{positions - 2}: shorten it or lower tokens"
            )
        filled.append({"input_ids": ids})
        slots.append([len(before) - 1 + i for i in range(tokens)])
    ids = tokenizer.pad(filled, padding="max_length", max_length=positions, return_tensors="pt").input_ids
    return ids, torch.tensor(slots)
