"""The certificate: how close any prompt at all can come to an erased concept, proven.

A text encoder that ends in a LayerNorm emits only tokens h = gamma x + beta with mean(x) = 0 and |x|^2 < d, whatever
the prompt says. Over that set the least distance between the keys and values of the edited model at h and those of
the original model at a concept token c,

    r = min_h sqrt(sum_i |W_i M h - W_i c|^2) = min_h |M h - c|_G,

is a trust-region problem with an exact solution: one eigendecomposition, one scalar equation per token. No prompt has
a token that comes closer than r. It bounds the match of keys and values, token by token, and not what an image shows;
and it says nothing of embeddings that no text encoder emits.

A second bound holds for those too: over every h whatever, min_h sqrt(sum_i |W'_i h - W_i c|^2) for any edit W' of the
same layers. It is one solve. While an edit is invertible it is 0: some embedding is answered exactly as the concept
was. After a projection, as of `rece.guard`, it is not. RECE comes near to one: each of its rounds makes the least
singular value of M several times smaller, until an embedding that used it would be 10^10 lengths long. From there on
it counts as zero here, and the bound as proven.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import families, layers, solver, texts
from rece.eraser import Eraser

MAX_ROUNDS = 20  # of rounds="auto"
LEAST_RISE = 0.03  # of the certified distance, relative, that counts as one: the knee of its curve
REACH = 10  # lengths of the concept's token, of embeddings that are tried against weights as they are shipped
PATIENCE = 2  # rounds without such a rise that end rounds="auto"
STEPS = 200  # of bisection on a logarithmic scale: more than float64 can resolve


@dataclass
class Certificate:
    """What `certify` proves, one row per token of the concepts, and one per concept on the pooled path.

    table: its columns are
        concept: the concept's text. position: the token's place in it.
        kind: "word" is a token of the text, "end" its end token, "padding" what follows; "pooled" is the pooled path.
        last: whether the token is the last word token, which carries the concept.
        distance: the certified r of prompts; nan for families whose embedding does not leave one final LayerNorm.
        embedding: the least distance of any embedding.
        shipped: that of embeddings up to REACH times as long as the concept's token, against the weights as they are
            shipped; nan if not asked for.
        edited: the distance at which the edited model answers the concept's own token.
        moved: how far the edit moves the nearest other concept's token; nan where none were given.
        target: the distance from the concept's token to its target's, in the original model.
        other: that to the nearest other concept's; nan where none were given.
        synonym: that to the nearest synonym's; nan where none were given.
        nearest: which other concept is the nearest.
    """

    table: pd.DataFrame

    @cached_property
    def words(self) -> pd.DataFrame:
        """The rows of the concepts' last word tokens, one per concept."""
        return self.table[self.table["last"]].reset_index(drop=True)

    @property
    def relative(self) -> float:
        """The least certified distance of a concept's word token, as a share of the distance to its target."""
        return float((self.words.distance / self.words.target).min())

    @property
    def guarded(self) -> float:
        """The least distance of any embedding to a concept's word token, as a share of the distance to its target."""
        return float((self.words.embedding / self.words.target).min())

    @property
    def passed(self) -> bool:
        """Whether no prompt can come as close to any of the concepts as some other concept already is."""
        least = self.words[["distance", "embedding"]].max(axis=1)  # either holds for every prompt
        return bool((least >= self.words.other).all())

    @property
    def stayed(self) -> bool:
        """Whether the nearest others are still answered nearer to themselves than to the concepts.

        They are if they move less than half as far as they stood from them. An edit that moves all there is passes
        too, and tells nothing apart.
        """
        return bool((self.words.moved < self.words.other / 2).all())


