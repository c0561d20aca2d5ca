"""Token ids in attacks: whole words, free places in a prompt, embeddings in place of tokens; and common checks."""

from contextlib import contextmanager

import torch
from torch import Tensor


def applies(pipe) -> str:
    """An empty text if the pipeline has one text encoder; else why attacks on its tokens do not apply to it."""
    if getattr(pipe, "text_encoder_2", None) is not None:
        return "pipelines with two text encoders are not supported: leave this attack out"
    return ""


def check_counts(counts: dict[str, int], least: int = 1) -> None:
    """Raise ValueError that names the first of these parameters that is no whole number of `least` or more."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"{name} must be a whole number, {least} or more, not {count!r}")


def whole_words(tokenizer) -> tuple[list[str], Tensor]:
    """The words that are one token each: the token's text tokenises back to that one id.

    Such words are printable and hold no space. Special tokens are left out.
    Returns (words, ids), ids a (words,) long tensor on the CPU.
    """
    special = set(tokenizer.all_special_ids)
    every = [i for i in range(len(tokenizer)) if i not in special]
    texts = [text.strip() for text in tokenizer.batch_decode([[i] for i in every])]
    back = tokenizer(texts, add_special_tokens=False).input_ids
    whole = [
        (text, i)
        for text, i, ids in zip(texts, every, back, strict=True)
        if ids == [i] and text.isprintable() and text.split() == [text]
    ]
    return [text for text, _ in whole], torch.tensor([i for _, i in whole])


def checked(tokenizer, text: str, ids: list[int]) -> str:
    """Return `text` if its tokenisation, padded to len(ids), is exactly `ids`; else raise RuntimeError."""
    if tokenizer(text, padding="max_length", max_length=len(ids)).input_ids != ids:
        raise RuntimeError(f"{text!r} does not tokenise to the ids that were attacked")
    return text


def place(tokenizer, prompts: list[str], tokens: int) -> Tensor:
    """The ids of the prompts with `tokens` free places after the start token: (n, positions) long, on the CPU.

    The free places hold the end token. The rows are padded to the tokenizer's full length.
    Raises ValueError if a prompt is too long for that.
    """
    positions = tokenizer.model_max_length
    filled = []
    for prompt, (start, *rest) in zip(prompts, tokenizer(list(prompts)).input_ids, strict=True):
        if 1 + tokens + len(rest) > positions:
            raise ValueError(
                f"prompt {prompt!r} has {len(rest) - 1} tokens, and with {tokens} more it does not fit into the "
                f"{positions - 2} there is room for: shorten it or lower tokens"
            )
        filled.append({"input_ids": [start, *[tokenizer.eos_token_id] * tokens, *rest]})
    return tokenizer.pad(filled, padding="max_length", max_length=positions, return_tensors="pt").input_ids


@contextmanager
def replaced(encoder: torch.nn.Module, slots: Tensor, soft: Tensor):
    """Inside the block the encoder reads soft (n, k, d) as the token embeddings at positions slots (n, k).

    Gradients reach soft.
    """
    where = slots[:, :, None].expand(soft.shape)

    def replace(module, inputs, output):
        return output.scatter(1, where, soft.to(output.dtype))

    hook = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def frozen(*modules: torch.nn.Module):
    """The modules' parameters are frozen (requires_grad False) inside the block and restored after it."""
    before = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)
