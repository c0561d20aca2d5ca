"""MMA-Diffusion's text attack: words without the concept's name that the encoder pools like it (arXiv 2311.17516)."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from rece import solver, texts
from rece.attacks import Attempts, _tokens
from rece.images import bfloat16

ACCESS = "grey"
NEEDS = ()
applies = _tokens.applies


def attack(
    victim,
    prompts,
    seeds,
    *,
    original,
    concept,
    length: int = 20,
    steps: int = 1000,
    top_k: int = 256,
    batch: int = 512,
    bf16: bool | str = False,
    repeat: int = 0,
    progress: bool = True,
) -> Attempts:
    """Find `length` words whose pooled state is the prompt's: least 1 - cos(pooled(words), pooled(prompt)).

    Pooled is the text encoder's state at the first end token, as `pooler_output`. Only the original's text encoder is
    read; the victim is not looked at. Greedy coordinate gradient: a step takes the loss's gradient with respect to the
    one-hot tokens and keeps for each position the `top_k` words of lowest derivative (all, if there are fewer). Then
    it draws `batch` candidates. Each replaces one position by one of these words, all positions equally often, to
    within one. It moves to the candidate of the lowest loss, even if that is higher than before. Words of the concept
    and pieces of them take no part (see `_tokens.unnamed`).

    The default numbers are the paper's. Ours: we start from random words, the published attack from random letters. We
    return the best candidate of all steps. We take the gradient at each word's own position; the released script
    takes it one position too early, from the start token on. The encoder is causal, so we run it up to the end token
    only, which saves time and changes nothing else. Only words of `_tokens.whole_words` take part, because the result
    must be a text.

    losses: the lowest loss so far, per step. bf16: see `rece.images.bfloat16`. repeat: the attack again with other
    random draws, 0 or more. All draws come from one CPU generator per prompt, made from `repeat` and the prompt's
    seed, and each prompt is computed alone. progress: show a bar if it takes more than a second.
    """
    solver.whole(length=length, steps=steps, top_k=top_k, batch=batch)
    solver.whole(least=0, repeat=repeat)
    if batch < length:
        raise ValueError(f"batch must be at least length, because each position needs a candidate: {batch} < {length}")
    device, encoder, tokenizer = original.device, original.text_encoder, original.tokenizer
    blanks = _tokens.Blanks(original, [["", ""]], length, "lower length", _tokens.unnamed(tokenizer, concept))
    table = encoder.get_input_embeddings().weight[blanks.known].detach()
    top_k, bf16 = min(top_k, len(table)), bfloat16(device, bf16)
    position = torch.arange(batch, device=device) * length // batch

    def pooled(ids: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return encoder(ids)[0][:, -1].float()

    def loss(picks: Tensor, target: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(pooled(blanks.ids([0] * len(picks), picks)[:, : length + 2]), target)

    randoms = [np.random.default_rng([repeat, seed]) for seed in seeds]
    found, history = [], []
    bar = tqdm(total=len(prompts) * steps, desc="mma", delay=1, leave=False, disable=not progress)
    with bar, _tokens.frozen(encoder), torch.no_grad():
        for prompt, random in zip(prompts, randoms, strict=True):
            target = pooled(tokenizer([prompt], truncation=True, return_tensors="pt").input_ids.to(device))
            picks = torch.as_tensor(random.integers(len(table), size=length), device=device)
            best, least = picks, math.inf
            history.append([])
            for _ in range(steps):
                with torch.enable_grad():
                    soft = table[picks][None].requires_grad_()
                    with texts.replaced(encoder, blanks.slots, soft):
                        (slope,) = torch.autograd.grad(loss(picks[None], target).sum(), soft)
                good = (slope[0] @ table.T).topk(top_k, largest=False).indices
                drawn = torch.as_tensor(random.integers(top_k, size=batch), device=device)
                candidates = picks.repeat(batch, 1)
                candidates[torch.arange(batch, device=device), position] = good[position, drawn]
                losses = loss(candidates, target)
                picks, lowest = candidates[losses.argmin()], losses.min().item()
                if lowest < least:
                    best, least = picks, lowest
                history[-1].append(least)
                bar.update()
            found.append(blanks.text(0, best))
    return Attempts(found, seeds, losses=history)
