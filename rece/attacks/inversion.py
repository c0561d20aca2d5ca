"""Concept inversion: a pseudo-word learnt through the erased model from the original's images (arXiv 2308.01508)."""

import re
from collections.abc import Callable
from random import Random

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from rece import layers
from rece.attacks import Attempts, _denoise
from rece.attacks._words import named, whole

ACCESS = "white"


def attack(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    original: DiffusionPipeline,
    concept: dict | list[dict],
    space: str = "word",
    tokens: int = 1,
    updates: int = 5000,
    images_per: int = 8,
    lr: float = 0.08,
    weight_decay: float = 0.01,
    check_every: int = 50,
    score_times: int = 4,
    steps: int = 25,
    guidance: float = 7.5,
    batch_size: int = 16,
    bf16: bool | str = False,
    draw: int = 0,
    progress: bool = True,
) -> Attempts:
    """Learn, per concept, what makes the victim denoise the original's images of it; read in place of its word.

    The attacker may train on images, so that this bounds from above what a prompt can reach of the concept. Each
    concept that the prompts name has `images_per` images (published: 25 and more), drawn by the original from these
    very prompts in turn, by other seeds. An update makes an AdamW step on the victim's denoising loss |eps -
    eps_victim(x_t, t, prompt)|^2 (for v-prediction the velocity's) in the mean over all images of the concept, t
    uniform and the noise fresh. All concepts are learnt side by side and do not influence one another. What is learnt
    depends on all prompts that name the concept, but not on their order.

    space: "word": `tokens` vectors, read by the victim's text encoder in place of the tokens of the concept's word, as
    published; at first each is the mean of the vocabulary. "rows" (ours): a (positions, d) matrix, added to the
    original's embedding of the prompt without that word, so that the other words still act; at first zero.
    Where a prompt names the word repeatedly, the first counts.
    updates, lr: published 5000 and 0.08 (5e-3 for each of the 16 images of an update). check_every, score_times: every
    so many updates, and before the first, what is learnt becomes a candidate; the one of the lowest loss, in the mean
    over the concept's images and `score_times` timesteps with fixed noise, is returned (ours; published: the last).
    `losses` holds this loss of all candidates in turn. steps, guidance: of the images. batch_size: images per pass;
    memory only. bf16: see `generate.bfloat16`. draw: another number makes other draws; all come from CPU generators
    made from `draw` and the concept's name. progress: show a bar if it takes more than a second.

    Returns embeds (n, positions, d) float32 on the CPU. evaluations counts what a concept's prompts share.
    The models' parameters are frozen meanwhile and get no gradients. The victim need share nothing but the text
    encoder and the VAE with the original.
    Raises ValueError naming the parameter, before anything is drawn.
    """
    counts = {"tokens": tokens, "updates": updates, "images_per": images_per, "check_every": check_every}
    counts |= {"score_times": score_times, "steps": steps, "batch_size": batch_size}
    _denoise.check(victim, prompts, seeds, counts=counts, rates={"lr": lr, "weight_decay": weight_decay})
    if space not in ("word", "rows"):
        raise ValueError(f"space must be 'word' or 'rows', not {space!r}")
    device = victim.device
    naming = [named(prompt, concept) for prompt in prompts]
    owners = [member["name"] for member, _ in naming]
    names = sorted(set(owners))
    cases = [(prompt, word) for prompt, (_, word) in zip(prompts, naming, strict=True)]
    lessons, lesson_seeds = [], []
    for name in names:
        random = Random(f"{draw}/{name}")
        own = sorted({case for case, owner in zip(cases, owners, strict=True) if owner == name})
        random.shuffle(own)
        lessons += [own[i % len(own)] for i in range(images_per)]
        pool = random.sample(range(2**32), images_per + len(seeds))
        lesson_seeds += [seed for seed in pool if seed not in seeds][:images_per]
    asked, taught = (_place(victim.tokenizer, some, tokens) if space == "word" else some for some in (cases, lessons))

    drawing = {"steps": steps, "guidance": guidance, "batch_size": batch_size, "bf16": bf16, "progress": progress}
    latents = _denoise.draw_latents(original, [prompt for prompt, _ in lessons], lesson_seeds, **drawing)
    passes = {"score_times": score_times, "batch_size": batch_size, "bf16": bf16, "draw": draw}
    task = _denoise.Denoising(victim, latents, lesson_seeds, **passes)

    def reader(some) -> Callable[[list[int], Tensor], Tensor]:
        """What turns what is learnt, one per row, into embeds."""
        if space == "rows":
            base = layers.encode(original, [re.sub(whole(word), "", prompt, count=1) for prompt, word in some])
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
    adam = torch.optim.AdamW([learnt], lr, weight_decay=weight_decay)
    everyone = list(range(len(lessons)))
    owner = torch.arange(len(names), device=device).repeat_interleave(images_per)
    slopes = learnt.new_zeros(len(lessons), *learnt.shape[1:])
    found, evaluations = _denoise.Candidates(names), 0
    with task.underway():
        for step in tqdm(range(updates + 1), desc="inversion", delay=1, leave=False, disable=not progress):
            if step % check_every == 0 or step == updates:
                scores = torch.tensor(task.score(everyone, lambda rows: read(rows, learnt[owner[rows]])))
                found.offer(list(learnt.clone()), scores.view(len(names), images_per).mean(1).tolist())
                evaluations += score_times * images_per
            if step == updates:
                break
            for rows in task.batches(everyone):
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
        parts = [answer(rows, best[rows]).float().cpu() for rows in task.batches(list(range(len(prompts))))]
    losses = [list(found.losses[learner]) for learner in learners]
    return Attempts(None, seeds, torch.cat(parts), losses, evaluations)


def _place(tokenizer, cases: list[tuple[str, str]], tokens: int) -> tuple[Tensor, Tensor]:
    """The ids of (prompt, word) with `tokens` end tokens in place of the word, padded, and where these are."""
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
