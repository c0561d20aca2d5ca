"""The checks of the exercises, a file per lesson. Each compares an answer with a second computation.

A check returns a Verdict, which a notebook shows as one line: right, not answered yet, or what is wrong and a next
step. It raises nothing, whatever it is given, so that a notebook runs to its end. It never says the solution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import torch
from torch import Tensor

MISTAKE = 1e-6  # an answer this near to that of a known mistake, relative to its size, is that mistake


@dataclass
class Verdict:
    """Whether an answer is right, and one line that says so or says why not. `right` is None if there is no answer."""

    right: bool | None
    says: str

    def __bool__(self) -> bool:
        return bool(self.right)

    def __repr__(self) -> str:
        return f"{ {True: '✓', False: '✗', None: '…'}[self.right] } {self.says}"


class _Open(Exception):
    """There is no answer yet."""


def check(compare: Callable[..., tuple[bool, str]]) -> Callable[..., Verdict]:
    """Makes a check of a function that compares answers and returns whether they are right, and what to say."""

    @wraps(compare)
    def checked(*answers) -> Verdict:
        try:
            return Verdict(*compare(*map(_given, answers)))
        except _Open:
            return Verdict(None, "not answered yet")
        except Exception as error:
            return Verdict(False, f"your answer raised {type(error).__name__}: {' '.join(str(error).split())[:150]}")

    return checked


def _given(answer):
    """An answer, or an answer that raises _Open as soon as it gives nothing."""
    if answer is None or answer is ...:
        raise _Open
    if not callable(answer):
        return answer

    @wraps(answer)
    def given(*args, **kwargs):
        found = answer(*args, **kwargs)
        if found is None or found is ...:
            raise _Open
        return found

    return given


def random(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(found: Tensor, wanted: Tensor) -> float:
    """How far two tensors are apart, relative to the size of the second."""
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-12)).item()


def shaped(found, wanted: Tensor, name: str) -> Tensor:
    """What was found as a float64 tensor. Raises ValueError if it has another shape than what is wanted."""
    found = torch.as_tensor(found, dtype=torch.float64)
    if found.shape != wanted.shape:
        raise ValueError(f"{name} has the shape {tuple(found.shape)}, and {tuple(wanted.shape)} is needed")
    return found


def mistaken(found: Tensor, mistakes: dict[str, Tensor]) -> str:
    """What went wrong, if what was found is what a known mistake gives."""
    for cause, made in mistakes.items():
        if made.shape == found.shape and near(found, made) < MISTAKE:
            return cause
    return ""
