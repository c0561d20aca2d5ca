"""Relearning: how few steps of training on pictures of the concept bring it back."""

from collections.abc import Iterator

import pandas as pd
import torch
from diffusers import DiffusionPipeline

from rece import layers
from rece.audits import adapter
from rece.audits._sampler import encoded
from rece.emoji.world import World
from rece.images import generate as pictures
from rece.images import to_latents
from rece.study import fair, plan
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
    generate: dict,
    learn: str = "readers",
    seed: int = 0,
) -> Iterator[int]:
    """Train the victim's UNet, in place, on the original's pictures of the prompts.

    Yields each number in `steps` (rising) when so many steps are done: 0 before the first one. Adam, the loss that the
    model was trained with (noise or velocity), a random time, noise and picture per element of a batch.
    generate: keywords of `generate` for the pictures. learn: what is trained: "readers", the layers that read the
    prompt; "unet", all of it; "lora", a LoRA of rank 4 on cross-attention, which the victim keeps.
    Source: the protocol of Meta-Unlearning (ICCV 2025).
    """
    done = 0
    if learn not in ("readers", "unet", "lora"):
        raise ValueError(f"learn must be 'readers', 'unet' or 'lora', not {learn!r}")
    images, unet = pictures(original, prompts, seeds, **generate), victim.unet
    if learn == "readers":
        learnt = [layer.weight for layer in layers.prompt_layers(victim).values()]
    else:
        if learn == "lora":
            adapter.add(unet, rank=4)
        learnt = [one for name, one in unet.named_parameters() if learn == "unet" or "lora_" in name]
    latents, read = to_latents(victim, images), encoded(victim, prompts)
    training = adapter.learn(victim, learnt, latents, read, lr, batch_size, seed)
    for until in steps:
        while done < until:
            done = next(training)
        yield until


def curves(
    pipe, control, judge, world: World, groups: dict, chosen: dict, training: dict, plan_of, generate
) -> pd.DataFrame:
    """Success on the same prompts with new seeds, as every method's model and the control are trained on pictures of
    what was erased.

    groups: single objects that the control never saw. chosen: see `fair.choose`; names are preserved. training: the
    numbers pictures (to train on), n (prompts asked), steps, lr and batch_size.
    Columns: group, method, steps, case, sure.
    """

    def one(job) -> pd.DataFrame:
        name, group, method = job
        if method == plan.CONTROL:
            model = adapter.apart(control)
        else:
            numbers = chosen[method, "names", group["size"]]
            model = fair.eraser(pipe, world, group, method, "names", numbers).copy_of(pipe)
        lessons = plan.cases(world, group, training["pictures"], plan_of["seed"] + 10_000)
        asked = plan.cases(world, group, training["n"], plan_of["seed"] + 20_000)
        how = {name: training[name] for name in ("lr", "batch_size")} | {"generate": generate | {"progress": False}}
        rows = []
        for done in relearn(model, pipe, list(lessons.prompt), list(map(int, lessons.seed)), training["steps"], **how):
            with torch.no_grad():
                images = pictures(model, list(asked.prompt), list(map(int, asked.seed)), **generate, progress=False)
            answers = judge.answers(images, asked)
            sure = plan.hits(judge, answers, plan_of["threshold"]).astype(int)
            rows.append(
                pd.DataFrame({"group": name, "method": method, "steps": done, "case": asked.index, "sure": sure})
            )
        return pd.concat(rows)

    methods = [*dict.fromkeys(method for method, _, _ in chosen), plan.CONTROL]
    jobs = [(name, group, method) for name, group in groups.items() for method in methods]
    return pd.concat(cells(one, jobs, "relearning"), ignore_index=True)
