"""The texts of a pipeline: how prompts become embeddings, and which of their positions stand for a concept.

The pooled embedding is a text space of its own with a single position.
"""

import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import resources

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from rece import solver
from rece.families import TOKENIZERS, family
from rece.layers import width

SD_TOKEN = 768.0  # squared norm of a Stable Diffusion 1.x token, the scale that the paper's lambdas belong to
BATCH = 64  # texts that are encoded at once
ROW_LIMIT = 2  # widths d: more token rows than that are compressed to that many, see `solver.compress`


def encoders(pipe: DiffusionPipeline) -> list[str]:
    """What the text encoders are, in words: a map fits only pipelines that share them."""
    return [
        f"{type(e).__name__} width {e.config.hidden_size}, {e.config.num_hidden_layers} layers, "
        f"{e.config.vocab_size} tokens"
        for e in _encoders(pipe)
    ]


def fingerprint(pipe: DiffusionPipeline) -> list[float]:
    """Numbers that tell text encoders with other weights apart, see `solver.sketch`."""
    return [number for one in _encoders(pipe) for number in solver.sketch(one.parameters())]


def _encoders(pipe: DiffusionPipeline) -> list[torch.nn.Module]:
    found = [getattr(pipe, f"text_encoder{n}", None) for n in ("", "_2", "_3")]
    return [one for one in found if one is not None]


