"""What methods that look at tokens share: those of texts, tokens that are free, and what tokens span."""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import texts

TEMPLATES = ("{}", "a photo of a {}", "a picture of the {}", "a small {}", "a {} in a street")


def words(pipe: DiffusionPipeline, some: list[str]) -> Tensor:
    """The tokens of the words of texts, without those that begin, end and fill them: (tokens, d) float64."""
    embeds = [(texts.encode(pipe, [text])[0], texts.last_word(pipe, text)) for text in some]
    return torch.cat([rows[1 : last + 1] for rows, last in embeds])


def framed(pipe: DiffusionPipeline, some: list[str], templates: tuple[str, ...]) -> Tensor:
    """The last word tokens of texts in templates that end with them or not: (texts, templates, d) float64."""
    prompts = [(template, text) for text in some for template in templates]
    embeds = texts.encode(pipe, [template.format(text) for template, text in prompts])
    at = [texts.last_word(pipe, template[: template.index("{}")] + text) for template, text in prompts]
    return embeds[torch.arange(len(embeds)), at].unflatten(0, (len(some), len(templates)))


def blank(embeds: Tensor, empty: Tensor) -> Tensor:
    """Which embeddings (n, positions, d) are that of "", `empty`, up to what bfloat16 changes in it: bool (n,)."""
    return (embeds - empty.to(embeds)).flatten(1).norm(dim=1) < 0.05 * empty.norm()


def spanned(E: Tensor, least: float = 1e-7) -> Tensor:
    """An orthonormal basis, (d, r), of what the rows of E span, up to directions of a share `least` of the largest."""
    _, sizes, right = torch.linalg.svd(E, full_matrices=False)
    return right[sizes > least * sizes[0]].T


def expanded(E: Tensor, alpha: float) -> Tensor:
    """sum_i l_i v_i v_i^T over the right singular vectors of E, (d, d): l = alpha r / ((alpha - 1) r + 1), where r is
    the share of all squared singular values. It is the projector on the span as alpha grows."""
    _, sizes, right = torch.linalg.svd(E, full_matrices=False)
    r = sizes.square() / sizes.square().sum()
    return (right.T * (alpha * r / ((alpha - 1) * r + 1))) @ right
