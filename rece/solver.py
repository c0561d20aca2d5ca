"""The closed form, tensors in and tensors out.

Every linear layer W that reads a prompt token h is edited by one and the same matrix, W' = W M, so an edit of the
whole model is the (d, d) map M and nothing else. Token sets are matrices with one token per row; d is the width of
the prompt embedding.

Everything is computed and returned in float64, on the device of the input; where a device has no float64 (MPS), on
the CPU. Systems are solved, by Cholesky where they are positive definite; no inverse is formed.

Tokens K and their targets T enter an edit through K^T K and K^T (T - K) alone, and a derived token is a linear
function of its concept and target. So there are two forms of one algorithm: `Rows` holds the tokens themselves, `Sums`
holds (d, d) sums over them, whose size and whose cost per round do not grow with their number.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

REGULARISERS = ("zero", "target", "surrogate1", "surrogate2", "both")

# Beyond this condition number float64 guarantees fewer than four digits (1e12 x 1.1e-16 = 1e-4), which is where the
# rounding of half-precision weights (5e-4) lies.
MAX_CONDITION = 1e12


def edit_map(
    K: Tensor,
    T: Tensor,
    P: Tensor | None = None,
    *,
    lamb: float,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
) -> Tensor:
    """The map M whose edit W' = W M sends the tokens K to where W sends T and moves P and everything else little.

    W' minimises  erase_scale * sum |W'k - Wt|^2 + preserve_scale * sum |W'p - Wp|^2 + lamb * |W' - W|^2  for every W
    at once: M = I + e (T - K)^T K A^-1  with  A = lamb I + e K^T K + p P^T P.

    K, T: (n, d), matched row by row. P: (m, d) or None. lamb has the unit of a squared token norm.
    Returns M, (d, d) float64; M - I has at most n nonzero singular values.
    Raises ValueError on shapes that do not match, non-finite values, scales out of range, or an ill-conditioned A.
    Source: the closed form of UCE (arXiv 2308.14761) and RECE (arXiv 2407.12383, eq. 3); the layer-free form is ours.
    """
    K, T = _rows(K, "K"), _rows(T, "T")
    if K.shape != T.shape:
        raise ValueError(f"T must match K row by row: K is {tuple(K.shape)}, T is {tuple(T.shape)}")
    _scales(lamb, erase_scale, preserve_scale)
    PP = None
    if P is not None and len(P):
        P = _rows(P, "P")
        if P.shape[1] != K.shape[1]:
            raise ValueError(f"P must have the width of K: K is {tuple(K.shape)}, P is {tuple(P.shape)}")
        PP = P.T @ P
    tokens, scales = Rows(K, T), {"erase_scale": erase_scale, "preserve_scale": preserve_scale}
    return edit_map_of_sums(tokens.KK, tokens.KR, PP, lamb=lamb, **scales)


def edit_map_of_sums(
    KK: Tensor,
    KR: Tensor,
    PP: Tensor | None = None,
    *,
    lamb: float,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
) -> Tensor:
    """`edit_map` for K^T K, K^T (T - K) and P^T P, all that it reads of its rows: M = I + e (K^T (T - K))^T A^-1.

    KK, KR, PP: (d, d), of as many rows as one likes; PP may be None. The rest, the result and the errors are those of
    `edit_map`. Source: ours.
    """
    KK, KR = _rows(KK, "KK"), _rows(KR, "KR")
    PP = None if PP is None else _rows(PP, "PP").to(KK.device)
    d = KK.shape[1]
    if not KK.shape == KR.shape == (KK if PP is None else PP).shape == (d, d):
        shapes = [tuple(x.shape) for x in (KK, KR, PP) if x is not None]
        raise ValueError(f"KK, KR and PP must be square and of one width, but are {shapes}")
    _scales(lamb, erase_scale, preserve_scale)
    eye = torch.eye(d, dtype=KK.dtype, device=KK.device)
    A = lamb * eye + erase_scale * KK
    if PP is not None:
        A = A + preserve_scale * PP
    return eye + erase_scale * _solve(A, KR).T


def gram(weights: Iterable[Tensor]) -> Tensor:
    """G = sum W^T W over (out, d) weights: all that the derived embedding needs to know of a model.

    Returns (d, d) float64. One weight at a time is held in float64.
    Raises ValueError if there are no weights, if their widths differ or if a value is not finite. Source: ours.
    """
    G = None
    for index, weight in enumerate(weights):
        W = precise(weight)
        if W.ndim != 2 or (G is not None and W.shape[1] != G.shape[0]):
            expected = "(out, d)" if G is None else f"(out, {G.shape[0]})"
            raise ValueError(f"weights[{index}] must be {expected}, but is {tuple(W.shape)}")
        G = W.T @ W if G is None else G + (W.T @ W).to(G.device)
        if not torch.isfinite(G).all():
            raise ValueError(f"weights[{index}] holds values that are not finite: reload the model")
    if G is None:
        raise ValueError("weights is empty: there is no layer to take the Gram matrix of")
    return G


def derive(M: Tensor, G: Tensor, C: Tensor, *, lamb: float, reg: str = "zero", target: Tensor | None = None) -> Tensor:
    """The embeddings C' that the edited model W' = W M answers as the original model W answers the concept C.

    Each row c' minimises  sum |W'c' - Wc|^2 + lamb * R  over all layers, where R is, by `reg`:
    "zero" |c'|^2; "target" |c' - t|^2; "surrogate1" sum |W'c' - W'c|^2; "surrogate2" |c' - c|^2;
    "both" the sum of the last two. With A = M^T G M and B = M^T G this is one (d, d) solve. "surrogate1" has no ridge.

    M, G: (d, d). C, target: (n, d); `target` is read by reg="target" only. lamb has the unit of a squared weight.
    Returns C', (n, d) float64.
    Raises ValueError on an unknown reg, shapes that do not match, non-finite values or an ill-conditioned system.
    Source: RECE (arXiv 2407.12383) and the regularisers of its official code; the Gram form is ours.
    """
    M, G, C = _rows(M, "M"), _rows(G, "G"), _rows(C, "C")
    d = C.shape[1]
    if M.shape != (d, d) or G.shape != (d, d):
        raise ValueError(f"M and G must be ({d}, {d}) like C's width, but are {tuple(M.shape)} and {tuple(G.shape)}")
    positive(lamb, "lamb")
    if reg not in REGULARISERS:
        raise ValueError(f"reg must be one of {', '.join(REGULARISERS)}, not {reg!r}")
    M, G = M.to(C.device), G.to(C.device)
    if reg == "surrogate1":  # M^-1 c meets both terms' normal equations whatever G is
        _well_conditioned(torch.linalg.cond(M).item(), "choose a reg with a ridge, e.g. 'zero'")
        return (torch.linalg.solve(M, C.T).T + lamb * C) / (1 + lamb)
    B = M.T @ G
    A = B @ M
    eye = torch.eye(d, dtype=C.dtype, device=C.device)
    right = C @ B.T
    if reg == "zero":
        left = A + lamb * eye
    elif reg == "target":
        target = None if target is None else _rows(target, "target").to(C.device)
        if target is None or target.shape != C.shape:
            shape = None if target is None else tuple(target.shape)
            raise ValueError(f"target must be given with reg='target' and match C {tuple(C.shape)}, but is {shape}")
        left, right = A + lamb * eye, right + lamb * target
    elif reg == "surrogate2":
        left, right = A + lamb * eye, right + lamb * C
    else:
        left, right = (1 + lamb) * A + lamb * eye, right + lamb * (C @ A + C)
    return _solve(left, right.T).T


@dataclass(frozen=True)
class Rows:
    """Tokens K and their targets T, row by row: (n, d) float64 each. a + b has the rows of both."""

    K: Tensor
    T: Tensor

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(torch.cat([self.K, other.K]), torch.cat([self.T, other.T]))

    @property
    def KK(self) -> Tensor:
        """K^T K, (d, d)."""
        return self.K.T @ self.K

    @property
    def KR(self) -> Tensor:
        """K^T R with R = T - K, (d, d)."""
        return self.K.T @ (self.T - self.K)

    def derive(self, M: Tensor, G: Tensor, *, lamb: float, reg: str = "zero") -> "Rows":
        """The tokens that `derive` makes of K, with the same targets."""
        return Rows(derive(M, G, self.K, lamb=lamb, reg=reg, target=self.T), self.T)

    def sums(self, reg: str = "zero") -> "Sums":
        """The same tokens as sums that can be derived from with `reg`."""
        R = self.T - self.K
        return Sums(self.KK, self.K.T @ R, R.T @ R if reg == "target" else None)


@dataclass(frozen=True)
class Sums:
    """What an edit and a derivation need of any number of rows K with targets T = K + R: (d, d) float64 each.

    KK: K^T K. KR: K^T R. RR: R^T R, which is read by reg="target" only, or None. a + b has the rows of both. R is
    summed rather than T so that nothing cancels where targets are close to tokens.
    """

    KK: Tensor
    KR: Tensor
    RR: Tensor | None = None

    def __add__(self, other: "Sums") -> "Sums":
        RR = None if self.RR is None or other.RR is None else self.RR + other.RR
        return Sums(self.KK + other.KK, self.KR + other.KR, RR)

    def derive(self, M: Tensor, G: Tensor, *, lamb: float, reg: str = "zero") -> "Sums":
        """The sums of the tokens that `derive` makes of K, with the same targets, ready for an edit.

        Those are  D = K X + R Y,  hence  T - D = K (I - X) + R (I - Y),  where X is what `derive` makes of the rows of
        I with themselves as targets, and Y what it makes of zero rows with those targets: 0 unless reg="target".
        Raises ValueError as `derive` does, or if RR is lacking.
        """
        eye = torch.eye(len(self.KK), dtype=self.KK.dtype, device=self.KK.device)
        X = derive(M, G, eye, lamb=lamb, reg=reg, target=eye)
        if reg != "target":
            return Sums(X.T @ self.KK @ X, X.T @ (self.KK @ (eye - X) + self.KR))
        if self.RR is None:
            raise ValueError("RR must be given with reg='target': make the sums with Rows.sums(reg='target')")
        Y = derive(M, G, torch.zeros_like(eye), lamb=lamb, reg=reg, target=eye)
        S = torch.cat([torch.cat([self.KK, self.KR], 1), torch.cat([self.KR.T, self.RR], 1)])
        Z, rest = torch.cat([X, Y]), torch.cat([eye - X, eye - Y])
        return Sums(Z.T @ S @ Z, Z.T @ S @ rest)


def factor(M: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, float]:
    """M = I + U V^T with as few columns as M needs, or with `rank` columns and the least loss.

    Without `rank`, singular values of M - I below float32's resolution of a weight (1.2e-7 of the larger of 1 and the
    largest singular value) are left out: they would not change a float32 weight.
    M: (d, d). Returns U, V, both (d, r) float64 (r may be 0), and the loss |M - I - U V^T|_F / |M - I|_F.
    Raises ValueError if M is not square or not finite, or if rank is not in 1..d. Source: Eckart-Young.
    """
    M = _rows(M, "M")
    d = M.shape[1]
    if M.shape[0] != d:
        raise ValueError(f"M must be square, but is {tuple(M.shape)}")
    if rank is not None and not 1 <= rank <= d:
        raise ValueError(f"rank must be between 1 and the width {d}, not {rank}")
    left, sizes, right = torch.linalg.svd(M - torch.eye(d, dtype=M.dtype, device=M.device))
    floor = torch.finfo(torch.float32).eps * max(1.0, sizes[0].item())
    numerical = int((sizes > floor).sum())
    r = numerical if rank is None else min(rank, numerical)
    total = sizes.norm().item()
    loss = sizes[r:].norm().item() / total if total > 0 else 0.0
    return left[:, :r] * sizes[:r], right[:r].T.contiguous(), loss


def precise(x: Tensor) -> Tensor:
    """x in float64 on its own device, or on the CPU where the device has no float64 (MPS). Carries no gradient."""
    device = "cpu" if x.device.type == "mps" else x.device
    return x.detach().to(device).to(torch.float64)


def positive(value: float, name: str, or_zero: bool = False) -> None:
    """Raises ValueError unless value is a positive (or zero, if allowed) finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0 or (value == 0 and not or_zero):
        raise ValueError(f"{name} must be a {'non-negative' if or_zero else 'positive'} finite number, not {value!r}")