@torch.no_grad()
def encode(pipe: DiffusionPipeline, prompts: list[str], path: str = "tokens", progress: bool = True) -> Tensor:
    """The embeddings the model reads: (n, positions, d) float64 on the pipeline's device (CPU for MPS).

    Of the pooled path there is one position. Positions that the model masks out are zero. Encoded in the text
    encoder's own dtype. progress: show a bar if it takes several batches and more than a second.
    Raises ValueError if prompts is empty or an embedding is not finite.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError("prompts must be a list of at least one text")
    embeds = torch.cat([_encode(pipe, some, path) for some in batches(prompts, BATCH, progress)])
    if not torch.isfinite(embeds).all():
        raise ValueError("the text encoder returns values that are not finite: reload the model, or use another dtype")
    return embeds


def encode_gram(
    pipe: DiffusionPipeline,
    prompts: list[str],
    path: str = "tokens",
    last: bool = False,
    progress: bool = True,
) -> Tensor:
    """P^T P for P = all tokens of all prompts: (d, d) float64, summed up batch by batch.

    Preserve sets enter the closed form through it alone, so no more than one batch of thousands of prompts is held. A
    text that is given several times is encoded once and weighted. last: take each prompt's last word token alone.
    Device, bar and errors as in `encode`.
    """
    if not prompts:
        raise ValueError("prompts must be a list of at least one text")
    found, counts = 0, Counter(prompts)
    for some in batches(list(counts), BATCH, progress):
        weight = torch.tensor([counts[text] for text in some], dtype=torch.float64).sqrt()
        embeds = encode(pipe, some, path)
        if last:
            pairs = zip(embeds, some, strict=True)
            embeds = torch.stack([rows[last_positions(pipe, text, path)] for rows, text in pairs])
        P = (embeds * weight.to(embeds.device)[:, None, None]).flatten(0, 1)
        found = found + P.T @ P
    return found


def batches(items: list, size: int, progress: bool = True) -> Iterator[list]:
    """The items, `size` of them at a time, with a bar "encode" if they are several batches of more than a second."""
    starts = range(0, len(items), size)
    hidden = {"disable": True} if len(starts) < 2 or not progress else {}  # disable=False would override TQDM_DISABLE
    for start in tqdm(starts, desc="encode", delay=1, leave=False, **hidden):
        yield items[start : start + size]


def positions(pipe: DiffusionPipeline, path: str = "tokens") -> int:
    """How many positions the embedding of one prompt has; 1 of the pooled path."""
    return _segments(pipe, path)[-1][1]


def last_position(pipe: DiffusionPipeline, prompt: str) -> int:
    """The position of the prompt's last token before the end token; 0 for an empty prompt.

    Of several tokenizers' positions (Stable Diffusion 3) it is the first one's.
    """
    return last_positions(pipe, prompt)[0]


def last_positions(pipe: DiffusionPipeline, prompt: str, path: str = "tokens", after: int = 0) -> list[int]:
    """The positions of the prompt's last word token, one for each tokenizer of the path; [0] of the pooled path.

    after=1: those of the end token, which follows it. T5 has no start token, so there an empty prompt's end token is
    at 0.
    """
    tidy = family(pipe).tidy
    text, found = prompt if tidy is None else getattr(pipe, tidy)(prompt)[0], []
    for start, end, tokenizer in _segments(pipe, path):
        tokens = tokenizer(text, max_length=end - start, truncation=True).attention_mask if tokenizer else []
        found.append(start + max(0, sum(tokens) - 2 + after))
    return found


@torch.no_grad()
def last_tokens(pipe: DiffusionPipeline, some: list[str], path: str = "tokens", after: int = 0) -> Tensor:
    """Each text's last word token, or with after=1 its end token: (texts, d) float64 on the pipeline's device.

    Of several tokenizers' positions it is in the first one's.
    """
    found = batches(list(some), BATCH, progress=False)
    return torch.cat([last_tokens_of(pipe, batch, encode(pipe, batch, path=path), path, after) for batch in found])


def last_tokens_of(pipe: DiffusionPipeline, some: list[str], embeds: Tensor, path: str, after: int = 0) -> Tensor:
    """`last_tokens` of texts whose embeddings, (texts, positions, d), are known."""
    at = [last_positions(pipe, text, path, after)[0] for text in some]
    return embeds[torch.arange(len(some)), at]


@torch.no_grad()
def gram_and_ends(
    pipe: DiffusionPipeline, prompts: list[str], path: str = "tokens", progress: bool = True
) -> tuple[Tensor, Tensor]:
    """P^T P for P = all tokens of all prompts, (d, d), and each prompt's token after its last word, (n, d).

    What `encode_gram` and `last_tokens` return, float64, of prompts that are encoded once. Of none, zeros and no
    rows.
    """
    d = width(pipe, path)
    found, ends = torch.zeros(d, d, dtype=torch.float64), [torch.zeros(0, d, dtype=torch.float64)]
    for some in batches(prompts, BATCH, progress):
        embeds = encode(pipe, some, path=path)
        P = embeds.flatten(0, 1)
        found = found.to(P) + P.T @ P
        ends.append(last_tokens_of(pipe, some, embeds, path, after=1))
    return found, torch.cat([part.to(found) for part in ends])


def matched(pipe: DiffusionPipeline, concept: str, target: str, path: str = "tokens") -> tuple[list[int], list[int]]:
    """The rows of a concept's embedding and those of its target's that UCE matches, one by one.

    From the last word on, trimmed to equal length, for each tokenizer of the path; the one row of the pooled path.
    Source: UCE's first code, which RECE builds on.
    """
    rows, aims = [], []
    last = zip(last_positions(pipe, concept, path), last_positions(pipe, target, path), strict=True)
    for (i, j), (_, end, _) in zip(last, _segments(pipe, path), strict=True):
        rows += range(i, i + end - max(i, j))
        aims += range(j, j + end - max(i, j))
    return rows, aims


def names(text: str, concepts: list[str]) -> bool:
    """Whether a text names one of the concepts, as whole words."""
    return any(f" {concept.lower()} " in f" {text.lower()} " for concept in concepts)


def everyday() -> list[str]:
    """Some twelve hundred everyday words and short captions, which `guard` preserves by default: our own choice."""
    return resources.files("rece").joinpath("everyday.txt").read_text("utf-8").splitlines()


def concepts_of(concept: str | list[str]) -> list[str]:
    """One text or several as a list. Raises TypeError or ValueError if it is no text, or one is empty."""
    concepts = [concept] if isinstance(concept, str) else listed(concept, "concept")
    if not concepts or not all(text.strip() for text in concepts):
        raise ValueError("concept must be a text, or a list of texts, none of them empty")
    return concepts


def ids(pipe: DiffusionPipeline, text: str) -> list[list[int]]:
    """The tokens of a text without those that open and close it, a list per tokenizer, not cut.

    Two texts with the same tokens are one text to the model.
    """
    tidy = family(pipe).tidy
    text = text if tidy is None else getattr(pipe, tidy)(text)[0]
    tokenizers = [tokenizer for _, _, tokenizer in _segments(pipe, "tokens")]
    return [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for tokenizer in tokenizers]


def check(pipe: DiffusionPipeline, **lists: list[str]) -> None:
    """Raises ValueError, naming the parameter, if the model would not read one of the texts as it stands.

    That is a text with an invisible character, with the name of a special token, or longer than the model reads.
    """
    tokenizers = [tokenizer for _, _, tokenizer in _segments(pipe, "tokens")]
    special = {name.lower() for one in tokenizers for name in one.all_special_tokens if len(name) > 1}
    for name, some in lists.items():
        for text in dict.fromkeys(some):
            hidden = next((one for one in text if not one.isprintable() and not one.isspace()), None)
            if hidden is not None:
                raise ValueError(
                    f"{name}: {ascii(text)[:60]} holds {ascii(hidden)}, an invisible character: leave it out"
                )
            if found := [token for token in special if token in text.lower()]:
                raise ValueError(f"{name}: {solver.shown(text)} holds {found[0]}, a special token: leave it out")
            if over := beyond(pipe, text):
                raise ValueError(
                    f"{name}: {solver.shown(text)} has {over} tokens more than this model reads: shorten it"
                )


def beyond(pipe: DiffusionPipeline, text: str) -> int:
    """How many of a text's tokens the model does not read, because it has too few positions."""
    segments = [(end - start, tokenizer) for start, end, tokenizer in _segments(pipe, "tokens")]
    rooms = [room - tokenizer.num_special_tokens_to_add() for room, tokenizer in segments]
    return max([0, *(len(own) - room for own, room in zip(ids(pipe, text), rooms, strict=True))])


