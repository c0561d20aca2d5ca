"""What methods share that look at layers while pictures are drawn."""

from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece.images import generate


def watched(
    pipe: DiffusionPipeline, prompts: list[str], seed: int, take: Callable[[Tensor, Tensor], Tensor], **how
) -> dict[str, Tensor]:
    """What is taken of each layer attn2's last linear layer at every step, in the passes with the prompts: by the
    layer's name, rows of all steps.

    take: of its input and output, (prompts, pixels, width) each, some rows. how: keywords of `generate`.
    """
    found, handles = {}, []

    def watching(rows: list):
        return lambda _, args, out: rows.append(take(args[0][-len(prompts) :], out[-len(prompts) :]))

    for name, module in pipe.unet.named_modules():
        if name.endswith(".attn2"):
            handles.append(module.to_out[0].register_forward_hook(watching(found.setdefault(name, []))))
    try:
        generate(pipe, prompts, range(seed, seed + len(prompts)), batch_size=len(prompts), **how)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(rows) for name, rows in found.items()}
