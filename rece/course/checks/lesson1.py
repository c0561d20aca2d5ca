"""Checks of lesson 1: what cross-attention reads."""

from collections.abc import Callable, Mapping

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from rece.course import Asked
from rece.course.checks import check, mistaken, near, random, shaped


@check
def attend(mine: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]) -> tuple[bool, str]:
    """attend(x, h, W_Q, W_K, W_V): what a head of a real layer gives, as a hook on that layer catches it."""
    worst = 0.0
    for seed in range(3):
        torch.manual_seed(seed)
        layer = Attention(query_dim=10, cross_attention_dim=7, heads=1, dim_head=6).double()
        x, h, caught = random(5, 10, seed=seed), random(4, 7, seed=10 + seed) * 2, []
        layer.to_out[0].register_forward_pre_hook(lambda _, given, caught=caught: caught.append(given[0][0].detach()))
        layer(x[None], encoder_hidden_states=h[None])
        W_Q, W_K, W_V = (part.weight.detach() for part in (layer.to_q, layer.to_k, layer.to_v))
        wanted = caught[0]
        found = shaped(mine(x, h, W_Q, W_K, W_V), wanted, "your answer").detach()
        q, k, v = x @ W_Q.T, h @ W_K.T, h @ W_V.T
        scores, size = q @ k.T, q.shape[1] ** 0.5
        cause = mistaken(
            found,
            {
                "the scores are not divided by the root of the head's width": scores.softmax(1) @ v,
                "divide by the root of the head's width, and not by the width": (scores / size**2).softmax(1) @ v,
                "divide by the root of the head's width, and not by that of the token's": (
                    scores / h.shape[1] ** 0.5
                ).softmax(1)
                @ v,
                "the softmax must run over the rows of h: for each place of x the shares add up to 1": (
                    scores / size
                ).softmax(0)
                @ v,
                "the scores are no shares yet: the softmax is missing": scores / size @ v,
                "the shares mix the values W_V h, and not the keys": (scores / size).softmax(1) @ k,
                "this is the mean of all values: the scores do not enter": v.mean(0).expand(len(x), -1),
            },
        )
        if cause:
            return False, cause
        worst = max(worst, near(found, wanted))
    if worst < 1e-8:
        return True, f"a hook on a layer of diffusers catches the same, but for {worst:.0e}"
    return False, f"a hook on a layer of diffusers catches something else: you are off by {worst:.2f} of its size"


@check
def ranked(mine: list[str], swapped: Mapping[str, Asked]) -> tuple[bool, str]:
    """ranked(names, {name: asked}): the names by effect, the largest first; ties within the intervals may stand so."""
    names = [mine] if isinstance(mine, str) else list(mine)
    wrong = [name for name in names if name not in swapped]
    if wrong:
        return False, f"{wrong[0]!r} is none of the groups: {', '.join(swapped)}"
    if sorted(names) != sorted(swapped):
        missing = [name for name in swapped if name not in names]
        return False, f"{missing[0]!r} is missing" if missing else "a group stands there twice"
    for n, first in enumerate(names):
        for second in names[n + 1 :]:
            one, two = swapped[first], swapped[second]
            if two.interval[0] > one.interval[1]:
                told = (
                    f"{first!r} stands before {second!r}, and it makes {one.k} of {one.n} against {two.k} of {two.n}"
                )
                if names == sorted(swapped, key=lambda name: swapped[name].rate):
                    told += ": the largest effect comes first"
                return False, told
    ties = sum(
        swapped[a].interval[1] >= swapped[b].interval[0]
        for n, a in enumerate(sorted(swapped, key=lambda name: swapped[name].rate))
        for b in sorted(swapped, key=lambda name: swapped[name].rate)[n + 1 :]
    )
    return True, f"no group stands before one of a clearly larger effect; {ties} pairs cannot be told apart"


@check
def gram(mine: Callable[[list[Tensor]], Tensor]) -> tuple[bool, str]:
    """gram(weights): the G with x^T G x = sum |W x|^2 for every x, as all layers' answers have it."""
    worst = 0.0
    for seed in range(3):
        weights = [random(rows, 6, seed=seed + rows) for rows in (4, 9, 5)]
        X, eye = random(40, 6, seed=20 + seed), torch.eye(6, dtype=torch.float64)
        wanted = torch.stack([sum((W @ x).square().sum() for W in weights) for x in X])
        G = shaped(mine(weights), eye, "your G")
        found, joint = (X @ G * X).sum(1), sum(W.T @ W for W in weights)
        cause = mistaken(
            G,
            {
                "this is the mean over the layers: take the sum": joint / len(weights),
                "only the last layer is counted: sum over all of them": weights[-1].T @ weights[-1],
                "only the first layer is counted: sum over all of them": weights[0].T @ weights[0],
                "this is the root of G: x^T G x is a squared size": torch.linalg.cholesky(joint).T,
                "G is applied twice: x^T G x holds each layer's weight twice, and not four times": joint @ joint,
            },
        )
        if cause:
            return False, cause
        if near(found, wanted) > 1e-8:
            return False, f"three layers answer x with {wanted[0]:.3f} in all, and your x^T G x is {found[0]:.3f}"
        if near(G, G.T) > 1e-8:
            return False, "x^T G x is right, but your G is not symmetric: of all such matrices take the symmetric one"
        worst = max(worst, near(found, wanted))
    return True, f"x^T G x is what three layers answer, added up one by one, for 120 x, but for {worst:.0e}"