def certify(
    pipe: DiffusionPipeline,
    eraser: Eraser | None,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    others: list[str] | None = None,
    synonyms: list[str] | dict[str, list[str]] | None = None,
    shipped: str | dict[str, Tensor] | None = None,
) -> Certificate:
    """The least distance any prompt's token can have, in the edited model, from the concept's tokens in the original.

    pipe: read, not changed; it may carry an eraser, its original weights are used. eraser: None is the unedited model.
    concept: one text or several, each with its own rows. target: what the concept was sent to, one text or one each;
    rows are matched as UCE matches them, from the last word on. others, synonyms: texts to compare with, by their
    token of the same kind (synonyms: one list, or a list per concept).
    shipped: the edited layers that are given away, whose rounding counts: a dtype, see `layers.edited`; or weights by
    layer name, (out, d), of any edit, such as another method's. Layers that it lacks count as unedited.

    Computed in float64 on the device of the pipeline (CPU for MPS): a singular value decomposition of width d and an
    eigendecomposition of width d - 1 for everything. Raises ValueError or TypeError naming the parameter, or for an
    eraser of another text space. Source: ours.
    """
    concepts = texts.concepts_of(concept)
    targets = texts.targets_of(target, concepts)
    known = {name: further for name, *further in texts.with_synonyms(concepts, synonyms)}
    others = texts.listed([] if others is None else others, "others")
    if eraser is not None and not isinstance(eraser, Eraser):
        raise TypeError(f"eraser must be an Eraser, such as Eraser.load gives, not {solver.shown(eraser)}")
    texts.check_erased(pipe, concepts, targets)
    texts.check(pipe, others=others, synonyms=sum(known.values(), []))
    d = layers.width(pipe)
    if shipped is not None and not isinstance(shipped, dict) and shipped not in layers.DTYPES:
        raise ValueError(
            f"shipped must be weights by layer name or one of {', '.join(layers.DTYPES)}, not {solver.shown(shipped)}"
        )
    if eraser is not None:
        if len(eraser.map) != d:
            raise ValueError(f"eraser must be for text width {d}, but is for {len(eraser.map)}")
        eraser.fits(pipe)
    if isinstance(shipped, dict):
        shipped = {name.removesuffix(".weight"): weight for name, weight in shipped.items()}
        there = families.model(pipe).state_dict()
        if strange := [name for name in shipped if f"{name}.weight" not in there]:
            name = solver.shown(strange[0])
            raise ValueError(f"shipped: the model has no layer {name}: give names as in prompt_layers")
    tables = []
    for path in families.paths(pipe):
        Q, _ = layers.answers(pipe, path)
        G = Q.T @ Q
        C, near, table = _tokens(pipe, path, G, concepts, targets, others, known)
        map = None if eraser is None else eraser.map if path == "tokens" else eraser.pooled
        M = torch.eye(C.shape[1], dtype=C.dtype, device=C.device) if map is None else map.to(C.device)
        found = {"distance": torch.full_like(C[:, 0], torch.nan), "embedding": any_embedding(Q @ M, C @ Q.T)}
        if path == "tokens" and (leaves := _final_norm(pipe)) is not None:
            gamma, beta = (part.to(C.device) for part in leaves)
            found["distance"], _ = bound(M, G, C, gamma, beta)
        found["shipped"] = _shipped(pipe, path, M, C, shipped)
        found["edited"] = ((C @ M.T - C) @ Q.T).norm(dim=1)
        found["moved"] = ((near @ M.T - near) @ Q.T).norm(dim=1)
        for place, (name, values) in enumerate(found.items()):
            table.insert(4 + place, name, values.cpu().numpy())
        tables.append(table)
    return Certificate(pd.concat(tables, ignore_index=True))


def any_embedding(answers: Tensor, wanted: Tensor) -> Tensor:
    """min over all h of |A h - a|, for every row a of `wanted`: (n,) distances.

    answers: A, (k, d), such as Q M, what an edited model answers in the space of `solver.answer_space`. Singular
    values below 1e-10 of the largest count as zero: an embedding that uses one is 10^10 lengths long. wanted: (n, k).
    float64. Source: ours; least squares.
    """
    left, sizes, _ = torch.linalg.svd(answers, full_matrices=False)
    left = left[:, sizes > 1e-10 * sizes[0]]
    return (wanted - wanted @ left @ left.T).norm(dim=1)


