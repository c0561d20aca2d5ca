"""PURE: in each layer, what attention answers while the concept is drawn is projected out of keys and values, but for
what it answers to preserved texts (arXiv 2605.25765).

From its project page: no code was published. Own choices: the prompts, that only passes with the prompt count, and how
many preserved texts are drawn.
"""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import families, layers, solver, texts
from rece.edits import Weights
from rece.eraser import origin
from rece.methods._tokens import TEMPLATES, check_templates
from rece.methods._watching import attended


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    forget: float = 0.95,
    retain: float = 0.95,
    anchors: int = 20,
    templates: tuple[str, ...] = TEMPLATES,
    steps: int = 10,
    guidance: float = 7.5,
    seed: int = 0,
    bf16: bool | str = False,
    progress: bool = True,
) -> Weights:
    """W' = (I - F (I - R)) W in every layer that reads tokens.

    F projects on the fewest singular directions, at least one, that hold a share `forget` of the layer's mean answers,
    over pixels, at every step of drawing the concepts in all templates. R: the same of the first `anchors` texts of
    `preserve`, and `retain`. target is not used. Raises ValueError naming the parameter, TypeError if there is no
    UNet.
    """
    concepts = texts.concepts_of(concept)
    for name, value in {"forget": forget, "retain": retain}.items():
        solver.fraction(value, name)
    solver.whole(anchors=anchors)
    kept = texts.listed(preserve or [], "preserve")[:anchors]
    check_templates(templates)
    if families.part(pipe) != "unet":
        raise TypeError("pipe must have a UNet")
    how = {"steps": steps, "guidance": guidance, "bf16": bf16, "progress": progress}
    asked = [template.format(text) for text in concepts for template in templates]
    found, held = (answered(pipe, prompts, seed, **how) if prompts else {} for prompts in (asked, kept))
    changes = {}
    for name, weight in layers.originals(pipe).items():
        W, layer = solver.precise(weight), name.rpartition(".")[0]
        F, R = main(found[layer], forget), main(held[layer], retain) if held else W.new_zeros(len(W), 0)
        changes[f"unet.{name}.weight"] = ((-F).float(), (F.T @ W - F.T @ R @ R.T @ W).float())
    provenance = {**origin(pipe), "method": "pure", "concepts": concepts, "preserve": preserve, "anchors": anchors}
    provenance |= {"forget": forget, "retain": retain, "templates": list(templates), "steps": steps, "seed": seed}
    return Weights(
        changes, provenance | {"guidance": guidance, "bf16": bf16, "evaluations": 2 * steps * len([*asked, *kept])}
    )


def main(rows: Tensor, share: float) -> Tensor:
    """The fewest right singular vectors of rows, one or more, that hold this share of their squared size: (out, r)."""
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    held = sizes.square().cumsum(0) / sizes.square().sum()
    return right[: int((held < share).sum()) + 1].T


def answered(pipe: DiffusionPipeline, prompts: list[str], seed: int, **how) -> dict[str, Tensor]:
    """What attention answers in the mean over pixels, at each step of drawing: by the layer's name, (steps x prompts,
    out) float64."""
    return attended(pipe, prompts, seed, lambda read, _: solver.precise(read.mean(1)), **how)
