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

from rece import layers, solver
from rece.eraser import Eraser

STEPS = 200  # of bisection on a logarithmic scale: more than float64 can resolve


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
    token of the same kind (synonyms: one list, or a list per concept). least_variance: see `bound`.

    Computed in float64 on the device of the pipeline (CPU for MPS): one eigendecomposition of (d - 1, d - 1) for
    everything. Raises ValueError or TypeError naming the parameter, for an eraser of another width, or for a pipeline
    whose prompt embedding is not the output of one final LayerNorm (SDXL). Source: ours.
    """
    concepts = layers.concepts_of(concept)
    targets = [target] * len(concepts) if isinstance(target, str) else list(target)
    if len(targets) != len(concepts):
        raise ValueError(
            f"target must be one text or one per concept, not {len(targets)} for {len(concepts)} concepts"
        )
    known = synonyms if isinstance(synonyms, dict) else dict.fromkeys(concepts, synonyms or [])
    gamma, beta, eps = layers.final_norm(pipe)
    d = len(gamma)
    if eraser is not None and len(eraser.map) != d:
        raise ValueError(f"eraser must be for text width {d}, but is for {len(eraser.map)}")
    G = solver.gram(layers.originals(pipe).values()).to(gamma.device)
    M = torch.eye(d, dtype=G.dtype, device=G.device) if eraser is None else eraser.map.to(G.device)

    rows, tokens, responses = [], [], []
    others = list(others or [])
    all_others, last = _encoded(pipe, others, gamma.new_zeros(pipe.tokenizer.model_max_length, d))
    for text, aim in zip(concepts, targets, strict=True):
        C, T = layers.encode(pipe, [text, aim])
        i, j = layers.last_word(pipe, text), layers.last_word(pipe, aim)
        kept = [n for n, other in enumerate(others) if other != text]
        near, near_index = _nearest(G, C, i, all_others[kept], [last[n] for n in kept])
        same, _ = _nearest(G, C, i, *_encoded(pipe, known.get(text, []), C))
        for position in range(1, len(C)):
            shifted = min(max(position - i + j, 0), len(T) - 1)
            kind = "word" if position <= i else "end" if position == i + 1 else "padding"
            row = {"concept": text, "position": position, "kind": kind, "last": position == i}
            row |= {"target": norm(C[position] - T[shifted], G).item(), "other": near[position].item()}
            row |= {"synonym": same[position].item()}
            row |= {"nearest": others[kept[near_index[position]]] if kept else None}
            rows.append(row)
        tokens.append(C[1:])
        responses.append(C[1:] @ M.T)
    C, edited = torch.cat(tokens), torch.cat(responses)
    distance, minimisers = bound(M, G, C, gamma, beta, eps=eps, least_variance=least_variance)
    table = pd.DataFrame(rows)
    table.insert(4, "distance", distance.cpu().numpy())
    table.insert(5, "edited", norm(edited - C, G).cpu().numpy())
    return Certificate(table, minimisers.cpu())


def _encoded(pipe: DiffusionPipeline, texts: list[str], like: Tensor) -> tuple[Tensor, list[int]]:
    """The embeddings of the texts, (texts, positions, d), and where their last words are; of none, none."""
    E = layers.encode(pipe, texts) if texts else like.new_zeros(0, *like.shape)
    return E, [layers.last_word(pipe, text) for text in texts]


def _nearest(G: Tensor, C: Tensor, i: int, E: Tensor, last: list[int]) -> tuple[Tensor, Tensor]:
    """For each position of C (positions, d), whose last word is at i, the distance to the nearest of the texts' tokens
    as far behind (or before) their own last word, and which text it is; nan and 0 if there are none."""
    at = torch.arange(len(C)) - i + torch.tensor(last, dtype=torch.long)[:, None]
    distance, index = nearest(C, E, at.clamp(0, len(C) - 1), G)
    return distance.where(distance.isfinite(), torch.nan), index


def bound(
    M: Tensor, G: Tensor, C: Tensor, gamma: Tensor, beta: Tensor, *, eps: float = 1e-5, least_variance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """min |M h - c|_G over h = gamma x + beta with mean(x) = 0, for every row c of C: (n,) distances and minimisers.

    A LayerNorm divides by sqrt(variance + eps), so |x|^2 = d v / (v + eps) < d, where v is the variance of what it
    reads: over all v that is the whole ball, which is the default and assumes nothing. least_variance: a v below which
    the encoder is known never to go; then only the shell d v / (v + eps) <= |x|^2 <= d counts.

    With x = Q y, Q an orthonormal basis of mean zero, this is min |B y - a| over lo <= |y|^2 <= d, solved on the
    eigenvectors of B^T B: y = (B^T B + mu)^-1 B^T a, where mu >= 0 puts y on the ball's surface, mu <= 0 on the
    shell's inside, and 0 in between; on both spheres it is the global minimum (More and Sorensen 1983).
    M, G: (d, d), G symmetric positive semidefinite; C: (n, d); gamma, beta: (d,). float64, on G's device.
    Raises ValueError if a number is out of range.
    """
    solver.positive(eps, "eps", or_zero=True)
    solver.positive(least_variance, "least_variance", or_zero=True)
    d = G.shape[0]
    values, vectors = torch.linalg.eigh(G)
    root = values.clamp(min=0).sqrt()[:, None] * vectors.T  # root^T root = G
    B = root @ (M * gamma) @ _mean_zero(d).to(G)
    a = (C - beta @ M.T) @ root.T
    lam, V = torch.linalg.eigh(B.T @ B)
    lam = lam.clamp(min=0)
    g = a @ B @ V
    inner = d * least_variance / (least_variance + eps) if least_variance else 0.0
    mu = _secular(lam, g, d**0.5)
    if inner:
        mu = torch.maximum(mu, _secular(lam, g, inner**0.5).clamp(max=0))
    else:
        mu = mu.clamp(min=0)
    divisor = lam + mu[:, None]
    y = torch.where(divisor > 0, g / divisor.clamp(min=torch.finfo(g.dtype).tiny), 0)
    # The hard case: g has no part in the lowest eigenvectors, and what is missing to the sphere is added there.
    short = torch.where(mu < 0, inner, torch.where(mu > 0, float(d), 0.0)) - y.square().sum(1)
    y[:, 0] += torch.where((short > 1e-9 * d) & (divisor[:, 0] <= 0), short.clamp(min=0).sqrt(), 0)
    H = (y @ V.T) @ _mean_zero(d).to(G).T * gamma + beta
    return norm(H @ M.T - C, G), H


def _secular(lam: Tensor, g: Tensor, radius: float) -> Tensor:
    """mu >= -lam[0] with |(lam + mu)^-1 g| = radius, per row of g; -lam[0] where even there it is less (hard case)."""
    shifted = lam - lam[0]
    low = (g[:, 0].abs() / radius).clamp(min=1e-300).log()
    high = (g.norm(dim=1) / radius).clamp(min=1e-300).log() + 1e-9
    low = torch.minimum(low, high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        outside = (g / (shifted + middle.exp()[:, None])).norm(dim=1) > radius
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    return high.exp() - lam[0]


def _mean_zero(d: int) -> Tensor:
    """An orthonormal basis of the vectors of mean zero (Helmert's): (d, d - 1) float64."""
    n = torch.arange(1, d, dtype=torch.float64)
    basis = torch.triu(torch.ones(d, d - 1, dtype=torch.float64))
    basis[torch.arange(1, d), torch.arange(d - 1)] = -n
    return basis / (n * (n + 1)).sqrt()


def norm(X: Tensor, G: Tensor) -> Tensor:
    """|x|_G = sqrt(x^T G x) over the last dimension: (..., d) and (d, d) give (...)."""
    return (X @ G * X).sum(-1).clamp(min=0).sqrt()


def nearest(tokens: Tensor, E: Tensor, at: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """For each of tokens (k, d), the least distance |token - other|_G to the tokens of some texts, and whose it is.

    E: (texts, positions, d), of which text n is read at its own positions at[n], (texts, k) long. Infinite and 0 if
    there are no texts.
    """
    if not len(E):
        return torch.full_like(tokens[:, 0], torch.inf), torch.zeros(len(tokens), dtype=torch.long)
    best = norm(tokens - E[torch.arange(len(E))[:, None], at], G).min(0)
    return best.values, best.indices
