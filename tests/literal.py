"""The published algorithm layer by layer, as its mathematics is written down: the slow second opinion on rece.

Every layer has its own sums and its own explicit inverse, and every text is added on its own. Nothing here uses rece.
weights, originals: lists of (out, d). erase: pairs (K, T) of (n, d) rows. preserve: list of (m, d) rows.
"""

import torch


def edit(weights, erase, preserve, lamb, erase_scale, preserve_scale):
    """The minimisers W' of  e sum |W'k - Wt|^2 + p sum |W'r - Wr|^2 + lamb |W' - W|^2, one layer at a time."""
    edited = []
    for W in weights:
        wanted = lamb * W
        seen = lamb * torch.eye(W.shape[1], dtype=W.dtype)
        for K, T in erase:
            wanted = wanted + erase_scale * (W @ T.T) @ K
            seen = seen + erase_scale * K.T @ K
        for R in preserve:
            wanted = wanted + preserve_scale * (W @ R.T) @ R
            seen = seen + preserve_scale * R.T @ R
        edited.append(wanted @ torch.inverse(seen))
    return edited


def derive(weights, originals, C, lamb, reg, target):
    """For each row c the c' that the edited weights answer as the originals answer c."""
    A = sum(W.T @ W for W in weights)
    B = sum(W.T @ W0 for W, W0 in zip(weights, originals, strict=True))
    eye = torch.eye(C.shape[1], dtype=C.dtype)
    if reg in ("zero", "target"):
        inverse = torch.inverse(A + lamb * eye)
    elif reg == "surrogate1":
        inverse, B = torch.inverse((1 + lamb) * A), B + lamb * A
    elif reg == "surrogate2":
        inverse, B = torch.inverse(A + lamb * eye), B + lamb * eye
    else:
        inverse, B = torch.inverse((1 + lamb) * A + lamb * eye), B + lamb * A + lamb * eye
    pull = lamb if reg == "target" else 0.0
    return torch.stack([inverse @ (B @ c + pull * t) for c, t in zip(C, target, strict=True)])


def erase(
    originals,
    embed,
    last,
    concepts,
    targets,
    *,
    rounds=3,
    preserve_uce=("",),
    preserve_rounds=None,
    reg="zero",
    derive_lamb=0.1,
    lamb=0.1,
    uce_lamb=0.5,
):
    """UCE on the slices from the last word on, then rounds of derive and edit. Returns the weights after every step.

    embed: text -> (positions, d). last: text -> position of its last word.
    """
    pairs = []
    for concept, target in zip(concepts, targets, strict=True):
        C, T = embed(concept), embed(target)
        i, j, end = last(concept), last(target), len(C)
        later = max(i, j)
        pairs.append((C[i : end - (later - i)], T[j : end - (later - j)]))
    steps = [edit(originals, pairs, [embed(text) for text in preserve_uce], uce_lamb, 1.0, 1.0)]
    kept = [embed(text) for text in (preserve_rounds or [" "] * len(concepts))]
    for _ in range(rounds):
        weights, pairs = steps[-1], []
        for concept, target in zip(concepts, targets, strict=True):
            T = embed(target)
            pairs.append((derive(weights, originals, embed(concept), derive_lamb, reg, T), T))
        steps.append(edit(weights, pairs, kept, lamb, 1.0, 0.1))
    return steps
