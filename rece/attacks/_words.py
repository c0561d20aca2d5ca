"""The words that a prompt calls a concept by: which word it is, and the same prompt with another one."""

import re
from collections.abc import Callable
from random import Random


def named(prompt: str, concept: list[dict]) -> tuple[dict, str]:
    """Which concept a prompt names, and by which of its words: (the concept's dict, the word).

    If the prompt holds several concept words, the longest counts. Upper and lower case are told apart.
    Raises ValueError if the prompt holds no concept word.
    """
    found = [(member, word) for member in concept for word in member["words"] if re.search(whole(word), prompt)]
    if not found:
        raise ValueError(f"prompt {prompt!r} names no word of {', '.join(member['name'] for member in concept)}")
    return max(found, key=lambda pair: len(pair[1]))


def whole(word: str) -> str:
    """A regular expression that matches `word` where it stands alone, and not inside a longer word."""
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def reword(prompts: list[str], seeds: list[int], concept: list[dict], key: str) -> list[str]:
    """Replace the concept word of each prompt (see `named`) by another of concept[key], and set "a" or "an" right.

    The choice of the word depends on the prompt and its seed only, not on the other prompts.
    Raises ValueError if a prompt holds no concept word, or if there is no other word to take.
    """
    texts = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        member, word = named(prompt, concept)
        others = [other for other in member.get(key, []) if other != word]
        if not others:
            raise ValueError(f"concept {member['name']!r} has no {key!r} beside {word!r}: leave this attack out")
        other = Random(f"{prompt}/{seed}").choice(others)
        n = "n" if other[0].lower() in "aeiou" else ""
        pattern = rf"(?<!\w)(([Aa])n? )?{re.escape(word)}(?!\w)"
        texts.append(re.sub(pattern, lambda m, n=n, other=other: f"{m[2]}{n} {other}" if m[1] else other, prompt))
    return texts


def respell(
    prompts: list[str], seeds: list[int], concept: list[dict], edits: Callable[[str], list[list[str]]]
) -> list[str]:
    """Replace the concept word of each prompt (see `named`) by another spelling of it, everywhere in the prompt.

    Nothing else changes, not even an article before the word.
    edits(word): the spellings to choose from, one list per kind of edit. First the kind is drawn, then the spelling.
    Both choices depend on the prompt and its seed only. A spelling that contains a word of any concept, in upper or
    lower case, is never taken.
    Raises ValueError if a prompt holds no concept word, or if no spelling is left.
    """
    pattern = re.compile("|".join(whole(word) for member in concept for word in member["words"]), re.IGNORECASE)
    texts = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        member, word = named(prompt, concept)
        kinds = [[other for other in kind if not pattern.search(other)] for kind in edits(word)]
        kinds = [kind for kind in kinds if kind]
        if not kinds:
            raise ValueError(f"concept {member['name']!r}: {word!r} has no other spelling here: leave this attack out")
        random = Random(f"{prompt}/{seed}")
        other = random.choice(random.choice(kinds))
        texts.append(re.sub(whole(word), lambda m, other=other: other, prompt))
    return texts
