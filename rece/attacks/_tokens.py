"""Token ids as an attacker handles them: whole words, slots in a prompt, and embeddings put in their place."""

from contextlib import contextmanager

import torch
from torch import Tensor


def whole_words(tokenizer) -> tuple[list[str], Tensor]:
    """The ids that are whole words, and these words: their own text tokenises back to that one id.

    Special tokens are left out. Returns (words, ids), ids a (words,) long tensor.
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
    """`text`, once its tokenisation, padded to len(ids), is found to be exactly `ids`; else raises RuntimeError."""
    if tokenizer(text, padding="max_length", max_length=len(ids)).input_ids != ids:
        raise RuntimeError(f"{text!r} does not tokenise to the ids that were attacked")
    return text


def place(tokenizer, prompts: list[str], tokens: int) -> Tensor:
    """The ids of the prompts with room for `tokens` ids after the start token, padded: (n, positions).

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
    """The encoder reads soft (n, k, d) as the token embeddings at positions slots (n, k), so that gradients reach
    them."""
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
    """The modules' parameters with requires_grad False, as they were afterwards."""
    before = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)
