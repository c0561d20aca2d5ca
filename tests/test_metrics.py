"""Intervals, drift, FID and KID against hand calculation and literal formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rece.judges.metrics import drift, fid, kid
from rece.study.statistics import rank_correlation, wilson
from rece.study.statistics import success_rate as success


class Means(torch.nn.Module):
    """A toy feature extractor: the mean of each channel, 0 to 255."""

    num_features = 3

    def forward(self, images):
        return images.double().mean((2, 3))


def pictures(n, seed=0, low=40, high=200):
    return np.random.default_rng(seed).integers(low, high, (n, 4, 4, 3)).astype(np.uint8)


def test_wilson_by_hand():
    # 8 of 10: centre (8 + z^2/2) / (10 + z^2), half width z sqrt(8 * 2 / 10 + z^2 / 4) / (10 + z^2), z = 1.959964
    np.testing.assert_allclose(wilson(8, 10), (0.4901625, 0.9433178), atol=1e-7)
    z = 1.959964
    np.testing.assert_allclose(wilson(0, 20), (0, z**2 / (20 + z**2)), atol=1e-6)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_properties(trial):
    k, n = trial
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1 and low < high
    mirrored = wilson(n - k, n)
    np.testing.assert_allclose((1 - high, 1 - low), mirrored, atol=1e-12)
    if k:  # four times the data at the same rate: a narrower interval
        narrow = wilson(4 * k, 4 * n)
        assert narrow[1] - narrow[0] < high - low


@pytest.mark.parametrize(
    "k, n, name", [(0, 0, "n"), (1, -1, "n"), (3, 2, "successes"), (-1, 2, "successes"), (0.5, 2, "s")]
)
def test_wilson_bad_input(k, n, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        wilson(k, n)


def test_success_row():
    row = success([True, False, True, True], concept="dog", method="uce", attack="plain")
    assert list(row) == ["concept", "method", "attack", "n", "successes", "rate", "low", "high"]
    assert (row["n"], row["successes"], row["rate"]) == (4, 3, 0.75) and (row["low"], row["high"]) == wilson(3, 4)
    for hits in ([], [0.5, 0.7], [[True]]):
        with pytest.raises(ValueError, match="hits"):
            success(hits)


def test_drift_by_hand():
    original = np.zeros((2, 2, 2, 3), np.uint8)
    images = original.copy()
    images[1] = 51  # a fifth of the range
    mean_abs, mse = drift(images, original)
    assert mean_abs == pytest.approx(0.1)
    np.testing.assert_allclose(mse, [0, 0.04])
    assert drift(original, images) == (pytest.approx(0.1), pytest.approx(mse))


def test_fid_and_kid_of_equal_sets_are_zero():
    images = pictures(300)
    assert abs(fid(images, images, Means())) < 1e-4
    assert abs(fid(images, images[::-1].copy(), Means(), batch_size=77)) < 1e-4
    spread = np.var((Means()(torch.as_tensor(images).permute(0, 3, 1, 2)).numpy()), axis=0).sum()
    assert fid(images, pictures(300, seed=1), Means()) < 0.05 * spread


def test_fid_of_a_shift_is_its_square():
    images = pictures(200)
    for shift in (5, 20):
        np.testing.assert_allclose(fid(images + np.uint8(shift), images, Means()), 3 * shift**2, rtol=1e-6)


def test_kid_is_the_unbiased_mmd():
    images, original = pictures(20), pictures(20, seed=1, low=90)
    a, b = (Means()(torch.as_tensor(x).permute(0, 3, 1, 2)).numpy() for x in (images, original))

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    n = len(a)
    same = sum(kernel(x[i], x[j]) for x in (a, b) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    across = sum(kernel(x, y) for x in a for y in b) / n**2
    np.testing.assert_allclose(kid(images, original, Means()), same - 2 * across, rtol=1e-6)


def test_kid_orders_sets_and_repeats_itself():
    original = pictures(80)
    near, far = kid(pictures(80, seed=1), original, Means()), kid(pictures(80, seed=1, low=120), original, Means())
    assert abs(near) < far / 20
    few = pictures(30, seed=2)
    before = torch.random.get_rng_state()
    assert kid(few, original, Means()) == kid(few, original, Means())
    torch.testing.assert_close(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("metric", [drift, lambda a, b: fid(a, b, Means()), lambda a, b: kid(a, b, Means())])
@pytest.mark.parametrize(
    "broken", [pictures(3).astype(np.float32), pictures(3)[0], pictures(3).transpose(0, 3, 1, 2), pictures(0), []]
)
def test_bad_images(metric, broken):
    with pytest.raises(ValueError, match="^images"):
        metric(broken, pictures(3))
    with pytest.raises(ValueError, match="^original"):
        metric(pictures(3), broken)


def test_shapes_and_numbers_must_fit():
    with pytest.raises(ValueError, match="of one shape"):
        drift(pictures(3), pictures(4))
    with pytest.raises(ValueError, match="two images or more"):
        fid(pictures(1), pictures(3), Means())


def test_rank_correlation_is_of_ranks_and_its_interval_holds_it():
    x = np.arange(20.0)
    exact = rank_correlation(x, np.exp(x))
    assert exact == pytest.approx({"rho": 1.0, "low": 1.0, "high": 1.0, "n": 20})
    noisy = rank_correlation(x, -x + 8 * np.random.default_rng(0).normal(size=20))
    assert -1 < noisy["low"] < noisy["rho"] < noisy["high"] < 0.2
    assert noisy == rank_correlation(x, -x + 8 * np.random.default_rng(0).normal(size=20))
    for y in ([1.0] * 20, np.arange(19.0), [np.nan, *np.arange(19.0)]):
        with pytest.raises(ValueError, match="x and y must be"):
            rank_correlation(x, y)
