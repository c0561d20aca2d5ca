"""Model families: which layers of a pipeline's model read the prompt, and all that a family does in its own way.

A family reads the prompt on one or two paths: "tokens", the embedding with one row per token, and in some families
"pooled", one vector for the whole prompt.
"""

from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor


@dataclass(frozen=True)
class Reader:
    """How a family reads one path.

    layers: endings of the names of the linear layers. output: which of `encode_prompt`'s results the embedding is.
    tokenizers: those whose tokens stand in it one after another, each with the keyword of `encode_prompt` that says
    how many positions they have, or None if the tokenizer says it; empty for a pooled embedding. mask: which of the
    results says what positions are read, if not all are. norm: the text encoder whose final LayerNorm every token
    leaves, if there is one. projected_by: the text encoder whose projection_dim is the number of input columns that
    are text, if the layers read more than text.
    """

    layers: tuple[str, ...]
    output: int
    tokenizers: dict[str, str | None] = field(default_factory=dict)
    mask: int | None = None
    norm: str | None = None
    projected_by: str | None = None


@dataclass(frozen=True)
class Family:
    """A family of pipelines: the part that holds the model, its class (None: any), and how it reads each path.

    encode: further keywords of `encode_prompt`. tidy: the pipeline's method that changes a prompt before it is read.
    """

    part: str
    model: str | None
    readers: dict[str, Reader]
    encode: dict = field(default_factory=lambda: {"do_classifier_free_guidance": False})
    tidy: str | None = None


ATTENTION = (".attn2.to_k", ".attn2.to_v")
POOLED = (".text_embedder.linear_1",)

# These close a text by one end token, and open it by a start token or by none.
TOKENIZERS = ("CLIPTokenizer", "T5Tokenizer")

# The one place that says which layers read the prompt, and how.
FAMILIES = {
    "Stable Diffusion 1.x, 2.x": Family(
        "unet", None, {"tokens": Reader(ATTENTION, 0, {"tokenizer": None}, norm="text_encoder")}
    ),
    "Stable Diffusion XL": Family(
        "unet",
        None,
        {
            "tokens": Reader(ATTENTION, 0, {"tokenizer": None}),
            "pooled": Reader(("add_embedding.linear_1",), 2, projected_by="text_encoder_2"),
        },
    ),
    "Stable Diffusion 3, 3.5": Family(
        "transformer",
        "SD3Transformer2DModel",
        {
            "tokens": Reader(("context_embedder",), 0, {"tokenizer": None, "tokenizer_3": "max_sequence_length"}),
            "pooled": Reader(POOLED, 2),
        },
        {"do_classifier_free_guidance": False, "prompt_2": None, "prompt_3": None},
    ),
    "FLUX.1": Family(
        "transformer",
        "FluxTransformer2DModel",
        {
            "tokens": Reader(("context_embedder",), 0, {"tokenizer_2": "max_sequence_length"}),
            "pooled": Reader(POOLED, 1),
        },
        {},
    ),
    "PixArt-alpha, -sigma": Family(
        "transformer",
        "PixArtTransformer2DModel",
        {"tokens": Reader(("caption_projection.linear_1",), 0, {"tokenizer": "max_sequence_length"}, mask=1)},
        tidy="_text_preprocessing",
    ),
}


def family(pipe: DiffusionPipeline) -> Family:
    """The row of FAMILIES that a pipeline belongs to. Raises TypeError, listing what is supported, for any other."""
    found = None
    unet, transformer = (getattr(pipe, part, None) for part in ("unet", "transformer"))
    if hasattr(pipe, "encode_prompt"):
        if isinstance(unet, torch.nn.Module):
            xl = getattr(unet.config, "addition_embed_type", None) == "text_time"
            found = FAMILIES["Stable Diffusion XL" if xl else "Stable Diffusion 1.x, 2.x"]
        elif isinstance(transformer, torch.nn.Module):
            kind = type(bare(transformer)).__name__
            found = next((one for one in FAMILIES.values() if one.model == kind), None)
    if found is None:
        supported = ", ".join(FAMILIES)
        kind = type(transformer).__name__ if isinstance(transformer, torch.nn.Module) else type(pipe).__name__
        raise TypeError(f"pipe must be a text-to-image pipeline of one of {supported}; {kind} is not supported")
    return found


def part(pipe: DiffusionPipeline) -> str:
    """The name of the part that reads the prompt: "unet" or "transformer"."""
    return family(pipe).part


def model(pipe: DiffusionPipeline) -> torch.nn.Module:
    """The part of the pipeline that reads the prompt embedding. Raises TypeError if there is none."""
    return getattr(pipe, part(pipe))


def paths(pipe: DiffusionPipeline) -> tuple[str, ...]:
    """The paths on which the pipeline's family reads text: ("tokens",) or ("tokens", "pooled")."""
    return tuple(family(pipe).readers)


def reads_tokens_alone(pipe: DiffusionPipeline) -> bool:
    """Whether the model reads nothing of a prompt but the token embedding, which can then be fed in its place."""
    readers = family(pipe).readers
    return list(readers) == ["tokens"] and readers["tokens"].mask is None


def check_tokens_alone(pipe: DiffusionPipeline) -> None:
    """Raises TypeError if the model reads more of a prompt than tokens."""
    if not reads_tokens_alone(pipe):
        raise TypeError(f"pipe must be a Stable Diffusion 1.x or 2.x pipeline, not a {type(pipe).__name__}")


def noise_in(scheduler: SchedulerMixin, found: Tensor, z: Tensor, time: Tensor) -> Tensor:
    """The noise in latents z of a time that a prediction, of noise or of velocity, stands for."""
    if scheduler.config.prediction_type != "v_prediction":
        return found
    share = scheduler.alphas_cumprod.to(z.device)[time]
    return share.sqrt() * found + (1 - share).sqrt() * z


def bare(whole: torch.nn.Module) -> torch.nn.Module:
    """The module inside of what torch.compile returns."""
    return getattr(whole, "_orig_mod", whole)
