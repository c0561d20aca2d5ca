"""SAFER: a projection away from all directions that the concept's embeddings span (arXiv 2503.16835).

From its abstract alone: the paper's text and code could not be reached. Not reproduced: embeddings found by textual
inversion beside those of texts. Of a model that reads a pooled embedding too, that stays as it is.
"""

import torch
from diffusers import DiffusionPipeline

from rece import layers, solver, texts
from rece.eraser import Eraser, origin
from rece.methods._tokens import TEMPLATES, check_templates, framed, spanned


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    rank: int | None = None,
    templates: tuple[str, ...] = TEMPLATES,
    progress: bool = True,
) -> Eraser:
    """M = I - U U^T, where U are the `rank` largest right singular vectors of the concepts' last word tokens in all
    templates, by default all of them. target and preserve are not used. Raises ValueError naming the parameter.
    """
    concepts = texts.concepts_of(concept)
    solver.whole(rank=1 if rank is None else rank)
    check_templates(templates)
    U = spanned(framed(pipe, concepts, templates).flatten(0, 1).to(layers.gram(pipe).device))[:, :rank]
    provenance = {**origin(pipe), "method": "safer", "concepts": concepts, "rank": rank, "templates": list(templates)}
    return Eraser(torch.eye(len(U)).to(U) - U @ U.T, provenance)
