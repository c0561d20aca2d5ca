"""Relearning: how few steps of training on pictures of the concept bring it back."""

import copy
from collections.abc import Iterator

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch.nn.functional import mse_loss

from rece import layers, texts
from rece.emoji.world import World
from rece.images import generate as pictures
from rece.study import experiment, plan
from rece.study import fair as study
from rece.study.parallel import cells


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
    images = torch.from_numpy(pictures(original, prompts, seeds, **generate_as)).permute(0, 3, 1, 2) / 127.5 - 1
    vae, unet, scheduler = original.vae, victim.unet, original.scheduler
    with torch.no_grad():
        latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mean * vae.config.scaling_factor
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


def curves(
    pipe, control, judge, world: World, groups: dict, chosen: dict, training: dict, fair, generate
) -> pd.DataFrame:
    """Success on new prompts as every method's model, and the control, is trained on pictures of what was erased.

    groups: single objects that the control never saw. chosen: see `fair.choose`; names are preserved. training: the
    numbers pictures (to train on), n (prompts asked), steps, lr and batch_size.
    Columns: group, method, steps, case, sure.
    """

    def one(job) -> pd.DataFrame:
        name, group, method = job
        if method == plan.CONTROL:
            model = copy.copy(control)
            model.register_modules(unet=copy.deepcopy(control.unet))
        else:
            numbers = chosen[method, "names", group["size"]]
            model = experiment.victim(pipe, study.eraser(pipe, world, group, method, "names", numbers))
        lessons = plan.cases(world, group, training["pictures"], fair["seed"] + 10_000)
        asked = plan.cases(world, group, training["n"], fair["seed"] + 20_000)
        how = {
            "lr": training["lr"],
            "batch_size": training["batch_size"],
            "generate_as": generate | {"progress": False},
        }
        rows = []
        for done in relearn(model, pipe, list(lessons.prompt), list(map(int, lessons.seed)), training["steps"], **how):
            with torch.no_grad():
                images = pictures(model, list(asked.prompt), list(map(int, asked.seed)), **generate, progress=False)
            answers = judge.answers(images, asked)
            sure = (answers.wanted & (answers.probability >= fair["threshold"])).astype(int)
            rows.append(
                pd.DataFrame({"group": name, "method": method, "steps": done, "case": asked.index, "sure": sure})
            )
        return pd.concat(rows)

    methods = [*dict.fromkeys(method for method, _, _ in chosen), plan.CONTROL]
    jobs = [(name, group, method) for name, group in groups.items() for method in methods]
    return pd.concat(cells(one, jobs, "relearning"), ignore_index=True)
