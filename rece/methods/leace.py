"""LEACE: the oblique projection after which no linear classifier tells the concept (Belrose et al., NeurIPS 2023).

arXiv 2306.03819. It was published for what classifiers and language models hold; to use it on a prompt's tokens is
ours. A map has no constant, so tokens are not centred before it. The guarantee holds all the same: it is of
covariances. Of a model that reads a pooled embedding too, that stays as it is.
"""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import layers, solver, texts
from rece.eraser import Eraser, origin
from rece.methods._tokens import TEMPLATES, check_templates, framed


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    ridge: float = 0.0,
    templates: tuple[str, ...] = TEMPLATES,
    progress: bool = True,
) -> Eraser:
    """M = I - W^+ (W S) (W S)^+ W with W = A^-1/2: A is the covariance of tokens, S theirs with what they name.

    Tokens: the last words of the concepts and of `preserve`, each in all templates; a token is of one concept, or of
    none. ridge: added to A, in units of its mean eigenvalue; where it is 0, directions in which no token varies stay.
    target is not used. Raises ValueError naming the parameter.
    """
    concepts = texts.concepts_of(concept)
    kept = texts.listed(preserve or [], "preserve")
    solver.positive(ridge, "ridge", or_zero=True)
    check_templates(templates)
    if not kept:
        raise ValueError("preserve must hold at least one text: LEACE needs tokens that are not the concept")
    X = framed(pipe, [*concepts, *kept], templates).to(layers.gram(pipe).device)
    Z = torch.eye(len(X), len(concepts)).to(X).repeat_interleave(len(templates), 0)
    provenance = {**origin(pipe), "method": "leace", "concepts": concepts, "preserve": preserve, "ridge": ridge}
    provenance["templates"] = list(templates)
    return Eraser(projection(X.flatten(0, 1), Z, ridge), provenance)


def projection(X: Tensor, Z: Tensor, ridge: float) -> Tensor:
    """The map of `erase`, (d, d), of tokens X, (n, d), and what they name Z, (n, concepts)."""
    centred = X - X.mean(0)
    A, S = centred.T @ centred / len(X), centred.T @ (Z - Z.mean(0)) / len(X)
    values, vectors = torch.linalg.eigh(A)
    values = values + ridge * values.mean()
    there = values > 1e-9 * values[-1]
    root = (vectors[:, there] * values[there].sqrt()) @ vectors[:, there].T
    whitening = (vectors[:, there] / values[there].sqrt()) @ vectors[:, there].T
    U = torch.linalg.svd(whitening @ S, full_matrices=False)[0]
    return torch.eye(len(A)).to(A) - root @ U @ U.T @ whitening
