"""AdvUnlearn: the text encoder learns ESD's loss of prompts that an attack has disturbed (Zhang et al., NeurIPS 2024,
arXiv 2405.15234).

The attack takes thirty steps by default, as published. The differences: free tokens begin as the word "the", and not
as a random word. The attack takes plain signed steps; its code gives the signs to Adam. It begins with the first
iteration; the paper first trains 200 without it. Latents are drawn by the original, one set for the attack, the loss
and what is retained. Retained are batch_size texts of `preserve`; the paper takes five of COCO or ImageNet.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import mse_loss

from rece import solver, texts
from rece.edits import Weights
from rece.methods import _tokens
from rece.methods._training import Pupil, Training

SETTINGS = Training(iterations=1000, lr=1e-5)


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    eta: float = 1.0,
    retain: float = 0.3,
    attack_steps: int = 30,
    attack_lr: float = 1e-3,
    tokens: int = 1,
    **training,
) -> Weights:
    """Train the text encoder so that the model answers a disturbed prompt as ESD wants, and `preserve` as before.

    tokens: free tokens before the concept, at first the word "the". attack_steps signed steps of attack_lr seek the
    ones with which the model predicts what the original predicts for the concept. retain: weight of the loss on
    preserved texts. eta: of ESD. target is not used. training: see `Training`.
    """
    pupil, kept = Pupil(pipe, concept, replace(SETTINGS, **training)), texts.listed(preserve or [], "preserve")
    for name, value in {"eta": eta, "attack_lr": attack_lr, "retain": retain}.items():
        solver.positive(value, name, or_zero=name == "retain")
    solver.whole(attack_steps=attack_steps, tokens=tokens)
    pupil.learn("text_encoder", lambda name: True)
    encoder, lead = pupil.text_encoder, " ".join(["the"] * tokens)
    ids, known = _tokens.ids(pipe, [f"{lead} {name}" for name in pupil.concepts]), _tokens.ids(pipe, kept or [""])
    slots = torch.arange(1, tokens + 1, device=pupil.device)[None]
    with torch.no_grad():
        first = encoder.get_input_embeddings()(ids[:1, 1 : tokens + 1]).float()
    held = pupil.encode(kept) if kept else None

    def loss(random: torch.Generator) -> Tensor:
        which = int(torch.randint(len(ids), (), generator=random))
        c = pupil.named[which : which + 1]
        z, time, _ = pupil.sampled(pupil.unet, c, random)
        plain, asked = pupil.original(z, time, pupil.empty, c)

        def answer(soft: Tensor) -> Tensor:
            with texts.replaced(encoder, slots, soft):
                read = encoder(ids[which : which + 1])[0]
            return pupil.predict(pupil.unet, z, time, read.to(z.dtype))

        soft = disturbed(answer, first, asked, attack_steps, attack_lr)
        total = mse_loss(answer(soft), plain - eta * (asked - plain))
        if kept:
            some = torch.randint(len(kept), (len(z),), generator=random)
            (before,) = pupil.original(z, time, held[some])
            now = pupil.predict(pupil.unet, z, time, encoder(known[some])[0].to(z.dtype))
            total = total + retain * mse_loss(now, before)
        return total

    numbers = {"eta": eta, "retain": retain, "attack_steps": attack_steps, "attack_lr": attack_lr}
    numbers |= {"tokens": tokens, "preserve": preserve}
    pupil.train("adv_unlearn", loss, numbers)
    return pupil.changes("adv_unlearn", **numbers)


def disturbed(answer: Callable[[Tensor], Tensor], soft: Tensor, wanted: Tensor, steps: int, lr: float) -> Tensor:
    """Free tokens (1, tokens, d) after signed steps that bring the answer to them nearer to what is wanted."""
    for _ in range(steps):
        soft = soft.detach().requires_grad_()
        (slope,) = torch.autograd.grad(mse_loss(answer(soft), wanted), soft)
        soft = soft - lr * slope.sign()
    return soft.detach()
