"""Concept Ablation: the concept's prompt learns to be answered as its anchor's (Kumari et al., ICCV 2023, arXiv
2303.13516).

Its model-based form. Not reproduced: the two hundred prompts that a language model wrote for the anchor; the anchor is
the target's text alone, and the concept's prompt that of the concept. No cropping or mirroring of pictures.
"""

from dataclasses import replace
from functools import partial

import torch
from diffusers import DiffusionPipeline
from torch.nn.functional import mse_loss

from rece import solver, texts
from rece.edits import Weights
from rece.methods._training import Pupil, Training

SETTINGS = Training(iterations=100, lr=1.6e-5, batch_size=8, guidance=7.5)


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    pictures: int = 1000,
    **training,
) -> Weights:
    """Train the keys and values of the layers that read the prompt.

    Latents are pictures that the original draws of the anchor, noised at uniform times. What the model that learns
    predicts for the concept shall be what it predicts for the anchor, which is not learnt from (equation 5). Several
    concepts take turns at random, each with its own target. pictures: at least one for each concept. preserve is not
    used. training: see `Training`.
    """
    pupil = Pupil(pipe, concept, replace(SETTINGS, **training))
    anchors = texts.targets_of(target, pupil.concepts)
    solver.whole(least=len(anchors), pictures=pictures)
    drawn = pupil.pictures(anchors, pictures)
    read = [pupil.encode(list(pair)).split(1) for pair in zip(pupil.concepts, anchors, strict=True)]
    pupil.learn("unet", lambda name: name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")))

    def loss(random: torch.Generator):
        which = int(torch.randint(len(anchors), (), generator=random))
        own = torch.arange(which, pictures, len(anchors))
        rows = own[torch.randint(len(own), (pupil.settings.batch_size,), generator=random)]
        z, times, _ = pupil.noised(drawn[rows], random)
        c, anchor = read[which]
        with torch.no_grad():
            wanted = pupil.predict(pupil.unet, z, times, anchor)
        return mse_loss(pupil.predict(pupil.unet, z, times, c), wanted)

    numbers = {"target": anchors, "pictures": pictures}
    pupil.train("concept_ablation", loss, numbers, partial(torch.optim.AdamW, weight_decay=1e-2))
    return pupil.changes("concept_ablation", **numbers)
