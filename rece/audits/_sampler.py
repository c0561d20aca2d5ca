"""What audits share: a pipeline that draws a batch in a way of its own, and a sampler step by step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from rece import texts
from rece.images import bfloat16, to_latents

APART = 1_000_003  # between the seeds of an attacker's noise and those that pictures are drawn with


def batches(n: int, size: int) -> Iterator[tuple[list[int], int]]:
    """Row numbers in batches of exactly `size`, the last one filled up by repeats, each with how many of its rows
    count."""
    for start in range(0, n, size):
        yield [min(row, n - 1) for row in range(start, start + size)], min(size, n - start)


@contextmanager
def autocast(pipe: DiffusionPipeline, generate: dict):
    """Without gradients, and in bfloat16 if `generate` says so."""
    device = pipe._execution_device
    enabled = bfloat16(device, generate.get("bf16", False))
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        yield


def noise(pipe: DiffusionPipeline, seeds: list[int]) -> Tensor:
    """Standard normal latents of the size the model was made for, (n, c, h, w) float32, one CPU generator each."""
    shape = (1, pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    found = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat(found).to(pipe.unet.device)


def decode(pipe: DiffusionPipeline, latents: Tensor) -> np.ndarray:
    """The pictures of latents: uint8 (n, h, w, 3). Raises ValueError if they are not finite."""
    vae = pipe.vae
    with torch.no_grad():
        found = [vae.decode(some.to(vae.dtype) / vae.config.scaling_factor).sample for some in latents.split(16)]
    pixels = (torch.cat(found).float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    if not np.isfinite(pixels).all():
        raise ValueError("the sampler came to values that are not finite: lower eta or guidance")
    return (pixels * 255).round().astype(np.uint8)


def scheduler(pipe: DiffusionPipeline, steps: int) -> DDIMScheduler:
    """DDIM with the pipeline's own noise schedule, set to so many steps, and so is the pipeline's own scheduler, which
    hooks may look at."""
    found = DDIMScheduler.from_config({"clip_sample": False, **pipe.scheduler.config})  # DDIM's own default is True
    found.set_timesteps(steps)
    pipe.scheduler.set_timesteps(steps)
    return found


def encoded(pipe: DiffusionPipeline, prompts: list[str]) -> Tensor:
    """What the model reads for prompts, (n, positions, d) in its own dtype."""
    return texts.encode(pipe, prompts).to(pipe.unet.device, pipe.unet.dtype)


def asking(
    pipe: DiffusionPipeline, prompts: list[str], guidance: float
) -> Callable[[list[int]], Callable[..., Tensor]]:
    """For rows of the prompts, what the model predicts with guidance: a function of latents, a time and a step."""
    read, empty = encoded(pipe, prompts), encoded(pipe, [""])

    def of(rows: list[int]) -> Callable[..., Tensor]:
        both = torch.cat([empty.expand(len(rows), -1, -1), read[rows]])

        def predict(z: Tensor, time: Tensor, step: int) -> Tensor:
            z = torch.cat([z, z]).to(pipe.unet.dtype)
            plain, asked = pipe.unet(z, time, encoder_hidden_states=both).sample.float().chunk(2)
            return plain + guidance * (asked - plain)

        return predict

    return of


def painted(
    pipe: DiffusionPipeline,
    seeds: list[int],
    generate: dict,
    predict: Callable[[list[int]], Callable[..., Tensor]],
    *,
    scale: float = 1.0,
    eta: float = 0.0,
    shown: np.ndarray | None = None,
    first: int = 0,
    anew: Tensor | None = None,
) -> np.ndarray:
    """Pictures that DDIM comes to, uint8 (n, h, w, 3): each from `scale` times the noise of its seed.

    predict: of some rows, what is predicted for their latents, a time and a step, which is counted from `first`. eta:
    how much noise each step adds. DDIM knows eta up to 1. Beyond it, the fresh noise is multiplied by eta and the rest
    of the step stays that of 1 (ours).
    shown: pictures to begin from, with the noise of step `first`, and to keep where `anew` is False: bool, of the
    latents' height and width.
    """
    found = []
    with autocast(pipe, generate):
        for rows, count in batches(len(seeds), generate["batch_size"]):
            own, turn, ddim = [seeds[row] for row in rows], predict(rows), scheduler(pipe, generate["steps"])
            random, plain = [torch.Generator().manual_seed(seed + APART) for seed in own], scale * noise(pipe, own)
            begun = None if shown is None else to_latents(pipe, shown[rows]).to(plain)
            times = ddim.timesteps[first:]
            z = plain if begun is None else ddim.add_noise(begun, plain, times[:1])
            for step, time in enumerate(times):
                fresh = torch.stack([torch.randn(z.shape[1:], generator=one) for one in random]).to(z) * max(eta, 1.0)
                z = ddim.step(turn(z, time, step), time, z, eta=min(eta, 1.0), variance_noise=fresh).prev_sample
                if anew is not None:
                    later = times[step + 1 : step + 2]
                    z = torch.where(anew, z, ddim.add_noise(begun, plain, later) if len(later) else begun)
            found.append(decode(pipe, z)[:count])
    return np.concatenate(found)
