"""TINA: noise from which the victim, asked nothing, draws a picture of the concept (CVPR 2026).

It uses no text. An edit that leaves what the empty prompt reads as it was has exactly the original's success: so it
tells text-side methods from those that change the model, and nothing about either kind among themselves.
"""

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import families, solver
from rece.audits._sampler import autocast, batches, decode, encoded, scheduler
from rece.images import generate as pictures
from rece.images import to_latents

HOLDS = "the weights, to read"


def audit(
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    generate: dict,
    updates: int = 25,
    lr: float = 1e-3,
) -> dict:
    """Invert the original's pictures of the prompts through the victim, and draw them again without a prompt.

    At every step of DDIM the earlier latents z_t are those for which C1 z_(t-1) + C2 e(z_t) = z_t; they begin at what
    the noise predicted for z_(t-1) gives, and AdamW takes `updates` steps of rate lr. Level: how many; 0 is plain DDIM
    inversion.
    """
    solver.whole(least=0, updates=updates)
    shown = pictures(original, prompts, seeds, **generate, progress=False)
    empty, found = encoded(victim, [""]), {}
    for level in dict.fromkeys((0, updates)):
        parts = []
        for rows, count in batches(len(prompts), generate["batch_size"]):
            latents = to_latents(original, shown[rows]).to(victim.unet.device)
            with autocast(victim, generate):
                z = inverted(victim, latents, empty, generate["steps"], level, lr)
                parts.append(decode(victim, again(victim, z, empty, generate["steps"]))[:count])
        found[str(level)] = np.concatenate(parts)
    return found


def inverted(pipe: DiffusionPipeline, z: Tensor, empty: Tensor, steps: int, updates: int, lr: float) -> Tensor:
    """The noise from which DDIM without a prompt comes to latents z, (n, c, h, w)."""
    ddim, z = scheduler(pipe, steps), z.float()
    shares = ddim.alphas_cumprod.to(z.device)
    for time in reversed(ddim.timesteps):
        a, before = shares[time], _before(ddim, shares, time)
        c1, c2 = (a / before).sqrt(), (1 - a).sqrt() - (a * (1 - before) / before).sqrt()
        known, guess = z, c1 * z + c2 * _noise(pipe, ddim, z, time, empty)
        if updates:
            guess = guess.detach().requires_grad_()
            adam = torch.optim.AdamW([guess], lr=lr)
            for _ in range(updates):
                with torch.enable_grad():
                    away = c1 * known + c2 * _noise(pipe, ddim, guess, time, empty) - guess
                    (guess.grad,) = torch.autograd.grad(away.square().mean((1, 2, 3)).sum(), guess)
                adam.step()
        z = guess.detach()
    return z


def again(pipe: DiffusionPipeline, z: Tensor, empty: Tensor, steps: int) -> Tensor:
    """What DDIM without a prompt comes to from noise z."""
    ddim = scheduler(pipe, steps)
    shares = ddim.alphas_cumprod.to(z.device)
    for time in ddim.timesteps:
        a, before, e = shares[time], _before(ddim, shares, time), _noise(pipe, ddim, z, time, empty)
        z = before.sqrt() * (z - (1 - a).sqrt() * e) / a.sqrt() + (1 - before).sqrt() * e
    return z


def _before(ddim, shares: Tensor, time: Tensor) -> Tensor:
    earlier = time - ddim.config.num_train_timesteps // ddim.num_inference_steps
    return shares[earlier] if earlier >= 0 else ddim.final_alpha_cumprod.to(shares)


def _noise(pipe: DiffusionPipeline, ddim, z: Tensor, time: Tensor, empty: Tensor) -> Tensor:
    found = pipe.unet(z.to(pipe.unet.dtype), time, encoder_hidden_states=empty.expand(len(z), -1, -1)).sample.float()
    return families.noise_in(ddim, found, z, time)