def _scales(lamb: float, erase_scale: float, preserve_scale: float) -> None:
    positive(lamb, "lamb")
    positive(erase_scale, "erase_scale")
    positive(preserve_scale, "preserve_scale", or_zero=True)


def _rows(x: Tensor, name: str) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 2 or 0 in x.shape or not x.is_floating_point():
        shape = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a matrix of floats with at least one row, one token per row, but is {shape}")
    x = precise(x)
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} holds values that are not finite")
    return x


def _solve(A: Tensor, B: Tensor) -> Tensor:
    """A^-1 B for symmetric positive definite A, refused where the condition number passes MAX_CONDITION."""
    L, failed = torch.linalg.cholesky_ex(A)
    _well_conditioned(math.inf if failed.item() else _condition(A, L), "raise lamb")
    return torch.cholesky_solve(B, L)


def _well_conditioned(condition: float, remedy: str) -> None:
    if not condition <= MAX_CONDITION:
        raise ValueError(f"ill-conditioned: condition number {condition:.0e} is over {MAX_CONDITION:.0e}: {remedy}")


def _condition(A: Tensor, L: Tensor) -> float:
    """An estimate of A's condition number: largest row sum times a few steps of inverse iteration on A = L L^T."""
    x = torch.randn(len(A), 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(A.device)
    grown = x.norm(dim=0)
    for _ in range(4):
        x = torch.cholesky_solve(x / x.norm(dim=0), L)
        grown = x.norm(dim=0)
    return A.abs().sum(dim=1).max().item() * grown.max().item()
