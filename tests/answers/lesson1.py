"""Answers to the exercises of lesson 1."""

import torch

from answers import asked
from rece.course.checks import lesson1


def attend(x, h, W_Q, W_K, W_V, size=None, axis=1):
    q, k, v = x @ W_Q.T, h @ W_K.T, h @ W_V.T
    return (q @ k.T / (size or q.shape[1] ** 0.5)).softmax(axis) @ v


def gram(weights):
    return sum(W.T @ W for W in weights)


SWAPPED = {"before": asked("church", 0), "word": asked("church", 5), "padding": asked("church", 1)}
SWAPPED |= {"word and padding": asked("church", 20)}

RIGHT = {
    "attend": (lesson1.attend, attend),
    "ranked": (lesson1.ranked, ["word and padding", "word", "padding", "before"], SWAPPED),
    "gram": (lesson1.gram, gram),
}

WRONG = {
    "attend": [
        (lambda *given: attend(*given, size=1), "not divided"),
        (lambda *given: attend(*given, size=len(given[2])), "and not by the width"),
        (lambda *given: attend(*given, size=given[1].shape[1] ** 0.5), "that of the token"),
        (lambda *given: attend(*given, axis=0), "rows of h"),
        (
            lambda x, h, W_Q, W_K, W_V: (x @ W_Q.T) @ (h @ W_K.T).T / len(W_Q) ** 0.5 @ (h @ W_V.T),
            "softmax is missing",
        ),
        (lambda x, h, W_Q, W_K, W_V: attend(x, h, W_Q, W_K, W_K), "not the keys"),
        (lambda x, h, W_Q, W_K, W_V: (h @ W_V.T).mean(0).expand(len(x), -1), "mean of all values"),
        (lambda x, h, W_Q, W_K, W_V: attend(x, h, W_Q, W_K, W_V).T, "shape"),
        (lambda x, h, W_Q, W_K, W_V: attend(2 * x, h, W_Q, W_K, W_V), "something else"),
    ],
    "ranked": [
        (["before", "padding", "word", "word and padding"], SWAPPED, "the largest effect comes first"),
        (["word", "word and padding", "padding", "before"], SWAPPED, "'word' stands before 'word and padding'"),
        (["word and padding", "word", "padding"], SWAPPED, "'before' is missing"),
        (["word and padding", "word", "padding", "end"], SWAPPED, "none of the groups"),
        (["word and padding", "word", "padding", "before", "word"], SWAPPED, "twice"),
        ("word", SWAPPED, "missing"),
    ],
    "gram": [
        (lambda weights: gram(weights) / len(weights), "mean"),
        (lambda weights: weights[-1].T @ weights[-1], "last layer"),
        (lambda weights: weights[0].T @ weights[0], "first layer"),
        (lambda weights: weights[0] @ weights[0].T, "shape"),
        (lambda weights: torch.linalg.cholesky(gram(weights)).T, "root"),
        (lambda weights: gram(weights) @ gram(weights), "twice"),
        (lambda weights: gram(weights) + 1, r"three layers answer"),
        (lambda weights: 2 * gram(weights).tril() - gram(weights).diag().diag(), "symmetric"),
    ],
}
