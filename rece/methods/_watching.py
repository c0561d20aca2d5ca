"""What methods share that look at layers while a model runs."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece.images import generate


def watched(
    pipe: DiffusionPipeline,
    layers: dict[str, torch.nn.Module],
    prompts: list[str],
    seeds: list[int],
    take: Callable[[Tensor, Tensor], Tensor],
    **how,
) -> dict[str, list[Tensor]]:
    """What is taken of layers while prompts are drawn in one batch: by the layer's name, one tensor per step.

    take: of a layer's input and output. how: keywords of `generate`.
    """
    found = {name: [] for name in layers}

    def watching(rows: list):
        return lambda _, args, out: rows.append(take(args[0], out))

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_hook(watching(found[name])))
        generate(pipe, prompts, seeds, batch_size=len(prompts), **how)
    return found


def attended(
    pipe: DiffusionPipeline, prompts: list[str], seed: int, take: Callable[[Tensor, Tensor], Tensor], **how
) -> dict[str, Tensor]:
    """What is taken of each layer attn2's last linear layer at every step, in the passes with the prompts: by the
    layer's name, rows of all steps.

    take: of its input and output, (prompts, pixels, width) each, some rows. how: keywords of `generate`.
    """
    n = len(prompts)
    layers = {name: module.to_out[0] for name, module in pipe.unet.named_modules() if name.endswith(".attn2")}
    taken = watched(pipe, layers, prompts, range(seed, seed + n), lambda read, out: take(read[-n:], out[-n:]), **how)
    return {name: torch.cat(rows) for name, rows in taken.items()}


def attention(unet: torch.nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """The shares that each layer attn2 gives to the tokens of a prompt while `run` is called once.

    By the layer's name, (n, heads, pixels, positions). Gradients reach whatever they depend on.
    """
    found = {}

    def looking(name: str):
        def look(layer, args, kwargs):
            seen = args[0] if args else kwargs["hidden_states"]
            read = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
            q, k = (
                side.unflatten(2, (layer.heads, -1)).transpose(1, 2) for side in (layer.to_q(seen), layer.to_k(read))
            )
            found[name] = (q @ k.transpose(2, 3) * layer.scale).softmax(3)

        return look

    with ExitStack() as stack:
        for name, layer in unet.named_modules():
            if name.endswith(".attn2"):
                stack.enter_context(layer.register_forward_pre_hook(looking(name), with_kwargs=True))
        run()
    return found


def where(shares: dict[str, Tensor], tokens: range, size: int, least: float = 0.1) -> Tensor:
    """Where a picture shows what some tokens name: bool (n, 1, side, side).

    shares: of `attention`. The mean over heads, these tokens, and the layers whose side is a quarter of the latents'
    `size`, or else the largest; scaled to 0 to 1 in each picture; at least `least`. As Receler's code has it.
    """
    maps = {name: one[..., tokens.start : tokens.stop].mean((1, 3)) for name, one in shares.items()}
    sides = {name: round(one.shape[1] ** 0.5) for name, one in maps.items()}
    side = size // 4 if size // 4 in sides.values() else max(sides.values())
    found = torch.stack([one for name, one in maps.items() if sides[name] == side]).mean(0)
    low, high = found.amin(1, keepdim=True), found.amax(1, keepdim=True)
    return ((found - low) >= least * (high - low)).unflatten(1, (1, side, side))
