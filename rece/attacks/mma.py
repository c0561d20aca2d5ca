"""MMA-Diffusion's text attack: words without the concept's name that the encoder pools like it (arXiv 2311.17516)."""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from rece.attacks import Attempts, _tokens
from rece.images import bfloat16

ACCESS = "grey"


def attack(
    victim,
    prompts: list[str],
    seeds: list[int],
    *,
    original,
    concept: dict | list[dict],
    length: int = 20,
    steps: int = 1000,
    top_k: int = 256,
    batch: int = 512,
    bf16: bool | str = False,
    draw: int = 0,
    progress: bool = True,
) -> Attempts:
    """Find `length` words whose pooled state is the prompt's: least 1 - cos(pooled(words), pooled(prompt)).

    Pooled is the original's text encoder's state at the first end token, as `pooler_output`; the victim is not looked
    at. Greedy coordinate gradient: a step takes the loss's gradient with respect to the one-hot tokens, keeps for each
    position the `top_k` words (all, if there are fewer) of lowest derivative, draws `batch` candidates which each
    replace one position by one of these, the positions evenly, and moves to the candidate of the lowest loss, even if
    that is higher than before. Words of the concept and pieces of them take no part (see `unnamed`).

    Numbers are the paper's. Ours: the start is words drawn at random, where the published one is random letters; the
    best candidate of all steps is returned; a prompt is its words' ids, where the released script takes gradients one
    position too early, at the start token's, so that its last token is never ranked by its own. The encoder is causal,
    so it is run up to the end token only, which changes nothing but the time.

    losses: the lowest loss so far, per step. bf16: see `generate.bfloat16`. draw: another number makes other draws.
    All draws come from one CPU generator per prompt, made from `draw` and the prompt's seed, and no prompt is computed
    with another one, so that same seeds give the same words on the same machine, whatever the other prompts are.
    progress: show a bar if it takes more than a second.

    Returned prompts are texts whose tokenisation is exactly the ids that were attacked.
    Raises ValueError naming the parameter before anything is computed.
    """
    checked_counts(original, length, {"steps": steps, "top_k": top_k, "batch": batch}, draw)
    if batch < length:
        raise ValueError(f"batch must be at least length, so that each position has a candidate: {batch} < {length}")
    words, ids = unnamed(original.tokenizer, concept)
    device, encoder, tokenizer = original.device, original.text_encoder, original.tokenizer
    ids, empty = ids.to(device), tokenizer("", padding="max_length", return_tensors="pt").input_ids[0].to(device)
    table = encoder.get_input_embeddings().weight[ids].detach()
    slots = torch.arange(1, length + 1, device=device)[None]
    top_k, bf16 = min(top_k, len(ids)), bfloat16(device, bf16)
    position = torch.arange(batch, device=device) * length // batch

    def pooled(full: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return encoder(full)[0][:, -1].float()

    def loss(picks: Tensor, target: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(pooled(framed(ids[picks], empty)[:, : length + 2]), target)

    randoms = [np.random.default_rng([draw, seed]) for seed in seeds]
    found, history = [], []
    bar = tqdm(total=len(prompts) * steps, desc="mma", delay=1, leave=False, disable=not progress)
    with bar, _tokens.frozen(encoder), torch.no_grad():
        for prompt, random in zip(prompts, randoms, strict=True):
            target = pooled(tokenizer([prompt], truncation=True, return_tensors="pt").input_ids.to(device))
            picks = torch.as_tensor(random.integers(len(ids), size=length), device=device)
            history.append([])
            for _ in range(steps):
                with torch.enable_grad():
                    soft = table[picks][None].requires_grad_()
                    with _tokens.replaced(encoder, slots, soft):
                        (slope,) = torch.autograd.grad(loss(picks[None], target).sum(), soft)
                good = (slope[0] @ table.T).topk(top_k, largest=False).indices
                drawn = torch.as_tensor(random.integers(top_k, size=batch), device=device)
                candidates = picks.repeat(batch, 1)
                candidates[torch.arange(batch, device=device), position] = good[position, drawn]
                losses = loss(candidates, target)
                picks, lowest = candidates[losses.argmin()], losses.min().item()
                if not history[-1] or lowest < history[-1][-1]:
                    best = picks
                history[-1].append(min([lowest, *history[-1][-1:]]))
                bar.update()
            text = " ".join(words[pick] for pick in best.tolist())
            found.append(_tokens.checked(tokenizer, text, framed(ids[best][None], empty)[0].tolist()))
    return Attempts(found, seeds, losses=history)


def unnamed(tokenizer, concept: dict | list[dict]) -> tuple[list[str], Tensor]:
    """The whole words (see _tokens.whole_words) that neither contain a word of concept["words"] nor are a piece of
    one, in whatever case: (words, ids). Of a name of several words, the longest one must not be contained.

    So no sequence of them, joined by spaces, contains a word of the concept. Held-out words may occur. The published
    attack forbids 18 words and four pieces by hand. Raises ValueError if no word is left.
    """
    members = [concept] if isinstance(concept, dict) else concept
    names = [name.lower() for member in members for name in member["words"]]
    longest = [max(re.findall(r"\w+", name) or [name], key=len) for name in names]
    words, ids = _tokens.whole_words(tokenizer)
    kept = [
        i
        for i, word in enumerate(map(str.lower, words))
        if not any(word in name for name in names) and not any(name in word for name in longest)
    ]
    if not kept:
        raise ValueError(f"no whole word of the tokenizer is free of {', '.join(names)}: leave this attack out")
    return [words[i] for i in kept], ids[kept]


def framed(ids: Tensor, empty: Tensor) -> Tensor:
    """ids (k, length) between the start and the end token, padded: (k, positions). empty: the ids of the text ""."""
    k, length = ids.shape
    return torch.cat([empty[:1].expand(k, 1), ids, empty[1 : len(empty) - length].expand(k, -1)], 1)


def checked_counts(original, length: int, counts: dict[str, int], draw: int) -> None:
    """Raise ValueError unless the numbers are whole, 1 or more (draw: 0 or more), and the model can read `length`
    words."""
    if getattr(original, "text_encoder_2", None) is not None:
        raise ValueError("pipelines with two text encoders are not supported: leave this attack out")
    for name, count in ({"length": length} | counts | {"draw": draw}).items():
        least = 0 if name == "draw" else 1
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"{name} must be a whole number, {least} or more, not {count!r}")
    room = original.tokenizer.model_max_length - 2
    if length > room:
        raise ValueError(f"length must be at most {room}, which is what the text encoder has room for, not {length}")
