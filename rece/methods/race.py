"""RACE: ESD that learns from embeddings disturbed by an attack on itself (Kim et al., ECCV 2024, arXiv 2405.16341).

Not reproduced: it begins with a finished ESD model and a new optimiser; here ESD-x runs first for `start` iterations,
and the same optimiser goes on. Without the optional penalty on weights.
"""

from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import mse_loss

from rece import families, solver
from rece.edits import Weights
from rece.methods import _esd
from rece.methods._training import Pupil

SETTINGS = _esd.SETTINGS


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    eta: float = 1.0,
    epsilon: float = 0.1,
    attack_steps: int = 10,
    start: int = 1000,
    **training,
) -> Weights:
    """`esd_x.erase` for `start` iterations, then `iterations` more that read c + delta in place of c.

    delta: begins uniform in [-epsilon, epsilon], then attack_steps steps of epsilon / 4 along the sign of the gradient
    make the model that learns predict the noise that the latents began as; after each step it is cut to
    [-epsilon, epsilon], and c + delta to the range of c's numbers. target and preserve are not used.
    training: see `Training`.
    """
    settings = replace(SETTINGS, **training)
    solver.positive(eta, "eta")
    solver.positive(epsilon, "epsilon")
    solver.whole(attack_steps=attack_steps)
    solver.whole(least=0, start=start)
    pupil = Pupil(pipe, concept, replace(settings, iterations=start + settings.iterations))
    pupil.learn("unet", lambda name: "attn2" in name)

    def disturb(c: Tensor, *seen) -> Tensor:
        return c if pupil.step < start else disturbed(pupil, c, *seen, epsilon=epsilon, steps=attack_steps)

    numbers = {"eta": eta, "epsilon": epsilon, "attack_steps": attack_steps, "start": start}
    pupil.train("race", lambda random: _esd.loss(pupil, pupil.unet, eta, random, disturb), numbers)
    return pupil.changes("race", iterations=settings.iterations, **numbers)


def disturbed(pupil: Pupil, c: Tensor, z: Tensor, time: Tensor, noise: Tensor, random, epsilon: float, steps: int):
    """c + delta, see `erase`: (n, positions, d) for c (1, positions, d), a row per latent of z."""
    low, high = c.min(), c.max()
    delta = ((2 * torch.rand(len(z), *c.shape[1:], generator=random) - 1) * epsilon).to(c)
    for _ in range(steps):
        read = (c + delta).requires_grad_()
        found = families.noise_in(pupil.scheduler, pupil.predict(pupil.unet, z, time, read), z, time)
        (slope,) = torch.autograd.grad(mse_loss(found, noise.float()), read)
        delta = (delta - epsilon / 4 * slope.sign()).clamp(-epsilon, epsilon)
        delta = ((c + delta).clamp(low, high) - c).detach()
    return c + delta
