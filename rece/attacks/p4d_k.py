"""P4D-K: free tokens between a prompt's own, so that the erased model predicts what the original does (2309.06135)."""

from collections.abc import Callable

import numpy as np
from diffusers import DiffusionPipeline

from rece.attacks import Attempts, _denoise
from rece.attacks.p4d_n import search

ACCESS = "white"


def attack(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    original: DiffusionPipeline,
    concept: dict | list[dict] | None = None,
    every: int = 3,
    updates: int = 3000,
    lr: float = 0.1,
    weight_decay: float = 0.1,
    check_every: int = 50,
    score_times: int = 4,
    succeeded: Callable[[list[str], list[int]], list[bool]] | None = None,
    images: np.ndarray | None = None,
    steps: int = 25,
    guidance: float = 7.5,
    batch_size: int = 16,
    bf16: bool | str = False,
    draw: int = 0,
    progress: bool = True,
) -> Attempts:
    """Find a free token before each prompt and after every `every` of its tokens (published: 3): see `p4d_n.search`.

    The prompt's own tokens are frozen. A prompt of L tokens gets L // every + 1 free ones, as in the published code.
    Ours: one that would fall inside a word of several tokens goes to the end of that word, so that the text can be
    written. Returned prompts are the tokenizer's spelling of the prompt (lower case for CLIP's).
    Raises ValueError naming the parameter, before anything is drawn.
    """
    counts = {"every": every, "updates": updates, "check_every": check_every, "score_times": score_times}
    counts |= {"steps": steps, "batch_size": batch_size}
    _denoise.check(victim, prompts, seeds, images, counts=counts, rates={"lr": lr, "weight_decay": weight_decay})
    tokenizer, filled, slots, pieces = victim.tokenizer, [], [], []
    positions = tokenizer.model_max_length
    for prompt in prompts:
        start, *own, end = tokenizer(prompt).input_ids
        cuts = _cuts(tokenizer.convert_ids_to_tokens(own), every)
        if len(own) + len(cuts) + 2 > positions:
            raise ValueError(
                f"prompt {prompt!r} has {len(own)} tokens, and with {len(cuts)} more it does not fit into the "
                f"{positions - 2} there is room for: shorten it or raise every"
            )
        parts = [own[a:b] for a, b in zip([0, *cuts], [*cuts, len(own)], strict=True)]
        pieces.append(tokenizer.batch_decode(parts, clean_up_tokenization_spaces=False))
        slots.append([1 + cut + i for i, cut in enumerate(cuts)])
        row = [start, *parts[0], *(i for part in parts[1:] for i in (end, *part)), end]
        filled.append({"input_ids": row})
    ids = tokenizer.pad(filled, padding="max_length", max_length=positions, return_tensors="pt").input_ids

    def compose(row: int, words: list[str]) -> str:
        first, *rest = pieces[row]
        return " ".join(
            " ".join([first, *(f"{word} {piece}" for word, piece in zip(words, rest, strict=True))]).split()
        )

    return search(
        victim, prompts, seeds, ids, slots, compose, original=original, updates=updates, lr=lr,
        weight_decay=weight_decay, check_every=check_every, score_times=score_times, succeeded=succeeded,
        images=images, steps=steps, guidance=guidance, batch_size=batch_size, bf16=bf16, draw=draw, progress=progress,
    )  # fmt: skip


def _cuts(pieces: list[str], every: int) -> list[int]:
    """Before which of the prompt's tokens, in CLIP's spelling, a free one goes."""
    ends = [0, *(i for i, piece in enumerate(pieces, 1) if piece.endswith("</w>")), len(pieces)]
    return [min(end for end in ends if end >= cut) for cut in range(0, len(pieces) + 1, every)]