def weights_bound(A: Tensor, B: Tensor, G: Tensor, C: Tensor, reach: float = REACH) -> Tensor:
    """min sqrt(sum_i |W'_i h - W_i c|^2) over |h| <= reach |c|, for every row c of C: (n,) distances.

    A = sum W'^T W', B = sum W'^T W, G = sum W^T W, (d, d) each. Rounding makes a projection invertible. Where layers
    have fewer outputs than inputs a very long h may then match the concept; hence `reach`.
    float64. Source: ours; a trust-region problem as in `bound`.
    """
    lam, V = torch.linalg.eigh(A)
    lam, g = lam.clamp(min=0), C @ B.T @ V
    size = C.norm(dim=1, keepdim=True).clamp(min=torch.finfo(C.dtype).tiny)
    divisor = lam + _secular(lam, g / size, reach).clamp(min=0)[:, None]
    y = torch.where(divisor > 0, g / divisor.clamp(min=torch.finfo(g.dtype).tiny), torch.zeros_like(g))
    return ((y * lam - 2 * g) * y).sum(1).add((C @ G * C).sum(1)).clamp(min=0).sqrt()


def _final_norm(pipe: DiffusionPipeline) -> tuple[Tensor, Tensor] | None:
    """What `texts.final_norm` returns, or None where there is no such norm."""
    try:
        return texts.final_norm(pipe)
    except TypeError:
        return None


def _tokens(pipe, path: str, G: Tensor, concepts, targets, others, known) -> tuple[Tensor, Tensor, pd.DataFrame]:
    """The tokens that are certified, (n, d) on G's device, the nearest other's, (n, d) or nan where there are none,
    and the table's columns about the original model alone."""
    rows, tokens, nearby, spelt = [], [], [], [texts.ids(pipe, other) for other in others]
    all_others, last = _encoded(pipe, others, path, G)
    for text, aim in zip(concepts, targets, strict=True):
        (C, T), (i, j) = _encoded(pipe, [text, aim], path, G)
        own = texts.ids(pipe, text)
        kept = [n for n, other in enumerate(spelt) if other != own]
        near, near_index, near_token = _nearest(G, C, i, all_others[kept], [last[n] for n in kept])
        same, *_ = _nearest(G, C, i, *_encoded(pipe, known[text], path, G))
        positions = torch.arange(len(C))
        away = norm(C - T[(positions - i + j).clamp(0, len(T) - 1)], G)
        part = pd.DataFrame({"concept": text, "position": positions, "kind": "padding"})
        part.loc[part.position == i + 1, "kind"] = "end"
        part.loc[part.position <= i, "kind"] = "word"
        part["last"] = part.position == i
        if path == "pooled":
            part["kind"], part["last"] = "pooled", False
        for name, values in {"target": away, "other": near, "synonym": same}.items():
            part[name] = values.cpu().numpy()
        part["nearest"] = [others[kept[n]] for n in near_index] if kept else None
        told = C.any(1)  # positions that are masked out are zero
        told[0] &= not torch.equal(C[0], T[0])  # a start token is the same in every text
        rows.append(part[told.numpy(force=True)])
        tokens.append(C[told])
        nearby.append(near_token[told])
    return torch.cat(tokens), torch.cat(nearby), pd.concat(rows, ignore_index=True)


def _shipped(pipe, path: str, M: Tensor, C: Tensor, shipped: str | dict[str, Tensor] | None) -> Tensor:
    """The column `shipped` of the table: (n,) for the tokens C, (n, d)."""
    if shipped is None:
        return torch.full_like(C[:, 0], torch.nan)
    if isinstance(shipped, str):
        shipped = layers.edited(pipe, M, path, shipped)
    A, B, G = 0, 0, 0
    for name, weight in layers.originals(pipe, path).items():
        W = solver.precise(weight).to(C.device)
        edited = solver.precise(shipped.get(name, weight)).to(C.device)[:, : W.shape[1]]
        if edited.shape != W.shape:
            raise ValueError(f"shipped: {name} must be {tuple(W.shape)}, but is {tuple(edited.shape)}")
        A, B, G = A + edited.T @ edited, B + edited.T @ W, G + W.T @ W
    return weights_bound(A, B, G, C)


