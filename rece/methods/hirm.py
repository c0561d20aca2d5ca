"""HiRM: the first layer of the text encoder learns to misdirect what its last attention makes of the concept's name
(ICLR 2026, arXiv 2602.19631).

Not reproduced: super-concepts, which its code names by hand; with `toward`="target" the target stands in for one. The
paper scales the random direction by 500, its code by 5,000.
"""

from dataclasses import replace
from functools import partial

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import mse_loss

from rece import solver, texts
from rece.edits import Weights
from rece.methods._tokens import ids
from rece.methods._training import Pupil, Training

SETTINGS = Training(iterations=30, lr=1e-4)


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    toward: str = "random",
    scale: float = 500.0,
    **training,
) -> Weights:
    """Train the attention and the MLP of the encoder's first layer, so that the last layer's self-attention answers
    each concept's name with `scale` times a random direction (toward="random"), or as it answered its target.

    All concepts at once, every position. preserve is not used. training: see `Training`; the
    sampler's numbers are not used.
    """
    pupil = Pupil(pipe, concept, replace(SETTINGS, **training))
    solver.positive(scale, "scale")
    if toward not in ("random", "target"):
        raise ValueError(f"toward must be 'random' or 'target', not {toward!r}")
    targets = texts.targets_of(target, pupil.concepts)
    with torch.no_grad():
        wanted = misdirected(pipe, pipe.text_encoder, targets)
    if toward == "random":
        random = torch.Generator().manual_seed(pupil.settings.seed)
        away = torch.nn.functional.normalize(torch.randn(wanted.shape[-1], generator=random), dim=0)
        wanted = (scale * away).to(wanted).expand_as(wanted)
    pupil.learn("text_encoder", lambda name: ".layers.0." in name and ("self_attn" in name or ".mlp." in name))

    def loss(random: torch.Generator) -> Tensor:
        return mse_loss(misdirected(pipe, pupil.text_encoder, pupil.concepts), wanted)

    numbers = {"target": targets, "toward": toward, "scale": scale}
    pupil.train("hirm", loss, numbers, partial(torch.optim.AdamW, betas=(0.9, 0.98), weight_decay=1e-8))
    return pupil.changes("hirm", **numbers)


def misdirected(pipe: DiffusionPipeline, encoder: torch.nn.Module, prompts: list[str]) -> Tensor:
    """What the self-attention of an encoder's last layer answers to prompts, (n, positions, d)."""
    found = []
    last = next(module for name, module in reversed(list(encoder.named_modules())) if name.endswith("self_attn"))
    with last.out_proj.register_forward_hook(lambda module, args, output: found.append(output)):
        encoder(ids(pipe, prompts))
    return found[0]
