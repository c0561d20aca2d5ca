"""The closed form, tensors in and tensors out.

Every linear layer W that reads a prompt token h is edited by the same matrix: W' = W M. So an edit of the whole model
is the (d, d) map M and nothing else. Token sets are matrices with one token per row. d is the width of the prompt
embedding.

Everything is computed and returned in float64, on the device of the input; where a device has no float64 (MPS), on
the CPU. Systems are solved by Cholesky where they are positive definite. No inverse is formed.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

REGULARISERS = ("zero", "target", "surrogate1", "surrogate2", "both")

# Beyond this condition number float64 guarantees fewer than four digits (1e12 x 1.1e-16 = 1e-4). Rounding to a half
# type is of that size (5e-4).
MAX_CONDITION = 1e12

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
MOST = 1e30  # the largest number that a user may give: sums of its square stay far below float64's largest


def edit_map(
    K: Tensor,
    T: Tensor,
    PP: Tensor | None = None,
    *,
    lamb: float,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
) -> Tensor:
    """The map M whose edit W' = W M sends the tokens K to where W sends T, and moves all else little.

    W' minimises  erase_scale * sum |W'k - Wt|^2 + preserve_scale * sum |W'p - Wp|^2 + lamb * |W' - W|^2  for every W
    at once: M = I + e (T - K)^T K A^-1  with  A = lamb I + e K^T K + p P^T P.

    K, T: (n, d), matched row by row; thousands of rows can be made few, see `compress`. PP: P^T P of the preserved
    tokens P (one per row), (d, d), or None. lamb has the unit of a squared token norm.
    Returns M, (d, d) float64; M - I has at most n nonzero singular values.
    Raises ValueError on shapes that do not match, non-finite values, scales out of range, or an ill-conditioned A.
    Source: the closed form of UCE (arXiv 2308.14761) and RECE (arXiv 2407.12383, eq. 3); the layer-free form is ours.
    """
    K, T = _rows(K, "K"), _rows(T, "T")
    if K.shape != T.shape:
        raise ValueError(f"T must match K row by row: K is {tuple(K.shape)}, T is {tuple(T.shape)}")
    positive(lamb, "lamb")
    positive(erase_scale, "erase_scale")
    positive(preserve_scale, "preserve_scale", or_zero=True)
    d = K.shape[1]
    eye = torch.eye(d, dtype=K.dtype, device=K.device)
    A = lamb * eye + erase_scale * (K.T @ K)
    if PP is not None:
        PP = _rows(PP, "PP").to(K.device)
        if PP.shape != (d, d):
            raise ValueError(f"PP must be P^T P of preserved tokens P, ({d}, {d}) like K's width: {tuple(PP.shape)}")
        A = A + preserve_scale * PP
    return eye + erase_scale * solve(A, K.T @ (T - K)).T


def gram(weights: Iterable[Tensor] | Mapping[str, Tensor]) -> Tensor:
    """G = sum W^T W over (out, d) weights: all that the derived embedding needs to know of a model.

    Returns (d, d) float64. One weight at a time is held in float64.
    Raises ValueError, naming the weight by its key or its number, if there are none, if their widths differ or if a
    value is not finite. Source: ours.
    """
    G = None
    for key, weight in weights.items() if isinstance(weights, Mapping) else enumerate(weights):
        W = precise(weight)
        if W.ndim != 2 or (G is not None and W.shape[1] != G.shape[0]):
            expected = "(out, d)" if G is None else f"(out, {G.shape[0]})"
            raise ValueError(f"weights[{key}] must be {expected}, but is {tuple(W.shape)}")
        G = W.T @ W if G is None else G + (W.T @ W).to(G.device)
        if not torch.isfinite(G).all():
            raise ValueError(f"weights[{key}] holds values that are not finite: reload the model")
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
    return solve(left, right.T, "raise lamb, the ridge of the derived embedding").T


def gram_of_pairs(K: Tensor, T: Tensor) -> Tensor:
    """Z^T Z of the rows Z = [K, T - K]: (2 d, 2 d) float64.

    An edit and its rounds need nothing else of the rows, however many there are.

    K, T: (n, d), matched row by row. Raises ValueError on shapes that do not match or non-finite values. Source: ours.
    """
    K, T = _rows(K, "K"), _rows(T, "T")
    Z = torch.cat([K, T - K], 1)
    return Z.T @ Z


def compress(S: Tensor) -> tuple[Tensor, Tensor]:
    """At most 2 d tokens K with targets T that stand for any number of rows: Z^T Z = S for Z = [K, T - K].

    An edit reads K^T K and K^T (T - K) alone, and a derived token is a linear function of its concept and target. So
    these few rows give the edit and the rounds of all rows. T - K is summed, not T: nothing cancels where the two are
    close.

    S: (2 d, 2 d), the sum of `gram_of_pairs` over all rows. Returns K and T, (r, d) float64, r being S's rank.
    Raises ValueError if S is not square or not finite. Source: ours; a symmetric eigendecomposition.
    """
    S = _rows(S, "S")
    if S.shape[0] != S.shape[1] or len(S) % 2:
        raise ValueError(f"S must be square, of an even width 2 d, but is {tuple(S.shape)}")
    sizes, directions = torch.linalg.eigh(S)
    kept = sizes > len(S) * torch.finfo(S.dtype).eps * sizes[-1]
    Z = sizes[kept].sqrt()[:, None] * directions[:, kept].T
    K, R = Z.chunk(2, 1)
    return K, K + R


def answer_space(G: Tensor) -> tuple[Tensor, Tensor]:
    """Q with Q^T Q = G, and its pseudo-inverse: Q x is what all layers answer to x, and |Q x| = |x|_G.

    Directions that no layer sees (eigenvalues of G below 1e-12 of the largest) are left out, so G may be singular.

    G: (d, d), symmetric positive semidefinite, not zero. Returns Q, (k, d), and (d, k), float64, k being G's rank.
    Raises ValueError if G is not a finite square matrix or has no positive eigenvalue. Source: ours.
    """
    G = _rows(G, "G")
    if G.shape[0] != G.shape[1]:
        raise ValueError(f"G must be square, but is {tuple(G.shape)}")
    sizes, directions = torch.linalg.eigh(G)
    seen = sizes > 1e-12 * sizes[-1].clamp(min=torch.finfo(G.dtype).tiny)
    if not seen.any():
        raise ValueError("G is zero: no layer answers anything")
    roots, directions = sizes[seen].sqrt(), directions[:, seen]
    return (directions * roots).T, directions / roots


def discriminant(D: Tensor, PP: Tensor, *, mu: float) -> Tensor:
    """U = orth((P + mu I)^-1 D): directions that see D and not what is preserved. P is PP with mean diagonal 1.

    Of all subspaces of this dimension it is the one with the largest |U^T D|^2 against U^T (P + mu I) U.

    D: (k, r), directions of the answer space. PP: (k, k), P^T P of the answers P to the preserved tokens, one per row.
    mu: what every direction costs, in units of the mean squared answer to what is preserved.
    Returns (k, r) float64, orthonormal columns. Raises ValueError on shapes that do not match, values that are not
    finite, a mu out of range, or an ill-conditioned system.
    Source: ours; a ridge discriminant. With mu = 0 these are the directions of LEACE (arXiv 2306.03819).
    """
    D, PP = _rows(D, "D"), _rows(PP, "PP")
    k = len(D)
    if PP.shape != (k, k):
        raise ValueError(f"PP must be ({k}, {k}) like D's length, but is {tuple(PP.shape)}")
    positive(mu, "mu", or_zero=True)
    A = PP / (PP.trace() / k).clamp(min=torch.finfo(PP.dtype).tiny)
    A = A + mu * torch.eye(k, dtype=A.dtype, device=A.device)
    return torch.linalg.qr(solve(A, D, "raise mu"))[0]


def oblique(U: Tensor, D: Tensor, share: float) -> Tensor:
    """E with E^T U = I: U itself (share 0), D (U^T D)^-1, which sends D to nothing (share 1), or a mixture of the two.

    U, D: (k, r). Returns (k, r). Raises ValueError if share is not in 0..1. Source: ours.
    """
    fraction(share, "oblique")
    return (1 - share) * U + (share * torch.linalg.solve(U.T @ D, D, left=False) if share else 0)


def guard_map(Q: Tensor, back: Tensor, U: Tensor, E: Tensor) -> Tensor:
    """The map M after which no embedding h is answered nearer to c than |U^T Q c|: |M h - c|_G >= |U^T Q c|.

    In the answer space M is I - E U^T. With E = U it is the orthogonal projection, and the concept's own token attains
    the bound. Of all maps whose answers stay in the same subspace, this one moves every token least.

    Q, back: see `answer_space`. U, E: (k, r), U with orthonormal columns and E^T U = I. Returns M, (d, d) float64;
    M M = M. Source: ours.
    """
    return torch.eye(len(back), dtype=U.dtype, device=U.device) - (back @ E) @ (U.T @ Q)


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


def sketch(tensors: Iterable[Tensor]) -> list[float]:
    """Four numbers that tell sets of weights apart, whatever their dtype: see `alike`. It reads eight entries of each.

    Weights that are not in memory (meta tensors) are left out; of none, the empty list.
    """
    parts = [one.detach().flatten()[:: max(1, one.numel() // 8)].cpu().double() for one in tensors if not one.is_meta]
    if not parts:
        return []
    x = torch.cat(parts)
    angles = torch.arange(len(x), dtype=torch.float64)[:, None] * torch.arange(1, 5)
    return [float(f"{number:.6g}") for number in (x / x.norm().clamp(min=1e-30) @ angles.cos()).tolist()]


def alike(some: list[float], other: list[float]) -> bool:
    """Whether two sketches are of the same weights, up to the rounding of bfloat16."""
    return len(some) == len(other) and all(abs(a - b) < 0.02 for a, b in zip(some, other, strict=True))


def positive(value: float, name: str, or_zero: bool = False) -> None:
    """Raises ValueError unless value is a positive (or zero, if allowed) number, and at most MOST."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= MOST or not (value or or_zero):
        kind = "non-negative" if or_zero else "positive"
        raise ValueError(f"{name} must be a {kind} finite number, {MOST:.0e} at most, not {shown(value)}")