def until_certified(
    pipe: DiffusionPipeline, steps: Iterable[Tensor], G: Tensor, words: Tensor, others: list[str], progress: bool
) -> list[Tensor]:
    """The maps that `erase` keeps with rounds="auto": an edit's steps up to the one that its certificate chooses.

    The first step at which no prompt's token can come as close to any of the words as the nearest of `others` already
    is; or else the last one that raised the least certified distance by LEAST_RISE, once PATIENCE steps in a row did
    not, or after MAX_ROUNDS. words: the concepts' last word tokens, (concepts, d). G: (d, d). others: texts.
    Raises TypeError if the pipeline's prompt embedding is not the output of one final LayerNorm. Source: ours.
    """
    gamma, beta = (part.to(G) for part in texts.final_norm(pipe))
    enough = nearest_of(pipe, G, words, others, progress)
    history, most, before, best = [], 0.0, 0.0, 0
    for n, M in enumerate(islice(steps, MAX_ROUNDS + 1)):
        history.append(M)
        distance, _ = bound(M, G, words, gamma, beta)
        reached, done = distance.min().item(), bool((distance >= enough).all())
        if n == 0 or done or reached >= max(most, before * (1 + LEAST_RISE)):
            most, best = reached, n
        if done or n >= best + PATIENCE:
            break
        before = reached
    return history[: best + 1]


def nearest_of(pipe: DiffusionPipeline, G: Tensor, words: Tensor, others: list[str], progress: bool) -> Tensor:
    """The distance from each word token (n, d) to the nearest word token of `others`; infinite if there are none."""
    found = torch.full_like(words[:, 0], torch.inf)
    for some in texts.batches(others, texts.BATCH, progress):
        last = torch.tensor([[texts.last_position(pipe, text)] for text in some])
        embeds = texts.encode(pipe, some).to(G)
        parts = [nearest(part, embeds, last.expand(-1, len(part)), G)[0] for part in words.split(64)]
        found = torch.minimum(found, torch.cat(parts))
    return found


def _encoded(pipe: DiffusionPipeline, words: list[str], path: str, G: Tensor) -> tuple[Tensor, list[int]]:
    """The embeddings of texts, (texts, positions, d) on G's device, and where their last words are; of none, none."""
    E = texts.encode(pipe, words or [""], path=path)[: len(words)].to(G)
    return E, [texts.last_positions(pipe, text, path)[0] for text in words]


def _nearest(G: Tensor, C: Tensor, i: int, E: Tensor, last: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """For each position of C (positions, d), whose last word is at i, the nearest of the texts' tokens as far behind
    (or before) their own last word: its distance, which text it is, and the token; nan, 0 and nan if there are none.
    """
    at = torch.arange(len(C)) - i + torch.tensor(last, dtype=torch.long)[:, None]
    at = at.clamp(0, len(C) - 1)
    distance, index = nearest(C, E, at, G)
    positions = torch.arange(len(C), device=index.device)
    tokens = E[index, at.to(index.device)[index, positions]] if len(E) else torch.full_like(C, torch.nan)
    return distance.where(distance.isfinite(), torch.nan), index, tokens


def bound(M: Tensor, G: Tensor, C: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """min |M h - c|_G over h = gamma x + beta with mean(x) = 0, for every row c of C: (n,) distances and minimisers.

    A LayerNorm divides by sqrt(variance + eps), so |x|^2 < d whatever it reads. The bound takes the whole ball.

    With x = N y, N an orthonormal basis of mean zero, this is min |B y - a| over |y|^2 <= d, solved on the
    eigenvectors of B^T B: y = (B^T B + mu)^-1 B^T a, where mu > 0 puts y on the sphere, and mu = 0 inside of it. That
    is the global minimum (More and Sorensen 1983).
    M, G: (d, d), G symmetric positive semidefinite; C: (n, d); gamma, beta: (d,).
    float64, on G's device. Source: ours.
    """
    d = G.shape[0]
    values, vectors = torch.linalg.eigh(G)
    root = values.clamp(min=0).sqrt()[:, None] * vectors.T  # root^T root = G
    N = _mean_zero(d).to(G)
    B = root @ (M * gamma) @ N
    a = (C - beta @ M.T) @ root.T
    lam, V = torch.linalg.eigh(B.T @ B)
    lam = lam.clamp(min=0)
    g = a @ B @ V
    divisor = lam + _secular(lam, g, d**0.5).clamp(min=0)[:, None]
    y = torch.where(divisor > 0, g / divisor.clamp(min=torch.finfo(g.dtype).tiny), torch.zeros_like(g))
    H = (y @ V.T) @ N.T * gamma + beta
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