def check_erased(
    pipe: DiffusionPipeline, concepts: list[str], targets: list[str], preserve: list[str] | None = None
) -> None:
    """Raises ValueError, naming the parameter, if `check` does, a concept stands twice, or a target names its concept.

    Two spellings of the same tokens are one concept. Warns of a concept that ends in a character such as a full
    stop, as the edit acts on its last token, and of one that is preserved too.
    """
    check(pipe, concept=concepts, target=targets)
    seen, kept = {}, {str(ids(pipe, text)): text for text in dict.fromkeys(preserve or [])}
    for concept, target in zip(concepts, targets, strict=True):
        own = ids(pipe, concept)
        spelt = str(own)
        if spelt in seen:
            raise ValueError(f"concept: {concept!r} is the same tokens as {seen[spelt]!r}: give it once")
        seen[spelt] = concept
        if any(part and _within(part, whole) for part, whole in zip(own, ids(pipe, target), strict=True)):
            raise ValueError(f"target: {target!r} names the concept {concept!r}: choose a text without it")
        if not concept.rstrip()[-1].isalnum():
            warnings.warn(
                f"concept: {concept!r} ends in {concept.rstrip()[-1]!r}: the edit acts on that token, in every text",
                stacklevel=3,
            )
        if spelt in kept:
            warnings.warn(f"preserve: {kept[spelt]!r} is erased too, which weakens both", stacklevel=3)


def _within(part: list[int], whole: list[int]) -> bool:
    """Whether the tokens of one text stand in another's, in their order and side by side."""
    return any(whole[n : n + len(part)] == part for n in range(len(whole) - len(part) + 1))


def with_synonyms(concepts: list[str], synonyms: list[str] | dict[str, list[str]] | None) -> list[list[str]]:
    """For each concept all of its texts, its name first.

    synonyms: one list for one concept, or a list per concept. Raises TypeError or ValueError naming the parameter.
    """
    if isinstance(synonyms, dict):
        unknown = [name for name in synonyms if name not in concepts]
        if unknown:
            raise ValueError(f"synonyms: {unknown[0]!r} is none of the concepts")
    elif synonyms and len(concepts) > 1:
        raise ValueError("synonyms must be a dict with a list per concept where there are several concepts")
    lists = synonyms if isinstance(synonyms, dict) else dict.fromkeys(concepts, synonyms or [])
    found = [[name, *listed(lists.get(name, []), "synonyms")] for name in concepts]
    if not all(text.strip() for some in found for text in some):
        raise ValueError("synonyms must be texts, none of them empty")
    return found


