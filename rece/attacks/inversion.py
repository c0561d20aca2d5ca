"""Concept inversion: a pseudo-word learnt through the erased model from the original's images (arXiv 2308.01508)."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import torch
from torch import Tensor

from rece import layers, solver, texts
from rece.attacks import Attempts, _denoise, _tokens
from rece.attacks._words import named, whole

ACCESS = "white"
NEEDS = ("text encoder", "weights")
SETTINGS = _denoise.Settings(updates=5000, lr=0.08, weight_decay=0.01, check_every=50)
applies = _denoise.applies


def attack(
    victim, prompts, seeds, *, original, concept, space: str = "word", tokens: int = 1, images_per: int = 8, **settings
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
    Ours: the published attack returns the last candidate. The published vector begins at a word such as 'art', and an
    update reads 16 images; ours begins at the mean of the vocabulary, and an update reads all images. The published
    loss against SLD is of the guided prediction. Ours is always without guidance, so a method that acts by guidance is
    not seen. A score is the mean over the concept's images. All draws depend on `repeat` and the concept's name; which
    images are drawn depends on the prompts and their seeds too.

    Returns embeds (n, positions, d) float32 on the CPU. evaluations counts what a concept's prompts share.
    The victim and the original must share the tokenizer and the VAE.
    """
    settings = replace(SETTINGS, **settings)
    solver.whole(tokens=tokens, images_per=images_per)
    if space not in ("word", "rows"):
        raise ValueError(f"space must be 'word' or 'rows', not {space!r}")
    cases = [(prompt, *named(prompt, concept)) for prompt in prompts]
    names = sorted({member["name"] for _, member, _ in cases})
    lessons, lesson_seeds = [], []
    for name in names:
        random = Random(f"{settings.repeat}/{name}")
        own = sorted({(prompt, word) for prompt, member, word in cases if member["name"] == name})
        random.shuffle(own)
        lessons += [own[i % len(own)] for i in range(images_per)]
        pool = random.sample(range(2**32), images_per + len(seeds))
        lesson_seeds += [seed for seed in pool if seed not in seeds][:images_per]

    def reader(asked: list[tuple[str, str]]) -> Callable[[list[int], Tensor], Tensor]:
        """The function that turns rows of (prompt, word), and what is learnt for each of them, into embeds."""
        parts = [re.split(whole(word), prompt, maxsplit=1) for prompt, word in asked]
        if space == "rows":
            base = texts.encode(original, ["".join(some) for some in parts]).to(victim.device, torch.float32)
            return lambda rows, learnt: base[rows] + learnt
        blanks = _tokens.Blanks(victim, parts, tokens, "lower tokens", words=([], torch.tensor([])))
        return lambda rows, learnt: task.encode(blanks.empty[rows], blanks.slots[rows], learnt)

    answer, read = reader([(prompt, word) for prompt, _, word in cases]), reader(lessons)
    task = _denoise.Denoising(victim, original, [prompt for prompt, _ in lessons], lesson_seeds, settings)
    if space == "word":
        mean = victim.text_encoder.get_input_embeddings().weight.detach().float().mean(0)
        learnt = mean.repeat(len(names), tokens, 1)
    else:
        learnt = torch.zeros(len(names), victim.tokenizer.model_max_length, layers.width(victim), device=victim.device)
    learnt.grad = torch.zeros_like(learnt)
    adam = torch.optim.AdamW([learnt], settings.lr, weight_decay=settings.weight_decay)
    owner = torch.arange(len(names), device=victim.device).repeat_interleave(images_per)
    slopes = torch.zeros_like(learnt[owner])
    with task.underway():
        task.offer(list(learnt.clone()), lambda rows: read(rows, learnt[owner[rows]]))
        for _, due in task.updates("inversion"):
            for rows in task.batches(len(lessons)):
                slopes[rows] = task.slope(task.noised(rows), learnt[owner[rows]], partial(read, rows))
            learnt.grad.copy_(slopes.unflatten(0, (len(names), images_per)).mean(1))
            adam.step()
            if due:
                task.offer(list(learnt.clone()), lambda rows: read(rows, learnt[owner[rows]]))
        learners = [names.index(member["name"]) for _, member, _ in cases]
        best = torch.stack(task.best)[learners]
        embeds = torch.cat([answer(rows, best[rows]).float().cpu() for rows in task.batches(len(prompts))])
    return Attempts(None, seeds, embeds, [list(task.losses[learner]) for learner in learners], task.evaluations)
