"""Adapter: a LoRA that was trained with the original, on its pictures of the concept, is put on the victim (ours).

A model that never saw the concept, with the same adapter, shows what the adapter brings by itself.
"""

import copy
from collections.abc import Iterator
from itertools import count

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.nn.functional import mse_loss

from rece import solver
from rece.audits._sampler import APART, encoded
from rece.images import generate as pictures
from rece.images import to_latents

HOLDS = "the weights, to change"


def audit(
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    generate: dict,
    lessons: int = 10,
    rank: int = 4,
    updates: int = 100,
    lr: float = 1e-4,
    size: int = 4,
) -> dict:
    """Level: how many updates the adapter was trained for: 0, which is the victim itself, and `updates`.

    lessons: how many of the original's pictures it is trained on, of the prompts in turn and with other seeds. rank:
    of the adapter, on the layers attn2. lr: of Adam. size: pictures per update.
    """
    solver.whole(lessons=lessons, rank=rank, updates=updates, size=size)
    asked = [prompts[n % len(prompts)] for n in range(lessons)]
    later = [seeds[n % len(seeds)] + APART + n for n in range(lessons)]
    shown = pictures(original, asked, later, **generate, progress=False)
    taught, edited = apart(original), apart(victim)
    for pipe in (taught, edited):
        add(pipe.unet, rank)
    learnt = [one for name, one in taught.unet.named_parameters() if "lora_" in name]
    for done in learn(taught, learnt, to_latents(original, shown), encoded(original, asked), lr, size):
        if done == updates:
            break
    set_peft_model_state_dict(edited.unet, get_peft_model_state_dict(taught.unet))
    return {
        str(level): pictures(pipe, prompts, seeds, **generate, progress=False)
        for level, pipe in {0: victim, updates: edited}.items()
    }


def apart(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline with a copy of its UNet; everything else is shared."""
    found = copy.copy(pipe)
    found.register_modules(unet=copy.deepcopy(pipe.unet))
    return found


def add(unet: torch.nn.Module, rank: int) -> None:
    """Put a LoRA on a UNet's layers attn2, which does nothing yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=r".*attn2\.(to_q|to_k|to_v|to_out\.0)"))


def learn(
    pipe: DiffusionPipeline, learnt: list[Tensor], latents: Tensor, embeds: Tensor, lr: float, size: int, seed: int = 0
) -> Iterator[int]:
    """Train some parameters of the pipeline's UNet, in place, to denoise latents; yields how many updates are done.

    latents: (n, c, h, w). embeds: what the model reads for each, (n, positions, d). Adam at rate lr, the loss that the
    model was trained with (noise or velocity); `size` random latents with a random time and noise each per update.
    """
    scheduler, random = pipe.scheduler, torch.Generator().manual_seed(seed)
    velocity = scheduler.config.prediction_type == "v_prediction"
    pipe.unet.requires_grad_(False)
    for one in learnt:
        one.requires_grad_(True)
    adam = torch.optim.Adam(learnt, lr=lr)
    for done in count(1):
        rows = torch.randint(len(latents), (size,), generator=random)
        times = torch.randint(scheduler.config.num_train_timesteps, (size,), generator=random).to(latents.device)
        noise = torch.randn(latents[rows].shape, generator=random).to(latents)
        z = scheduler.add_noise(latents[rows], noise, times)
        aim = scheduler.get_velocity(latents[rows], noise, times) if velocity else noise
        with torch.enable_grad():
            mse_loss(pipe.unet(z, times, encoder_hidden_states=embeds[rows]).sample, aim).backward()
        adam.step()
        adam.zero_grad()
        yield done