def targets_of(target: str | list[str], concepts: list[str]) -> list[str]:
    """One target per concept. Raises TypeError or ValueError if they are not texts, one or as many as concepts."""
    targets = [target] * len(concepts) if isinstance(target, str) else listed(target, "target")
    if len(targets) != len(concepts):
        raise ValueError(
            f"target must be one text or one per concept: {len(targets)} targets for {len(concepts)} concepts"
        )
    return targets


def listed(value: list[str], name: str) -> list[str]:
    """The texts as a list. Raises TypeError, naming the parameter, if it is not a list of texts."""
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{name} must be a list of texts, not {solver.shown(value)}")
    return list(value)


def erased_tokens(
    pipe: DiffusionPipeline,
    path: str,
    pairs: list[tuple[str, str]],
    device: torch.device,
    *,
    last: bool = False,
    progress: bool = True,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """What an edit reads of (concept, target) pairs: the rows of the UCE start, those of the rounds, and the words.

    Returns K and T of the start, K and T of the rounds (see `matched`; the rounds take all positions that are read),
    and the concepts' last word tokens, (concepts, d). float64 on `device`. last: the start takes the last words alone.

    Where all positions of all concepts are at most ROW_LIMIT * d rows, they stay rows. More are read in batches of
    that size and compressed to that many. Counted: n rows cost 4 n d^2 operations per solve, and compressing them once
    8 n d^2 and one eigendecomposition of width 2 d.
    """
    few = len(pairs) <= _at_once(pipe, path)
    sums, words = [0, 0], []
    for some, C, T in embedded(pipe, path, pairs, device, progress):
        *rows, word = _rows(pipe, path, some, C, T, last)
        words.append(word)
        if not few:
            sums = [total + solver.gram_of_pairs(*pair) for total, pair in zip(sums, rows, strict=True)]
    first, later = rows if few else map(solver.compress, sums)
    return first, later, torch.cat(words)


def embedded(
    pipe: DiffusionPipeline, path: str, pairs: list[tuple[str, str]], device: torch.device, progress: bool = True
) -> Iterator[tuple[list[tuple[str, str]], Tensor, Tensor]]:
    """Some (concept, target) pairs at a time, with the embeddings of their concepts, C, and of their targets, T.

    ROW_LIMIT * d rows at a time. More pairs come in the order of their targets, so that a target of many concepts is
    encoded once. C, T: (pairs, positions, d) float64 on `device`. Masked positions are zero in C, and in T they repeat
    the last token.
    """
    size, known = _at_once(pipe, path), {}
    if len(pairs) > size:
        pairs = sorted(pairs, key=lambda pair: pair[1])
    for some in batches(pairs, size, progress):
        asked = list(dict.fromkeys(text for side in zip(*some, strict=True) for text in side))
        new = [text for text in asked if text not in known]
        known = {text: known[text] for text in asked if text in known}
        if new:
            known |= zip(new, encode(pipe, new, path=path, progress=progress).to(device), strict=True)
        C = torch.stack([known[concept] for concept, _ in some])
        yield some, C, torch.stack([_extended(known[target]) for _, target in some])


def token_scale(pipe: DiffusionPipeline, path: str) -> float:
    """Mean squared norm of the tokens of "" that are read, in units of SD_TOKEN."""
    tokens = encode(pipe, [""], path=path).flatten(0, 1)
    return tokens[tokens.any(-1)].square().sum(-1).mean().item() / SD_TOKEN


def final_norm(pipe: DiffusionPipeline) -> tuple[Tensor, Tensor]:
    """gamma and beta, (d,) float64 each, of the LayerNorm that every prompt token leaves the encoder by.

    Raises TypeError if the pipeline's prompt embedding is not the output of one such norm.
    """
    name = family(pipe).readers["tokens"].norm
    encoder = getattr(pipe, name) if name else torch.nn.Module()
    norms = [
        module
        for name, module in encoder.named_modules()
        if name.split(".")[-1] == "final_layer_norm" and isinstance(module, torch.nn.LayerNorm)
    ]
    kind = f"{type(pipe).__name__} with {', '.join(encoders(pipe)) or 'no text encoder'}"
    remedy = "certificates need a pipeline like Stable Diffusion 1.x or 2.x"
    if len(norms) != 1:
        raise TypeError(f"the prompt embedding of {kind} does not leave one final LayerNorm: {remedy}")
    gamma, beta = (solver.precise(part) for part in (norms[0].weight, norms[0].bias))
    x = (encode(pipe, [""])[0].to(gamma.device) - beta) / gamma
    if not (x.mean(-1).abs().max() < 1e-2 and x.square().mean(-1).max() < 1.01):
        raise TypeError(f"the prompt embedding of {kind} is not the output of its final LayerNorm: {remedy}")
    return gamma, beta


def _at_once(pipe: DiffusionPipeline, path: str) -> int:
    """How many concepts have ROW_LIMIT * d rows."""
    return max(1, ROW_LIMIT * width(pipe, path) // positions(pipe, path))


def _rows(
    pipe: DiffusionPipeline, path: str, pairs: list[tuple[str, str]], C: Tensor, T: Tensor, last: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """K and T of the start, K and T of the rounds, and the last word tokens, of concepts with their targets.

    C, T: see `embedded`. last: the start takes the last words alone.
    """
    if last:
        cuts = [tuple(last_positions(pipe, text, path) for text in pair) for pair in pairs]
    else:
        cuts = [matched(pipe, *pair, path) for pair in pairs]
    K_start = torch.cat([C[n, rows] for n, (rows, _) in enumerate(cuts)])
    T_start = torch.cat([T[n, rows] for n, (_, rows) in enumerate(cuts)])
    words = torch.stack([C[n, rows[0]] for n, (rows, _) in enumerate(cuts)])
    C, T = C.flatten(0, 1), T.flatten(0, 1)
    read = C.any(-1)  # positions that the model masks out are zero
    return (K_start, T_start), (C[read], T[read]), words


def _extended(T: Tensor) -> Tensor:
    """A target (positions, d) whose masked positions, which are zero, repeat its last token: a concept may be longer
    than its target."""
    read = T.any(-1).nonzero()[:, 0]
    return T if len(read) in (0, len(T)) else torch.where(T.any(-1)[:, None], T, T[read[-1]])


def _segments(pipe: DiffusionPipeline, path: str) -> list[tuple[int, int, object]]:
    """Where each tokenizer's positions start and end, and the tokenizer; of the pooled path one position, and None.

    Raises TypeError for a tokenizer whose end tokens are not known, or if there is none.
    """
    names = family(pipe).readers[path].tokenizers
    if not names:
        return [(0, 1, None)]
    found, end = [], 0
    for name, keyword in names.items():
        tokenizer = getattr(pipe, name)
        if tokenizer is None:
            continue
        if not type(tokenizer).__name__.startswith(TOKENIZERS):
            raise TypeError(
                f"pipe.{name} is a {type(tokenizer).__name__}, and where its texts end is not known: add it to "
                "TOKENIZERS in rece/families.py if it closes a text by one end token"
            )
        own = tokenizer.model_max_length
        length = own if keyword is None else inspect.signature(pipe.encode_prompt).parameters[keyword].default
        found.append((end, end + length, tokenizer))
        end += length
    if not found:
        raise TypeError(f"pipe is a {type(pipe).__name__} without {' or '.join(names)}: it is not supported")
    return found


def _encode(pipe: DiffusionPipeline, prompts: list[str], path: str) -> Tensor:
    one = family(pipe)
    reader = one.readers[path]
    found = pipe.encode_prompt(prompt=prompts, device=pipe._execution_device, num_images_per_prompt=1, **one.encode)
    embeds = solver.precise(found[reader.output])
    if reader.mask is not None:
        embeds = embeds * found[reader.mask].to(embeds.device)[..., None]
    return embeds if embeds.ndim == 3 else embeds[:, None]


def replaced(encoder: torch.nn.Module, slots: Tensor, soft: Tensor) -> RemovableHandle:
    """In a `with` block of it the encoder reads soft (n, k, d) in place of its tokens at positions slots (n, k)."""

    def replace(_, args, found: Tensor) -> Tensor:
        return found.scatter(1, slots[:, :, None].expand(soft.shape), soft.to(found.dtype))

    return encoder.get_input_embeddings().register_forward_hook(replace)
