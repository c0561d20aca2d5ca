"""Semantic Surgery: what a concept adds to the empty prompt is taken from prompts that hold it (NeurIPS 2025).

Not reproduced: the second pass, which asks a detector whether the picture still shows the concept.
"""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import families, solver, texts
from rece.edits import Hooks
from rece.eraser import origin
from rece.methods._tokens import blank


class Hook(torch.nn.Module):
    """Every embedding e that the model reads becomes e - rho D, but for that of "".

    A concept's D is its embedding less that of "", and it counts where its rho = sigmoid((cos(e, D) - threshold) /
    width) is half or more. Of several that count, D is that of all of them in one text, and rho the largest.
    """

    def __init__(self, state: dict[str, Tensor], concepts: list[str], **settings: float):
        super().__init__()
        self.concepts, self.settings, self.joint = concepts, settings, {}
        for name in ("named", "empty"):
            self.register_buffer(name, state[name].clone())

    def attach(self, pipe: DiffusionPipeline) -> list:
        def before(_, args, kwargs):
            embeds = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
            cut = torch.where(blank(embeds, self.empty)[:, None, None], embeds, self.cut(pipe, embeds))
            if "encoder_hidden_states" in kwargs:
                return args, kwargs | {"encoder_hidden_states": cut}
            return (*args[:2], cut, *args[3:]), kwargs

        return [families.model(pipe).register_forward_pre_hook(before, with_kwargs=True)]

    def cut(self, pipe: DiffusionPipeline, embeds: Tensor) -> Tensor:
        """What is left of embeddings (n, positions, d)."""
        D = (self.named - self.empty).to(embeds)
        near = torch.cosine_similarity(embeds.flatten(1)[:, None], D.flatten(1)[None], dim=2)
        rho = ((near - self.settings["threshold"]) / self.settings["width"]).sigmoid()
        rows = []
        for own, weights in zip(embeds, rho, strict=True):
            counted = tuple((weights >= 0.5).nonzero().flatten().tolist())
            rows.append(own - weights.max() * self.together(pipe, counted).to(own) if counted else own)
        return torch.stack(rows)

    def together(self, pipe: DiffusionPipeline, counted: tuple[int, ...]) -> Tensor:
        """What some concepts in one text add to the empty prompt, (positions, d)."""
        if len(counted) == 1:
            return (self.named[counted[0]] - self.empty)[0]
        if counted not in self.joint:
            text = ", ".join(self.concepts[n] for n in counted)
            self.joint[counted] = texts.encode(pipe, [text])[0] - self.empty[0]
        return self.joint[counted]


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    threshold: float = -0.06,
    width: float = 0.02,
    progress: bool = True,
) -> Hooks:
    """The hook that cuts the concepts out of every prompt, see `Hook`. The method's own names of its numbers are beta
    and gamma. target and preserve are not used. Raises TypeError if the model reads more than tokens,
    ValueError if it cannot read all concepts in one text, separated by commas."""
    concepts = texts.concepts_of(concept)
    solver.positive(width, "width")
    families.check_tokens_alone(pipe)
    texts.check(pipe, concept=[", ".join(concepts)])
    state = {"named": texts.encode(pipe, concepts), "empty": texts.encode(pipe, [""])}
    settings = {"concepts": concepts, "threshold": threshold, "width": width}
    return Hooks(
        "semantic_surgery", state, settings, {**origin(pipe), "concepts": concepts, "method": "semantic_surgery"}
    )
