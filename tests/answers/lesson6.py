"""Answers to the exercises of lesson 6."""

import torch

from rece.course.checks import lesson6


def x_of(h, gamma, beta):
    return (h - beta) / gamma


def fits(x):
    return (x.mean(1).abs() < 1e-6) & (x.square().mean(1) < 1 + 1e-6)


def value(B, a, size, mu, ridge):
    y = torch.linalg.solve(B.T @ B + ridge * torch.eye(B.shape[1], dtype=B.dtype), B.T @ a)
    return (B @ y - a).square().sum() + mu * (y.square().sum() - size)


def limit(U, Q, c):
    return (U.T @ Q @ c).norm()


RIGHT = {
    "emitted": (lesson6.emitted, lambda h, gamma, beta: fits(x_of(h, gamma, beta))),
    "below": (lesson6.below, lambda B, a, size, mu: value(B, a, size, mu, mu)),
    "guarded": (lesson6.guarded, lambda U, Q, c: (limit(U, Q, c), c)),
}

WRONG = {
    "emitted": [
        (lambda h, gamma, beta: x_of(h, gamma, beta).square().mean(1) < 1 + 1e-6, "mean 0.3"),
        (lambda h, gamma, beta: x_of(h, gamma, beta).mean(1).abs() < 1e-6, "1.1 d"),
        (
            lambda h, gamma, beta: fits(x_of(h, gamma, beta)) & (x_of(h, gamma, beta).square().mean(1) > 1 - 1e-4),
            r"\|x\|\^2 < d",
        ),
        (lambda h, gamma, beta: fits(h), "refuses a token that a LayerNorm emitted"),
        (lambda h, gamma, beta: fits(h / gamma - beta), "refuses a token that a LayerNorm emitted"),
        (lambda h, gamma, beta: torch.ones(len(h), dtype=bool), "accepts a token"),
        (lambda h, gamma, beta: fits(x_of(h, gamma, beta)).all(), "shape"),
    ],
    "below": [
        (lambda B, a, size, mu: value(B, a, size, mu, mu) + mu * size, "mu size is missing"),
        (lambda B, a, size, mu: value(B, a, size, mu, mu) + 2 * mu * size, "wrong sign"),
        (lambda B, a, size, mu: value(B, a, 0, 0, mu), "term of mu"),
        (lambda B, a, size, mu: value(B, a, size, mu, 0), "mu = 0"),
        (lambda B, a, size, mu: value(B, a, size, mu, mu**2), "mu squared"),
        (lambda B, a, size, mu: value(B, a, size, mu, mu).sqrt(), "root"),
        (lambda B, a, size, mu: 0.0, "the least of the sum"),
        (lambda B, a, size, mu: a.square().sum(), "no bound"),
    ],
    "guarded": [
        (lambda U, Q, c: ((U.T @ c).norm(), c), "answered first"),
        (lambda U, Q, c: ((Q @ c - U @ (U.T @ Q @ c)).norm(), c), "part of the answer that is left"),
        (lambda U, Q, c: ((Q @ c).norm(), 0 * c), "h = 0"),
        (lambda U, Q, c: (limit(U, Q, c).square(), c), "square"),
        (lambda U, Q, c: (limit(U, Q, c), 0 * c), "your h comes to"),
        (lambda U, Q, c: (1.1 * limit(U, Q, c), c), "least squares over all h"),
        (lambda U, Q, c: limit(U, Q, c), "return two things"),
        (lambda U, Q, c: (limit(U, Q, c), ...), "is missing"),
    ],
}
