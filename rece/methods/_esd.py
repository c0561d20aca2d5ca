"""What the methods around ESD share: its loss, and the training of some of a UNet's parameters by it."""

from collections.abc import Callable
from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import mse_loss

from rece import solver
from rece.edits import Weights
from rece.methods._training import Pupil, Training

SETTINGS = Training(iterations=1000, lr=1e-5)


def trained(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    method: str,
    chosen: Callable[[str], bool],
    eta: float,
    training: dict,
) -> Weights:
    """The edit that ESD learns with the UNet's parameters that are chosen by name."""
    solver.positive(eta, "eta")
    pupil = Pupil(pipe, concept, replace(SETTINGS, **training))
    pupil.learn("unet", chosen)
    pupil.train(method, lambda random: loss(pupil, pupil.unet, eta, random), {"eta": eta})
    return pupil.changes(method, eta=eta)


def loss(
    pupil: Pupil, unet: Callable, eta: float, random: torch.Generator, disturb: Callable[..., Tensor] | None = None
) -> Tensor:
    """ESD's loss of a random concept and random latents, for a UNet that learns.

    disturb(c, z, time, noise, random): what the UNet reads instead of the concept's embedding c. noise: the noise that
    the sampler started from.
    """
    c = pupil.one_of(random)
    z, time, noise = pupil.sampled(unet, c, random)
    plain, asked = pupil.original(z, time, pupil.empty, c)
    read = c if disturb is None else disturb(c, z, time, noise, random)
    return mse_loss(pupil.predict(unet, z, time, read), plain - eta * (asked - plain))
