"""The theorems behind the closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rece import solver

D = 12
REGS = solver.REGULARISERS


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sets(n=4, m=3, d=D, seed=0):
    return random(n, d, seed=seed), random(n, d, seed=seed + 1), random(m, d, seed=seed + 2)


def edit_loss(new, W, K, T, P, lamb, e, p):
    return (
        e * (K @ new.T - T @ W.T).square().sum()
        + p * (P @ new.T - P @ W.T).square().sum()
        + lamb * (new - W).square().sum()
    )


def test_edit_is_stationary_and_optimal_for_every_layer():
    K, T, P = sets()
    M = solver.edit_map(K, T, P.T @ P, lamb=0.3, erase_scale=0.7, preserve_scale=0.2)
    for out in (5, 20):
        W = random(out, D, seed=out)
        new = (W @ M).requires_grad_()
        loss = edit_loss(new, W, K, T, P, 0.3, 0.7, 0.2)
        (slope,) = torch.autograd.grad(loss, new)
        assert_close(slope, torch.zeros_like(slope), atol=1e-11, rtol=0)
        assert edit_loss(W, W, K, T, P, 0.3, 0.7, 0.2) > loss
        for seed in range(5):
            assert edit_loss(new + 1e-3 * random(out, D, seed=seed), W, K, T, P, 0.3, 0.7, 0.2) > loss


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 20), m=st.integers(0, 5), d=st.integers(1, 16), lamb=st.floats(1e-2, 1e2))
def test_edit_has_the_rank_of_its_rows_and_the_order_of_rows_is_free(n, m, d, lamb):
    K, T, P = random(n, d), random(n, d, seed=1), random(m, d, seed=2)
    M = solver.edit_map(K, T, P.T @ P, lamb=lamb)
    assert M.shape == (d, d) and M.dtype == torch.float64
    sizes = torch.linalg.svdvals(M - torch.eye(d, dtype=M.dtype))
    assert (sizes > 1e-10 * max(1.0, sizes[0].item())).sum() <= n
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    assert_close(solver.edit_map(K[order], T[order], P.flip(0).T @ P.flip(0), lamb=lamb), M, atol=1e-9, rtol=1e-9)


def test_large_lamb_changes_nothing_and_small_lamb_meets_the_targets():
    K, T, _ = sets()
    eye = torch.eye(D, dtype=torch.float64)
    assert (solver.edit_map(K, T, lamb=1.0) - eye).norm() > 0.1
    assert_close(solver.edit_map(K, T, lamb=1e12), eye, atol=1e-9, rtol=0)
    assert (K - T).norm() > 1
    assert_close(K @ solver.edit_map(K, T, lamb=1e-9).T, T, atol=1e-6, rtol=0)


def test_preserved_rows_stay_when_their_weight_is_large():
    K, T, P = sets()
    moved = [(P @ solver.edit_map(K, T, P.T @ P, lamb=0.1, preserve_scale=s).T - P).norm() for s in (0.0, 1.0, 1e8)]
    assert moved[0] > moved[1] > moved[2] and moved[2] < 1e-5


def test_targets_that_are_met_already_ask_for_no_edit():
    K, _, P = sets()
    assert_close(solver.edit_map(K, K, P.T @ P, lamb=0.1), torch.eye(D, dtype=torch.float64), atol=0, rtol=0)


def test_a_preserve_set_of_none_empty_and_weight_zero_are_the_same():
    K, T, P = sets()
    plain = solver.edit_map(K, T, lamb=0.1)
    assert_close(solver.edit_map(K, T, P[:0].T @ P[:0], lamb=0.1), plain, atol=0, rtol=0)
    assert_close(solver.edit_map(K, T, P.T @ P, lamb=0.1, preserve_scale=0.0), plain, atol=0, rtol=0)


def test_rounds_compose_by_multiplication():
    K, T, P = sets()
    K2, T2, P2 = sets(seed=5)
    first, second = solver.edit_map(K, T, P.T @ P, lamb=0.2), solver.edit_map(K2, T2, P2.T @ P2, lamb=0.3)
    W1 = random(7, D, seed=9) @ first
    new = (W1 @ second).requires_grad_()
    (slope,) = torch.autograd.grad(edit_loss(new, W1, K2, T2, P2, 0.3, 1.0, 1.0), new)
    assert_close(slope, torch.zeros_like(slope), atol=1e-10, rtol=0)


def test_gram_is_the_sum_over_layers_in_float64():
    weights = [random(n, D, seed=n) for n in (3, 8)]
    whole = torch.cat(weights)
    assert_close(solver.gram(weights), whole.T @ whole)
    assert solver.gram(W.to(torch.bfloat16) for W in weights).dtype == torch.float64


@pytest.mark.parametrize("reg", solver.REGULARISERS)
def test_derived_embedding_is_stationary_and_optimal(reg):
    weights = [random(n, D, seed=n) for n in (20, 8)]
    C, target = random(3, D, seed=1), random(3, D, seed=2)
    M = solver.edit_map(C, target, lamb=0.5)
    lamb = 0.3
    derived = solver.derive(M, solver.gram(weights), C, lamb=lamb, reg=reg, target=target).requires_grad_()

    def loss(c):
        match = sum((c @ (W @ M).T - C @ W.T).square().sum() for W in weights)
        pull = 0.0
        if reg in ("surrogate1", "both"):
            pull = sum((c @ (W @ M).T - C @ (W @ M).T).square().sum() for W in weights)
        if reg in ("surrogate2", "both"):
            pull = pull + (c - C).square().sum()
        if reg in ("zero", "target"):
            pull = (c - (target if reg == "target" else 0)).square().sum()
        return match + lamb * pull

    (slope,) = torch.autograd.grad(loss(derived), derived)
    assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)
    for seed in range(5):
        assert loss(derived + 1e-3 * random(3, D, seed=seed)) > loss(derived)
    assert loss(C) > loss(derived)


def test_derived_embedding_inverts_the_edit_and_treats_rows_apart():
    C, T = random(3, D, seed=1), random(3, D, seed=2)
    M, G = solver.edit_map(C, T, lamb=0.5), solver.gram([random(30, D)])
    derived = solver.derive(M, G, C, lamb=1e-8)
    assert (C @ M.T - C).norm() > 1
    assert_close(derived @ M.T, C, atol=1e-4, rtol=0)
    assert_close(solver.derive(M, G, C[1:2], lamb=1e-8), derived[1:2], atol=1e-6, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 40), part=st.integers(1, 39), near=st.sampled_from([1.0, 1e-6]), reg=st.sampled_from(REGS))
def test_compressed_rows_give_the_edits_and_derivations_of_all_rows(n, part, near, reg):
    """Also where targets all but are the tokens: the change M - I itself is exact then, not only M."""
    K, P, G = random(n, D), random(3, D, seed=2), solver.gram([random(20, D, seed=3)])
    T = K + near * random(n, D, seed=1)
    part, numbers = min(part, n - 1), dict(lamb=2.0, erase_scale=0.7, preserve_scale=0.3)
    S = solver.gram_of_pairs(K[:part], T[:part]) + solver.gram_of_pairs(K[part:], T[part:])
    few, aims = solver.compress(S)
    assert few.shape == aims.shape and len(few) <= min(n, 2 * D)
    M = eye = torch.eye(D, dtype=torch.float64)
    for _ in range(1 if reg == "surrogate1" else 3):  # without a ridge it is ill-conditioned later on
        derived = solver.derive(M, G, K, lamb=0.5, reg=reg, target=T)
        of_few = solver.derive(M, G, few, lamb=0.5, reg=reg, target=aims)
        cases = [((K, T), (few, aims)), ((derived, T), (of_few, aims))]
        cases.append([tuple(map(torch.cat, zip(*both, strict=True))) for both in zip(*cases, strict=True)])
        for rows, others in cases:
            edit = solver.edit_map(*rows, P.T @ P, **numbers)
            assert (solver.edit_map(*others, P.T @ P, **numbers) - edit).norm() <= 1e-7 * (edit - eye).norm()
        M = M @ edit


@pytest.mark.parametrize("S", [torch.eye(3), torch.ones(2, 4), torch.full((4, 4), math.nan)])
def test_bad_sums_are_refused(S):
    with pytest.raises(ValueError, match="^S (must be square|holds values)"):
        solver.compress(S.double())


def test_factors_rebuild_the_map_with_the_rank_of_the_rows_or_the_least_loss():
    K, T, P = sets()
    M = solver.edit_map(K, T, P.T @ P, lamb=0.1)
    eye = torch.eye(D, dtype=M.dtype)
    U, V, loss = solver.factor(M)
    assert U.shape == V.shape == (D, len(K))
    assert loss < 1e-7
    assert_close(eye + U @ V.T, M, atol=1e-9, rtol=0)
    U, V, loss = solver.factor(M, rank=2)
    sizes = torch.linalg.svdvals(M - eye)
    assert U.shape == (D, 2)
    assert_close(loss, (sizes[2:].norm() / sizes.norm()).item())
    assert_close((M - eye - U @ V.T).norm(), sizes[2:].norm())
    assert solver.factor(eye)[0].shape == (D, 0)


BAD = {
    "rows differ": (dict(T=random(3, D)), "T must match K"),
    "width differs": (dict(PP=random(2, D)), "PP must be P.T P of preserved tokens P"),
    "no rows": (dict(K=random(0, D)), "K must be a matrix"),
    "whole numbers": (dict(K=torch.ones(4, D, dtype=torch.long)), "K must be a matrix of floats"),
    "not a tensor": (dict(K=[[1.0]]), "K must be a matrix"),
    "nan": (dict(K=torch.full((4, D), math.nan)), "K holds values that are not finite"),
    "inf": (dict(PP=torch.full((D, D), math.inf)), "PP holds values that are not finite"),
    "lamb zero": (dict(lamb=0.0), "lamb must be a positive"),
    "lamb nan": (dict(lamb=math.nan), "lamb must be a positive"),
    "lamb text": (dict(lamb="0.1"), "lamb must be a positive"),
    "scale": (dict(preserve_scale=-1.0), "preserve_scale must be a non-negative"),
    "ill-conditioned": (dict(lamb=1e-14), "ill-conditioned.*raise lamb"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_the_edit_is_one_line_that_names_it(case):
    K, T, P = sets()
    change, message = BAD[case]
    given = {"K": K, "T": T, "PP": P.T @ P, "lamb": 0.1} | change
    with pytest.raises(ValueError, match=message) as error:
        solver.edit_map(given.pop("K"), given.pop("T"), given.pop("PP"), **given)
    assert "\n" not in str(error.value)


def test_bad_input_of_the_rest():
    C, G, M = random(3, D), solver.gram([random(20, D)]), torch.eye(D, dtype=torch.float64)
    with pytest.raises(ValueError, match="reg must be one of zero"):
        solver.derive(M, G, C, lamb=0.1, reg="none")
    with pytest.raises(ValueError, match="target must be given"):
        solver.derive(M, G, C, lamb=0.1, reg="target")
    with pytest.raises(ValueError, match="M and G must be"):
        solver.derive(M[:3, :3], G, C, lamb=0.1)
    flat = M.clone()
    flat[0] = 0.0
    with pytest.raises(ValueError, match="ill-conditioned.*'zero'"):
        solver.derive(flat, G, C, lamb=0.1, reg="surrogate1")
    with pytest.raises(ValueError, match="weights is empty"):
        solver.gram([])
    with pytest.raises(ValueError, match=r"weights\[1\] must be \(out, 12\)"):
        solver.gram([random(3, D), random(3, D + 1)])
    with pytest.raises(ValueError, match=r"weights\[0\] holds"):
        solver.gram([torch.full((2, D), math.nan)])
    with pytest.raises(ValueError, match="rank must be between 1 and the width 12"):
        solver.factor(M, rank=0)


@settings(max_examples=30, deadline=None)
@given(exponent=st.floats(0, 11), seed=st.integers(0, 100))
def test_the_condition_number_is_estimated_within_a_factor_of_the_width(exponent, seed):
    Q = torch.linalg.qr(random(D, D, seed=seed)).Q
    sizes = torch.logspace(0, exponent, D, dtype=torch.float64)
    A = Q * sizes @ Q.T
    estimate = solver._condition(A, torch.linalg.cholesky(A))
    assert 0.3 * 10**exponent < estimate < D * 10**exponent
