"""Pruning under ESD's loss: a mask of weights is learnt, and no weight (after Yang, Cao and Xu, arXiv 2405.16534).

The paper publishes no code. Its text, as far as it was reached, does not name the layers, the relaxation or the
optimiser. These are our own choices. The weights of layers that read the prompt and of feed-forward layers are masked.
A mask is the sign of a number that is learnt, with the gradient of its sigmoid. Each number begins at 1. A penalty on
how much is masked holds it there. So this is P-ESD's idea, and not a measurement of P-ESD.
"""

from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import solver
from rece.edits import Weights
from rece.methods import _esd
from rece.methods._training import Pupil, Training

SETTINGS = Training(iterations=1000, lr=0.01)


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    eta: float = 1.0,
    penalty: float = 1.0,
    **training,
) -> Weights:
    """Learn which weights of attn2 and of feed-forward layers become zero. target and preserve are not used.

    penalty: of the mean share that is masked, as its sigmoid counts it. training: see `Training`; lr is that of the
    masks' numbers.
    """
    solver.positive(eta, "eta")
    solver.positive(penalty, "penalty", or_zero=True)
    pupil = Pupil(pipe, concept, replace(SETTINGS, **training))
    kept = pupil.learn("unet", lambda name: name.endswith(".weight") and (".attn2." in name or ".ff.net." in name))
    weights = {name: one.detach().clone() for name, one in kept.items()}
    for one in kept.values():
        one.data.fill_(1.0)  # from here on the parameters are the masks' numbers

    def masked(z, times, encoder_hidden_states):
        found = {name: weights[name] * mask(one) for name, one in kept.items()}
        given = {"encoder_hidden_states": encoder_hidden_states}
        return torch.func.functional_call(pupil.unet, found, (z, times), given)

    def loss(random: torch.Generator) -> Tensor:
        share = sum((-one).sigmoid().sum() for one in kept.values()) / sum(one.numel() for one in kept.values())
        return _esd.loss(pupil, masked, eta, random) + penalty * share

    pupil.train("pruning", loss, {"eta": eta, "penalty": penalty})
    indices = {
        f"unet.{name}": (one.detach() <= 0).flatten().nonzero().flatten().to("cpu", torch.int32)
        for name, one in kept.items()
    }
    return Weights(indices, pupil.provenance("pruning", eta=eta, penalty=penalty))


def mask(numbers: Tensor) -> Tensor:
    """1 where a number is positive, else 0, with the gradient of its sigmoid."""
    soft = numbers.sigmoid()
    return (numbers > 0).to(soft) + soft - soft.detach()
