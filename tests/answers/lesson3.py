"""Answers to the exercises of lesson 3."""

import torch

from rece.course.checks import lesson3

RIGHT = {
    "derive": (
        lesson3.derive,
        lambda M, G, c, lamb: torch.linalg.solve(lamb * torch.eye(len(c), dtype=c.dtype) + M.T @ G @ M, M.T @ G @ c),
    ),
    "limit": (
        lesson3.limit,
        lambda M, G, c, lamb: lamb * torch.linalg.solve(M, c).norm() / torch.linalg.svdvals(M.T @ G @ M)[-1],
    ),
    "squared_size": (lesson3.squared_size, lambda h, gamma, beta: ((h - beta) / gamma).square().mean(1)),
}

WRONG = {
    "derive": [
        (lambda M, G, c, lamb: c, "c itself"),
        (lambda M, G, c, lamb: RIGHT["derive"][1](M.T, G, c, lamb), "transposed"),
        (lambda M, G, c, lamb: RIGHT["derive"][1](M, G, c, 0.0), "lamb is missing"),
        (lambda M, G, c, lamb: RIGHT["derive"][1](M, torch.eye(len(c), dtype=c.dtype), c, lamb), "G is missing"),
        (lambda M, G, c, lamb: torch.linalg.solve(lamb * torch.eye(9).double() + G, M.T @ G @ c), "edited layers"),
        (lambda M, G, c, lamb: 1.05 * RIGHT["derive"][1](M, G, c, lamb), "nearer"),
    ],
    "limit": [
        (
            lambda M, G, c, lamb: lamb * torch.linalg.solve(M, c).norm() / torch.linalg.svdvals(M)[-1],
            "value of M, and",
        ),
        (lambda M, G, c, lamb: lamb * c.norm() / torch.linalg.svdvals(M.T @ G @ M)[-1], r"\|c\|"),
        (
            lambda M, G, c, lamb: lamb * torch.linalg.solve(M, c).norm() / torch.linalg.svdvals(M.T @ G @ M)[0],
            "largest",
        ),
        (lambda M, G, c, lamb: 100 * RIGHT["limit"][1](M, G, c, lamb), "times too large"),
        (lambda M, G, c, lamb: 0.0, "you say at most"),
    ],
    "squared_size": [
        (lambda h, gamma, beta: h.square().mean(1), "h is not x"),
        (lambda h, gamma, beta: ((h - beta) / gamma).square().sum(1), "divide by d"),
        (lambda h, gamma, beta: (h / gamma).square().mean(1), "beta"),
        (lambda h, gamma, beta: ((h - beta) / gamma).square().mean(), "shape"),
    ],
}
