"""P4D-K: free tokens between a prompt's own, so that the erased model predicts what the original does (2309.06135)."""

from dataclasses import replace
from itertools import pairwise

from rece import solver
from rece.attacks import Attempts, p4d_n

ACCESS, NEEDS, SETTINGS, applies = p4d_n.ACCESS, p4d_n.NEEDS, p4d_n.SETTINGS, p4d_n.applies


def attack(victim, prompts, seeds, *, original, concept, every: int = 3, **settings) -> Attempts:
    """Find a free token before each prompt and one after every `every` of its tokens: see `p4d_n.search`.

    The prompt's own tokens are never changed. A prompt of L tokens gets L // every + 1 free ones, as in the published
    code, where `every` is 3. settings: see `_denoise.Settings`.
    Ours: a free token that would fall inside a word of several tokens goes to the end of that word, because the
    result must be a text. Returned prompts are the tokenizer's spelling of the prompt (lower case for CLIP's).
    """
    settings, tokenizer, parts = replace(SETTINGS, **settings), victim.tokenizer, []
    solver.whole(every=every)
    for own in tokenizer(prompts, add_special_tokens=False).input_ids:
        pieces = enumerate(tokenizer.convert_ids_to_tokens(own), 1)
        ends = [0, *(i for i, piece in pieces if piece.endswith("</w>")), len(own)]  # of words, as CLIP spells them
        cuts = [min(end for end in ends if end >= cut) for cut in range(0, len(own) + 1, every)]
        between = [own[a:b] for a, b in pairwise([0, *cuts, len(own)])]
        decoded = tokenizer.batch_decode(between, clean_up_tokenization_spaces=False)
        parts.append([" ".join(text.split()) for text in decoded])
    return p4d_n.search(victim, original, prompts, seeds, parts, 1, "raise every", settings)
