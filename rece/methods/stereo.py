"""STEREO: pseudo-words that bring the concept back are searched in turn, then all are erased at once (CVPR 2025).

arXiv 2408.16807. Not reproduced: anchor prompts that a language model wrote; here `preserve`. Predictions with
negative guidance are not normalised. Pictures are the original's own. Both trainings of the UNet use Adam; the
published ones use AdamW. Words count as their mean; the paper sums them. The last layers learn too, unlike those of
ESD-u.
"""

from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import mse_loss

from rece import solver, texts
from rece.edits import Weights
from rece.methods._tokens import TEMPLATES, check_templates, ids, last_in
from rece.methods._training import Pupil, Training

SETTINGS = Training(iterations=200, lr=2e-5)


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    rounds: int = 4,
    search: int = 200,
    search_lr: float = 5e-6,
    inversion: int = 3000,
    inversion_lr: float = 5e-3,
    pictures: int = 25,
    strength: float = 2.0,
    templates: tuple[str, ...] = TEMPLATES,
    **training,
) -> Weights:
    """Train all of the UNet but its layers attn2 and time_embed, from the original, against words found before.

    Each of so many rounds first goes on to train a model away from all words so far, the concept's own first, for
    `search` iterations at rate search_lr. Then it learns, for `inversion` steps of a batch, a pseudo-word with which
    that model denoises the original's `pictures`. At last the original is trained to predict, for one of the words,
    e_u + strength (e_a - e_u) - strength mean_w (e_w - e_u): a is one text of `preserve`, w runs over all words.
    target is not used. training: see `Training`; checkpoints are of the last part alone.
    """
    settings = replace(SETTINGS, **training)
    solver.whole(rounds=rounds, search=search, inversion=inversion, pictures=pictures)
    for name, value in {"search_lr": search_lr, "inversion_lr": inversion_lr, "strength": strength}.items():
        solver.positive(value, name)
    kept = texts.listed(preserve or [], "preserve")
    check_templates(templates)
    hunter = Pupil(pipe, concept, replace(settings, iterations=search, lr=search_lr, checkpoint=None))
    found = [hunter.encode([template.format(name) for template in templates]) for name in hunter.concepts]
    drawn = [hunter.pictures([t.format(name) for t in templates], pictures) for name in hunter.concepts]
    hunter.learn("unet", _chosen)
    for turn in range(rounds):
        words = list(found)
        hunter.train("stereo: search", lambda random, words=words: _loss(hunter, words, None, strength, random), {})
        for n, name in enumerate(hunter.concepts):
            found.append(inverted(hunter, name, drawn[n], templates, inversion, inversion_lr, settings.seed + turn))
    pupil = Pupil(pipe, concept, settings)
    pupil.learn("unet", _chosen)
    held = pupil.encode(kept) if kept else None
    numbers = {"rounds": rounds, "search": search, "search_lr": search_lr, "inversion": inversion}
    numbers |= {"inversion_lr": inversion_lr, "pictures": pictures, "strength": strength}
    numbers |= {"preserve": preserve, "templates": list(templates)}
    pupil.train("stereo", lambda random: _loss(pupil, found, held, strength, random), numbers)
    pupil.evaluations += hunter.evaluations
    return pupil.changes("stereo", **numbers)


def _chosen(name: str) -> bool:
    return "attn2" not in name and "time_embed" not in name


def _loss(pupil: Pupil, words: list[Tensor], held: Tensor | None, strength: float, random: torch.Generator) -> Tensor:
    """The loss of `erase` for one word in one template; words: (templates, positions, d) each; held: texts to keep."""
    which = int(torch.randint(len(words), (), generator=random))
    row = int(torch.randint(len(words[0]), (), generator=random))
    read = words[which][row : row + 1]
    z, time, _ = pupil.sampled(pupil.unet, read, random)
    anchor = pupil.empty if held is None else held[torch.randint(len(held), (1,), generator=random)]
    plain, kept, *asked = pupil.original(z, time, pupil.empty, anchor, *(word[row : row + 1] for word in words))
    away = sum(one - plain for one in asked) / len(asked)
    return mse_loss(pupil.predict(pupil.unet, z, time, read), plain + strength * (kept - plain) - strength * away)


def inverted(
    pupil: Pupil, concept: str, drawn: Tensor, templates: tuple[str, ...], steps: int, lr: float, seed: int
) -> Tensor:
    """What templates with a pseudo-word read as, with which the pupil's UNet denoises pictures: (templates, positions,
    d). At first it is the last token of the concept; the tokens before it stay."""
    pipe, encoder = pupil.pipe, pupil.pipe.text_encoder
    prompts = [template.format(concept) for template in templates]
    tokens = ids(pipe, prompts)
    at = [last_in(pipe, template, concept) for template in templates]
    slots = torch.tensor(at, device=pupil.device)[:, None]
    soft = encoder.get_input_embeddings().weight[tokens[0, at[0]]].detach().float().clone().requires_grad_()
    adam, random = torch.optim.AdamW([soft], lr=lr), torch.Generator().manual_seed(seed)

    def read(rows: Tensor) -> Tensor:
        with texts.replaced(encoder, slots[rows], soft.expand(len(rows), 1, -1)):
            return encoder(tokens[rows])[0].to(pupil.unet.dtype)

    with torch.enable_grad():
        for _ in range(steps):
            n = pupil.settings.batch_size
            rows = torch.randint(len(tokens), (n,), generator=random)
            z, times, wanted = pupil.noised(drawn[torch.randint(len(drawn), (n,), generator=random)], random)
            (soft.grad,) = torch.autograd.grad(mse_loss(pupil.predict(pupil.unet, z, times, read(rows)), wanted), soft)
            adam.step()
    with torch.no_grad():
        return read(torch.arange(len(tokens)))
