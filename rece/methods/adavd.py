"""AdaVD: in every layer, values lose their part along the concept's value, the more the more they look like it (CVPR
2025, arXiv 2412.06143)."""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import families, layers, solver, texts
from rece.edits import Hooks
from rece.eraser import origin


class Hook(torch.nn.Module):
    """A value v of any position but the first becomes v - sum_k s(cos(v, t_k)) <v, q_k> q_k.

    t_k: the layer's value of a concept's last word token. q_k: the same, made orthonormal one by one. s(x) = 2 / (1 +
    exp(-sharpness (x - threshold))).
    """

    def __init__(self, state: dict[str, Tensor], **settings: float):
        super().__init__()
        self.settings = settings
        self.register_buffer("words", state["words"].clone())

    def attach(self, pipe: DiffusionPipeline) -> list:
        read = layers.prompt_layers(pipe)
        return [layer.register_forward_hook(self.shifted) for name, layer in read.items() if name.endswith("to_v")]

    def shifted(self, layer: torch.nn.Linear, _, values: Tensor) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            wide = values.float()
            T = self.words.float() @ layer.weight.float().T
            near = torch.cosine_similarity(wide[:, :, None], T, dim=3)
            share = 2 * (self.settings["sharpness"] * (near - self.settings["threshold"])).sigmoid()
            Q = torch.linalg.qr(T.T)[0]
            left = wide - (share * (wide @ Q)) @ Q.T
        return torch.cat([values[:, :1], left[:, 1:].to(values.dtype)], 1)


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    threshold: float = 0.93,
    sharpness: float = 100.0,
    progress: bool = True,
) -> Hooks:
    """The hook on every layer of values, see `Hook`. target and preserve are not used.

    Raises TypeError if the model reads more than tokens, ValueError naming the parameter.
    """
    concepts = texts.concepts_of(concept)
    solver.positive(sharpness, "sharpness")
    solver.fraction(threshold, "threshold")
    families.check_tokens_alone(pipe)
    settings = {"threshold": threshold, "sharpness": sharpness}
    state = {"words": texts.last_tokens(pipe, concepts)}
    return Hooks("adavd", state, settings, {**origin(pipe), "concepts": concepts, "method": "adavd"})
