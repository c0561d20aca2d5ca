"""What methods that look at tokens share: those of texts, tokens that are free, and what tokens span."""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import layers, texts

TEMPLATES = ("{}", "a photo of a {}", "a picture of the {}", "a small {}", "a {} in a street")


def check_templates(templates: tuple[str, ...]) -> None:
    """Raises ValueError unless templates are texts that each hold {} once."""
    good = isinstance(templates, list | tuple) and templates and all(isinstance(one, str) for one in templates)
    if not good or any({one.count("{"), one.count("}"), one.count("{}")} != {1} for one in templates):
        raise ValueError("templates must be a list of texts that each hold {} once")


def ids(pipe: DiffusionPipeline, prompts: list[str]) -> Tensor:
    """The tokens that the text encoder of Stable Diffusion 1 and 2 reads, (prompts, positions), on its device."""
    found = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return found.to(pipe.text_encoder.device)


def words(pipe: DiffusionPipeline, some: list[str]) -> Tensor:
    """The tokens of the words of texts, without those that begin, end and fill them: (tokens, d) float64."""
    found = []
    for text in some:
        end, n = texts.last_position(pipe, text) + 1, len(texts.ids(pipe, text)[0]) - texts.beyond(pipe, text)
        found.append(texts.encode(pipe, [text])[0, end - n : end])
    return torch.cat(found)


def last_in(pipe: DiffusionPipeline, template: str, text: str) -> int:
    """The position of the last word of a text that stands in a template."""
    return texts.last_position(pipe, template[: template.index("{}")] + text)


def framed(pipe: DiffusionPipeline, some: list[str], templates: tuple[str, ...]) -> Tensor:
    """The last word tokens of texts in templates that end with them or not: (texts, templates, d) float64."""
    prompts = [(template, text) for text in some for template in templates]
    embeds = texts.encode(pipe, [template.format(text) for template, text in prompts])
    at = [last_in(pipe, *prompt) for prompt in prompts]
    return embeds[torch.arange(len(embeds)), at].unflatten(0, (len(some), len(templates)))


def values(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """The weights of the layers that make values of tokens, (out, d) by name. Raises TypeError if there are none."""
    found = {name: weight for name, weight in layers.originals(pipe).items() if name.endswith("to_v")}
    if not found:
        raise TypeError("pipe must have layers of values (to_v): this method edits no others")
    return found


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