def fraction(value: float, name: str, or_zero: bool = True) -> None:
    """Raises ValueError unless value is a number from 0 (or above it, if zero is not allowed) to 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or not (value or or_zero):
        least = "from 0" if or_zero else "above 0, up"
        raise ValueError(f"{name} must be a number {least} to 1, not {shown(value)}")


def whole(least: int = 1, most: int = 10**6, **counts: int) -> None:
    """Raises ValueError, naming the parameter, unless all are whole numbers from `least` to `most`."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or not least <= count <= most:
            raise ValueError(f"{name} must be a whole number, {least} or more ({most:,} at most), not {shown(count)}")


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ValueError unless dtype is one of FLOATS."""
    if dtype not in FLOATS.values():
        raise ValueError(f"dtype must be one of {', '.join(map(str, FLOATS.values()))}, not {shown(dtype)}")


def flags(**values: bool) -> None:
    """Raises TypeError, naming the parameter, unless all are True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {shown(value)}")


def shown(value, length: int = 60) -> str:
    """A value as a message shows it: on one line, and not longer than this."""
    text = "a very large number" if isinstance(value, int) and abs(value) > MOST else " ".join(repr(value).split())
    return text if len(text) <= length else f"{text[:length]}…"


def _rows(x: Tensor, name: str) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 2 or 0 in x.shape or not x.is_floating_point():
        shape = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a matrix of floats with at least one row, one token per row, but is {shape}")
    x = precise(x)
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} holds values that are not finite")
    return x


def solve(A: Tensor, B: Tensor, remedy: str = "raise lamb") -> Tensor:
    """A^-1 B for symmetric positive definite A, refused where the condition number passes MAX_CONDITION."""
    L, failed = torch.linalg.cholesky_ex(A)
    _well_conditioned(math.inf if failed.item() else _condition(A, L), remedy)
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
