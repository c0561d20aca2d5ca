"""Relearning: how few steps of training on pictures of the concept bring it back."""

from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline
from torch.nn.functional import mse_loss

from rece import layers, texts
from rece.images import generate


def relearn(
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    steps: list[int],
    *,
    lr: float,
    batch_size: int,
    generate_as: dict,
    seed: int = 0,
) -> Iterator[int]:
    """Train the victim's layers that read the prompt, in place, on the original's pictures of the prompts.

    Yields each number in `steps` (rising) when so many steps are done: 0 before the first one. Adam, the loss that the
    model was trained with (noise or velocity), a random time, noise and picture per element of a batch.
    generate_as: keywords of `generate` for the pictures. Source: the protocol of Meta-Unlearning (ICCV 2025), K and V
    alone.
    """
    random = torch.Generator().manual_seed(seed)
    pictures = torch.from_numpy(generate(original, prompts, seeds, **generate_as)).permute(0, 3, 1, 2) / 127.5 - 1
    vae, unet, scheduler = original.vae, victim.unet, original.scheduler
    with torch.no_grad():
        latents = vae.encode(pictures.to(vae.device, vae.dtype)).latent_dist.mean * vae.config.scaling_factor
        embeds = texts.encode(original, prompts).to(unet.dtype)
    learnt = [layer.weight for layer in layers.prompt_layers(victim).values()]
    unet.requires_grad_(False)
    for weight in learnt:
        weight.requires_grad_(True)
    adam, done = torch.optim.Adam(learnt, lr=lr), 0
    velocity = scheduler.config.prediction_type == "v_prediction"
    for until in steps:
        for _ in range(until - done):
            rows = torch.randint(len(latents), (batch_size,), generator=random)
            times = torch.randint(scheduler.config.num_train_timesteps, (batch_size,), generator=random)
            noise = torch.randn(latents[rows].shape, generator=random).to(latents)
            noised = scheduler.add_noise(latents[rows], noise, times)
            aim = scheduler.get_velocity(latents[rows], noise, times) if velocity else noise
            mse_loss(unet(noised, times.to(unet.device), embeds[rows]).sample, aim).backward()
            adam.step()
            adam.zero_grad()
        done = until
        yield until
