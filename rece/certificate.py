"""The certificate: how close any prompt at all can come to an erased concept, proven.

A text encoder that ends in a LayerNorm emits only tokens h = gamma x + beta with mean(x) = 0 and |x|^2 < d, whatever
the prompt says. Over that set the least distance between the keys and values of the edited model at h and those of
the original model at a concept token c,

    r = min_h sqrt(sum_i |W_i M h - W_i c|^2) = min_h |M h - c|_G,

is a trust-region problem with an exact solution: one eigendecomposition, one scalar equation per token. No prompt has
a token that comes closer than r. It bounds the match of keys and values, token by token, and not what an image shows;
and it says nothing of embeddings that no text encoder emits.
"""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import reach, solver, textspace
from rece.eraser import Eraser


@dataclass
class Certificate:
    """What `certify` proves, one row per token of the concepts.

    table: columns concept; position; kind ("word", a token of the concept's text, the last of them being the one that
    carries it; "end"; "padding"); last (whether it is that last word token); distance, the certified r; edited, the
    distance at which the edited model answers the concept's own token; target, other, synonym: the distance from the
    concept's token to that of its neutral target, of the nearest other concept and of the nearest synonym, in the
    original model (nan where none were given); nearest, which other concept that is.
    minimisers: (rows, d) float64 on the CPU, the embeddings that attain the distances.
    """

    table: pd.DataFrame
    minimisers: Tensor

    @cached_property
    def words(self) -> pd.DataFrame:
        """The rows of the concepts' last word tokens, one per concept."""
        return self.table[self.table["last"]].reset_index(drop=True)

    @property
    def relative(self) -> float:
        """The least certified distance of a concept's word token, as a share of the distance to its target."""
        return float((self.words.distance / self.words.target).min())

    @property
    def passed(self) -> bool:
        """Whether no prompt can come as close to any of the concepts as some other concept already is."""
        return bool((self.words.distance >= self.words.other).all())


def certify(
    pipe: DiffusionPipeline,
    eraser: Eraser | None,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    others: list[str] | None = None,
    synonyms: list[str] | dict[str, list[str]] | None = None,
    least_variance: float = 0.0,
) -> Certificate:
    """The least distance any prompt's token can have, in the edited model, from the concept's tokens in the original.

    pipe: read, not changed; it may carry an eraser, its original weights are used. eraser: None is the unedited model.
    concept: one text or several, each with its own rows. target: what the concept was sent to, one text or one each;
    rows are matched as UCE matches them, from the last word on. others, synonyms: texts to compare with, by their
    token of the same kind (synonyms: one list, or a list per concept). least_variance: see `reach.bound`.

    Computed in float64 on the device of the pipeline (CPU for MPS): one eigendecomposition of (d - 1, d - 1) for
    everything. Raises ValueError or TypeError naming the parameter, for an eraser of another width, or for a pipeline
    whose prompt embedding is not the output of one final LayerNorm (SDXL). Source: ours.
    """
    concepts = textspace.concepts_of(concept)
    targets = [target] * len(concepts) if isinstance(target, str) else list(target)
    if len(targets) != len(concepts):
        raise ValueError(
            f"target must be one text or one per concept, not {len(targets)} for {len(concepts)} concepts"
        )
    known = synonyms if isinstance(synonyms, dict) else dict.fromkeys(concepts, synonyms or [])
    gamma, beta, eps = textspace.final_norm(pipe)
    d = len(gamma)
    if eraser is not None and len(eraser.map) != d:
        raise ValueError(f"eraser must be for text width {d}, but is for {len(eraser.map)}")
    G = solver.gram(textspace.originals(pipe).values()).to(gamma.device)
    M = torch.eye(d, dtype=G.dtype, device=G.device) if eraser is None else eraser.map.to(G.device)

    rows, tokens, responses = [], [], []
    others = list(others or [])
    all_others, last = _encoded(pipe, others, gamma.new_zeros(pipe.tokenizer.model_max_length, d))
    for text, aim in zip(concepts, targets, strict=True):
        C, T = textspace.encode(pipe, [text, aim])
        i, j = textspace.last_word(pipe, text), textspace.last_word(pipe, aim)
        kept = [n for n, other in enumerate(others) if other != text]
        near, near_index = _nearest(G, C, i, all_others[kept], [last[n] for n in kept])
        same, _ = _nearest(G, C, i, *_encoded(pipe, known.get(text, []), C))
        for position in range(1, len(C)):
            shifted = min(max(position - i + j, 0), len(T) - 1)
            kind = "word" if position <= i else "end" if position == i + 1 else "padding"
            row = {"concept": text, "position": position, "kind": kind, "last": position == i}
            row |= {"target": reach.norm(C[position] - T[shifted], G).item(), "other": near[position].item()}
            row |= {"synonym": same[position].item()}
            row |= {"nearest": others[kept[near_index[position]]] if kept else None}
            rows.append(row)
        tokens.append(C[1:])
        responses.append(C[1:] @ M.T)
    C, edited = torch.cat(tokens), torch.cat(responses)
    distance, minimisers = reach.bound(M, G, C, gamma, beta, eps=eps, least_variance=least_variance)
    table = pd.DataFrame(rows)
    table.insert(4, "distance", distance.cpu().numpy())
    table.insert(5, "edited", reach.norm(edited - C, G).cpu().numpy())
    return Certificate(table, minimisers.cpu())


def _encoded(pipe: DiffusionPipeline, texts: list[str], like: Tensor) -> tuple[Tensor, list[int]]:
    """The embeddings of the texts, (texts, positions, d), and where their last words are; of none, none."""
    E = textspace.encode(pipe, texts) if texts else like.new_zeros(0, *like.shape)
    return E, [textspace.last_word(pipe, text) for text in texts]


def _nearest(G: Tensor, C: Tensor, i: int, E: Tensor, last: list[int]) -> tuple[Tensor, Tensor]:
    """For each position of C (positions, d), whose last word is at i, the distance to the nearest of the texts' tokens
    as far behind (or before) their own last word, and which text it is; nan and 0 if there are none."""
    at = torch.arange(len(C)) - i + torch.tensor(last, dtype=torch.long)[:, None]
    distance, index = reach.nearest(C, E, at.clamp(0, len(C) - 1), G)
    return distance.where(distance.isfinite(), torch.nan), index
