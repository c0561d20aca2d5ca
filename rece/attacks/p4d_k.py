"""P4D-K: free tokens between a prompt's own, so that the erased model predicts what the original does (2309.06135)."""

from dataclasses import replace

from diffusers import DiffusionPipeline

from rece.attacks import Attempts, _tokens, p4d_n

ACCESS, NEEDS, SETTINGS, applies = p4d_n.ACCESS, p4d_n.NEEDS, p4d_n.SETTINGS, p4d_n.applies


def attack(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    original: DiffusionPipeline,
    concept: dict | list[dict] | None = None,
    every: int = 3,
    **settings,
) -> Attempts:
    """Find a free token before each prompt and one after every `every` of its tokens: see `p4d_n.search`.

    The prompt's own tokens are never changed. A prompt of L tokens gets L // every + 1 free ones, as in the published
    code, where `every` is 3. settings: see `_denoise.Settings`.
    Ours: a free token that would fall inside a word of several tokens goes to the end of that word, because the
    result must be a text. Returned prompts are the tokenizer's spelling of the prompt (lower case for CLIP's).
    Raises ValueError that names the parameter, before anything is drawn.
    """
    settings = replace(SETTINGS, **settings)
    _tokens.check_counts({"every": every})
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

    return p4d_n.search(victim, original, prompts, seeds, ids, slots, compose, settings)


def _cuts(pieces: list[str], every: int) -> list[int]:
    """The indices of the prompt's tokens that a free one goes before. pieces: the tokens in CLIP's spelling."""
    ends = [0, *(i for i, piece in enumerate(pieces, 1) if piece.endswith("</w>")), len(pieces)]
    return [min(end for end in ends if end >= cut) for cut in range(0, len(pieces) + 1, every)]
