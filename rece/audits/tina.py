"""TINA: noise from which the victim, asked nothing, draws a picture of the concept (CVPR 2026, arXiv 2603.17828).

It uses no text. An edit that leaves what the empty prompt reads as it was has exactly the original's success. So it
cannot rank text-side edits. On the embedded model it succeeds on every model, also on one that never saw the concept:
any picture has a noise.
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

    The inversion goes from the picture to noise, one step of DDIM at a time. With e the noise that the victim predicts
    for "", it seeks the noisier latents z_t with z_t = C1 z_(t-1) + C2 e(z_t). It begins at C1 z_(t-1) +
    C2 e(z_(t-1)), and AdamW takes `updates` steps of rate lr on the squared difference. Level: `updates`; 0 is plain
    DDIM inversion.
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
        earlier = time - ddim.config.num_train_timesteps // steps
        a, before = shares[time], shares[earlier] if earlier >= 0 else ddim.final_alpha_cumprod.to(shares)
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
    for time in ddim.timesteps:
        z = ddim.step(_predicted(pipe, z, time, empty), time, z).prev_sample
    return z


def _noise(pipe: DiffusionPipeline, ddim, z: Tensor, time: Tensor, empty: Tensor) -> Tensor:
    return families.noise_in(ddim, _predicted(pipe, z, time, empty), z, time)


def _predicted(pipe: DiffusionPipeline, z: Tensor, time: Tensor, empty: Tensor) -> Tensor:
    return pipe.unet(z.to(pipe.unet.dtype), time, encoder_hidden_states=empty.expand(len(z), -1, -1)).sample.float()
