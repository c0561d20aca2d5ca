"""Token ids in attacks: whole words, free places in a prompt, embeddings in place of tokens; and common checks."""

import re
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rece import families


def applies(pipe) -> str:
    """An empty text if the model reads a prompt's tokens and nothing else; else why the attack does not apply."""
    alone = families.reads_tokens_alone(pipe)
    return "" if alone else "the model must read a prompt's tokens and nothing else: leave this attack out"


def whole_words(tokenizer) -> tuple[list[str], Tensor]:
    """The words that are one token each: the token's text tokenises back to that one id.

    Such words are printable and hold no space. Special tokens are left out.
    Returns (words, ids), ids a (words,) long tensor on the CPU.
    """
    special = set(tokenizer.all_special_ids)
    every = [i for i in range(len(tokenizer)) if i not in special]
    texts = [text.strip() for text in tokenizer.batch_decode([[i] for i in every])]
    back = tokenizer(texts, add_special_tokens=False).input_ids
    found = {
        i: text
        for text, i, ids in zip(texts, every, back, strict=True)
        if ids == [i] and text.isprintable() and text.split() == [text]
    }
    return list(found.values()), torch.tensor(list(found))


def unnamed(tokenizer, concept: list[dict]) -> tuple[list[str], Tensor]:
    """The whole words (see `whole_words`) that do not name the concept: (words, ids), ids long, on the CPU.

    A word is left out if it contains a word of concept["words"] or is a piece of one, in upper or lower case. If a
    name has several words, only its longest one must not be contained. So no sequence of the words that remain,
    joined by spaces, contains a word of the concept. Held-out words may occur. The published attack forbids 18 words
    and four pieces by hand. Raises ValueError if no word is left.
    """
    names = [name.lower() for member in concept for name in member["words"]]
    longest = [max(re.findall(r"\w+", name) or [name], key=len) for name in names]
    words, ids = whole_words(tokenizer)
    kept = [
        i
        for i, word in enumerate(map(str.lower, words))
        if not any(word in name for name in names) and not any(name in word for name in longest)
    ]
    if not kept:
        raise ValueError(f"no whole word of the tokenizer is free of {', '.join(names)}: leave this attack out")
    return [words[i] for i in kept], ids[kept]


class Blanks:
    """Prompts in parts, with `tokens` free places between one part and the next, for words of `whole_words`.

    words: (words, ids) that take part, by default all. known: these ids. picks: indices of words, (rows, most).
    empty: ids (n, positions), padded to the tokenizer's full length, with the end token in the free places.
    slots: the free positions (n, most), padded with 0. All are long tensors on the pipe's device.
    Raises ValueError that says the remedy if a prompt is too long.
    """

    def __init__(self, pipe, prompts: list[list[str]], tokens: int, remedy: str, words=None):
        self.tokenizer, self.prompts, self.tokens = pipe.tokenizer, prompts, tokens
        positions, (start, end) = self.tokenizer.model_max_length, self.tokenizer("").input_ids
        rows, slots = [], []
        for parts in prompts:
            first, *rest = self.tokenizer(parts, add_special_tokens=False).input_ids
            row, free = [start, *first], []
            for part in rest:
                free += range(len(row), len(row) + tokens)
                row += [end] * tokens + part
            if len(row) >= positions:
                n, more = len(row) - 1 - len(free), len(free)
                raise ValueError(
                    f"prompt {' '.join(filter(None, parts))!r} has {n} tokens, and with {more} more it does "
                    f"not fit into the {positions - 2} there is room for: shorten it or {remedy}"
                )
            rows.append([*row, end])
            slots.append(torch.tensor(free))
        padded = self.tokenizer.pad({"input_ids": rows}, "max_length", positions, return_tensors="pt").input_ids
        self.words, known = words or whole_words(self.tokenizer)
        parts = (known, padded, pad_sequence(slots, batch_first=True))
        self.known, self.empty, self.slots = (part.to(pipe.device) for part in parts)

    def ids(self, rows: list[int], picks: Tensor) -> Tensor:
        """The ids (rows, positions) of the prompts with these words."""
        empty, slots = self.empty[rows], self.slots[rows]
        return empty.scatter(1, slots, torch.where(slots > 0, self.known[picks], empty[:, :1]))

    def text(self, row: int, picks: Tensor) -> str:
        """The text of one prompt with these words. Raises RuntimeError if its tokenisation is not exactly `ids`."""
        words = iter([self.words[pick] for pick in picks.tolist()])
        first, *rest = self.prompts[row]
        parts = [first, *(part for after in rest for part in (*islice(words, self.tokens), after))]
        text, ids = " ".join(filter(None, parts)).rstrip(), self.ids([row], picks[None])[0].tolist()
        if self.tokenizer(text, padding="max_length", max_length=len(ids)).input_ids != ids:
            raise RuntimeError(f"{text!r} does not tokenise to the ids that were attacked")
        return text


@contextmanager
def frozen(*modules: torch.nn.Module):
    """The modules' parameters are frozen (requires_grad False) inside the block and restored after it."""
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
