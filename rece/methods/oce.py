"""OCE: the answers of each layer are rotated, so that the concept's leaves what its target's does not span (ICML 2026,
arXiv 2605.28902).

Values alone, as its code does; the paper says keys and values. Not reproduced: 30,000 captions as what is kept; here
`preserve`. The published numbers are those for an object.
"""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import layers, solver, texts
from rece.edits import Weights
from rece.eraser import origin
from rece.methods._tokens import TEMPLATES, check_templates, framed, spanned, values


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    erase_scale: float = 2000.0,
    preserve_scale: float = 10.0,
    lamb: float = 10.0,
    templates: tuple[str, ...] = TEMPLATES,
    progress: bool = True,
) -> Weights:
    """W' = R W in every layer of values: R is that of `rotation` for the sum -a E (I - A) + b W P W^T + lamb W W^T.

    E and A project on the layer's answers to the last words of the concepts and of their targets, each in all
    templates. P is the mean of p p^T over the tokens of `preserve`. a: erase_scale; b: preserve_scale; the paper's p,
    which keeps single words, is 0 for objects and left out. Raises ValueError or TypeError naming the
    parameter.
    """
    concepts = texts.concepts_of(concept)
    targets, kept = texts.targets_of(target, concepts), texts.listed(preserve or [], "preserve")
    numbers = {"erase_scale": erase_scale, "preserve_scale": preserve_scale, "lamb": lamb}
    for name, value in numbers.items():
        solver.positive(value, name, or_zero=name != "lamb")
    check_templates(templates)
    weights = values(pipe)
    device, changes = layers.gram(pipe).device, {}
    C = framed(pipe, concepts, templates).flatten(0, 1).to(device)
    A = framed(pipe, list(dict.fromkeys(targets)), templates).flatten(0, 1).to(device)
    PP = texts.encode_gram(pipe, kept, progress=progress).to(device) if kept else C.new_zeros(len(C.T), len(C.T))
    PP = PP / max(1, len(kept) * texts.positions(pipe))
    for name, weight in weights.items():
        W = solver.precise(weight)
        R = rotation(W, C, A, PP, **numbers)
        changes[f"unet.{name}.weight"] = (R @ W - W).float()
    provenance = {**origin(pipe), "method": "oce", "concepts": concepts, "target": targets, "preserve": preserve}
    return Weights(changes, provenance | {**numbers, "templates": list(templates)})


def rotation(
    W: Tensor, C: Tensor, A: Tensor, PP: Tensor, erase_scale: float, preserve_scale: float, lamb: float
) -> Tensor:
    """R of one layer, (out, out), see `erase`: U V^T of the singular value decomposition of its sum. Its last column
    changes sign if needed to make it a rotation."""
    E, aims = spanned(C @ W.T), spanned(A @ W.T)
    away = E @ (E.T - E.T @ aims @ aims.T)
    U, _, right = torch.linalg.svd(-erase_scale * away + preserve_scale * W @ PP @ W.T + lamb * W @ W.T)
    R = U @ right
    if torch.linalg.det(R) < 0:
        R[:, -1] = -R[:, -1]
    return R
