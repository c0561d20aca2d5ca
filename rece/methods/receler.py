"""Receler: small networks after the layers that read the prompt hide the concept (Huang et al., ECCV 2024, arXiv
2311.17717).

Not reproduced: whether the learnt prompts live on from one iteration to the next is not known; here each iteration
begins with new ones. One concept is drawn per iteration.
"""

from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import gelu, interpolate, mse_loss

from rece import families, solver, texts
from rece.edits import Hooks
from rece.methods._training import Pupil, Training
from rece.methods._watching import attention, where

SETTINGS = Training(iterations=500, lr=3e-4)


class Hook(torch.nn.Module):
    """To the output o of every layer attn2 is added U gelu(D o + b) + c.

    state: D (hidden, width), b, U (width, hidden) and c by the number of the layer in the model's order, "down.0".
    """

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        for name, tensor in state.items():
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(tensor.clone()))

    def attach(self, pipe: DiffusionPipeline) -> list:
        return self.attach_to(families.model(pipe), {})

    def attach_to(self, model: torch.nn.Module, said: dict[int, Tensor]) -> list:
        """Hook a model. said: becomes what was added in the last pass, by layer."""
        layers = [layer for name, layer in model.named_modules() if name.endswith(".attn2")]
        return [layer.register_forward_hook(self.adding(n, said)) for n, layer in enumerate(layers)]

    def adding(self, n: int, said: dict[int, Tensor]):
        def add(_, args, found: Tensor) -> Tensor:
            down, inner, up, outer = (getattr(self, f"{name}_{n}") for name in ("down", "inner", "up", "outer"))
            said[n] = gelu(found @ down.T + inner) @ up.T + outer
            return found + said[n]

        return add


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    eta: float = 1.0,
    hidden: int = 128,
    words: int = 16,
    attack_steps: int = 50,
    attack_lr: float = 0.1,
    locality: float = 0.1,
    **training,
) -> Hooks:
    """Train the small networks, of `hidden` units each; the model stays as it is. target and preserve are not used.

    Each iteration draws latents z as ESD does. `words` rows after the concept's own tokens then learn, for
    attack_steps steps, to make the hooked model predict what the original predicts for the concept. With them the
    networks learn ESD's target, and to say little (weight `locality`) where the original sees no concept: outside of
    the mask of its attention, see `where`. training: see `Training`.
    """
    for name, value in {"eta": eta, "attack_lr": attack_lr, "locality": locality}.items():
        solver.positive(value, name, or_zero=name == "locality")
    solver.whole(hidden=hidden, words=words, attack_steps=attack_steps)
    pupil = Pupil(pipe, concept, replace(SETTINGS, **training))
    unet = pupil.copied("unet")
    widths = [layer.to_out[0].out_features for name, layer in unet.named_modules() if name.endswith(".attn2")]
    random, state = torch.Generator().manual_seed(pupil.settings.seed), {}
    for n, width in enumerate(widths):  # the first layers begin as torch's linear layers do, the second at zero
        for name, shape in {"down": (hidden, width), "inner": (hidden,)}.items():
            state[f"{name}.{n}"] = (2 * torch.rand(shape, generator=random) - 1) / width**0.5
        state |= {f"up.{n}": torch.zeros(width, hidden), f"outer.{n}": torch.zeros(width)}
    hook = Hook(state).to(pupil.device)
    pupil.learnt = dict(hook.named_parameters())
    said, known = {}, [(pupil.encode([name]), texts.last_position(pipe, name)) for name in pupil.concepts]
    hook.attach_to(unet, said)

    def loss(random: torch.Generator) -> Tensor:
        c, last = known[int(torch.randint(len(known), (), generator=random))]
        z, time, _ = pupil.sampled(unet, c, random)
        shares = attention(pipe.unet, lambda: pupil.original(z, time, c))
        seen = where(shares, range(1, last + 1), z.shape[-1])
        plain, asked = pupil.original(z, time, pupil.empty, c)
        read = attacked(pupil, unet, c, last + 1, z, time, asked, words, attack_steps, attack_lr, random)
        found = pupil.predict(unet, z, time, read)
        return mse_loss(found, plain - eta * (asked - plain)) + locality * outside(said, seen)

    numbers = {"eta": eta, "hidden": hidden, "words": words, "locality": locality}
    numbers |= {"attack_steps": attack_steps, "attack_lr": attack_lr}
    pupil.train("receler", loss, numbers)
    found = {name.replace("_", "."): one.detach() for name, one in hook.named_parameters()}
    return Hooks("receler", found, {}, pupil.provenance("receler", **numbers))


def attacked(pupil: Pupil, unet, c: Tensor, start: int, z, time, wanted, words: int, steps: int, lr: float, random):
    """The concept's embedding with rows from `start` on that were learnt against the networks, but for the last step:
    its prediction is what these learn from."""
    n = min(words, c.shape[1] - start)
    rows = torch.rand(1, n, c.shape[2], generator=random).to(c).requires_grad_()
    optimiser = torch.optim.Adam([rows], lr=lr, weight_decay=0.1)
    read = torch.cat([c[:, :start], rows, c[:, start + n :]], 1)
    for _ in range(steps - 1):
        (rows.grad,) = torch.autograd.grad(mse_loss(pupil.predict(unet, z, time, read), wanted), rows)
        optimiser.step()
        read = torch.cat([c[:, :start], rows, c[:, start + n :]], 1)
    return read.detach()


def outside(said: dict[int, Tensor], seen: Tensor) -> Tensor:
    """The mean square of what the networks add outside of a mask (n, 1, side, side), over layers."""
    found = []
    for added in said.values():
        side = round(added.shape[1] ** 0.5)
        out = 1 - interpolate(seen.float(), size=side).flatten(1)
        found.append((added.square().mean(2) * out).sum() / out.sum().clamp(min=1))
    return torch.stack(found).mean()
