"""SLD: guidance away from the concept while the model runs (Schramowski et al., CVPR 2023, arXiv 2211.05105).

Not reproduced: the paper's own safety text, twenty words of harm; here it is what is erased. The published numbers are
those of its preset "medium". Its warm-up counts steps of a sampler of 50; here it is a share of all steps.
"""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import families, solver, texts
from rece.edits import Hooks
from rece.eraser import origin
from rece.methods._tokens import blank


class Hook(torch.nn.Module):
    """In every pass with guidance, the prompt's prediction is moved away from that of the safety text.

    e_u, e_p, e_s: predictions for "", the prompt and the safety text. phi = min(|e_p - e_s| scale, 1), and 0 where
    e_p - e_s >= threshold. g = phi (e_s - e_u) + momentum nu, then nu becomes beta nu + (1 - beta) g. After the
    warm-up g is taken from e_p, so that guidance w draws e_u + w (e_p - e_u - g). (Equations 3 to 8.)
    A pass without guidance, such as an attack's own, is left as it is: its rows are not the same latents twice, for ""
    and for the prompt. nu begins at 0 with every drawing: where a step is not later than the last. A time that a
    sampler repeats in one drawing, such as the second of PNDM, counts as later.
    """

    def __init__(self, state: dict[str, Tensor], **settings: float):
        super().__init__()
        self.settings = settings
        for name in ("safety", "empty"):
            self.register_buffer(name, state[name].clone())

    def attach(self, pipe: DiffusionPipeline) -> list:
        scheduler, self.nu, self.step, self.passes = pipe.scheduler, None, 0, 0
        forward = families.model(pipe)

        def before(_, args, kwargs):
            named = [kwargs.pop(name) for name in ("timestep", "encoder_hidden_states") if name in kwargs]
            sample, time, embeds = (*args, *named)
            n = len(sample) // 2
            self.guided = torch.equal(sample[:n], sample[n:]) and bool(blank(embeds[:n], self.empty).all())
            if self.guided:
                sample = torch.cat([sample, sample[:n]])
                embeds = torch.cat([embeds, self.safety.to(embeds).expand(n, -1, -1)])
                now = torch.as_tensor(time).flatten()[0].cpu()
                last, self.step = self.step, int((scheduler.timesteps > now).sum())
                repeats = self.step == last and self.passes < int((scheduler.timesteps == now).sum())
                self.passes = self.passes + 1 if repeats else 1
                if self.step <= last and not repeats or self.nu is not None and len(self.nu) != n:
                    self.nu = None
            return (sample, time, embeds), kwargs

        def after(_, args, kwargs, found):
            if not self.guided:
                return found
            whole = found[0] if isinstance(found, tuple) else found.sample
            unguided, asked, safety = whole.chunk(3)
            asked = torch.cat([unguided, asked - self.away(unguided, asked, safety, len(scheduler.timesteps))])
            return (asked,) if isinstance(found, tuple) else type(found)(sample=asked)

        return [
            forward.register_forward_pre_hook(before, with_kwargs=True),
            forward.register_forward_hook(after, with_kwargs=True),
        ]

    def away(self, unguided: Tensor, asked: Tensor, safety: Tensor, steps: int) -> Tensor:
        """What is taken from the prompt's prediction at this step: g, or 0 during the warm-up."""
        phi = ((asked - safety).abs() * self.settings["scale"]).clamp(max=1)
        phi = torch.where(asked - safety >= self.settings["threshold"], 0, phi)
        nu = torch.zeros_like(asked) if self.nu is None else self.nu
        g = phi * (safety - unguided) + self.settings["momentum"] * nu
        self.nu = self.settings["beta"] * nu + (1 - self.settings["beta"]) * g
        return g if self.step >= self.settings["warm_up"] * steps else torch.zeros_like(g)


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    scale: float = 1000.0,
    threshold: float = 0.01,
    momentum: float = 0.3,
    beta: float = 0.4,
    warm_up: float = 0.2,
    progress: bool = True,
) -> Hooks:
    """The safety text is the concepts, separated by commas. target and preserve are not used.

    scale, threshold, momentum, beta: see `Hook`; the method's own names are s_S, lambda, s_m and beta_m. warm_up: the
    share of steps before it acts. Every step costs three rows of the model instead of two.
    Raises TypeError if the model reads more of a prompt than tokens, ValueError naming the parameter.
    """
    concepts = texts.concepts_of(concept)
    settings = {"scale": scale, "threshold": threshold, "momentum": momentum, "beta": beta, "warm_up": warm_up}
    for name, value in settings.items():
        solver.positive(value, name, or_zero=True)
    solver.fraction(beta, "beta")
    solver.fraction(warm_up, "warm_up")
    families.check_tokens_alone(pipe)
    safety = ", ".join(concepts)
    texts.check(pipe, concept=[safety])
    state = {"safety": texts.encode(pipe, [safety]), "empty": texts.encode(pipe, [""])}
    return Hooks("sld", state, settings, {**origin(pipe), "concepts": concepts, "method": "sld"})
