"""Wilson intervals, success rates and rank correlations against hand calculation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rece.study.statistics import clustered, correlations, pooled, rank_correlation, success_rate, wilson


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
    row = success_rate([True, False, True, True], concept="dog", method="uce", attack="plain")
    assert list(row) == ["concept", "method", "attack", "n", "successes", "rate", "low", "high"]
    assert (row["n"], row["successes"], row["rate"]) == (4, 3, 0.75) and (row["low"], row["high"]) == wilson(3, 4)
    for hits in ([], [0.5, 0.7], [[True]]):
        with pytest.raises(ValueError, match="hits"):
            success_rate(hits)


def test_rank_correlation_is_of_ranks_and_its_interval_holds_it():
    x = np.arange(20.0)
    exact = rank_correlation(x, np.exp(x), repeats=200)
    assert exact == pytest.approx({"rho": 1.0, "low": 1.0, "high": 1.0, "n": 20})
    noise = 8 * np.random.default_rng(0).normal(size=20)
    noisy = rank_correlation(x, -x + noise, repeats=200)
    assert -1 < noisy["low"] < noisy["rho"] < noisy["high"] < 0.2
    assert noisy == rank_correlation(x, -x + noise, repeats=200)
    for y in ([1.0] * 20, np.arange(19.0), [np.nan, *np.arange(19.0)]):
        with pytest.raises(ValueError, match="x and y must be"):
            rank_correlation(x, y)


def test_correlations_are_of_all_erasers_and_within_concepts():
    apart = pd.DataFrame({"concept": ["a"] * 4 + ["b"] * 4, "certified": [1, 2, 3, 4, 11, 12, 13, 14]})
    apart["text"], apart["embedding"] = [4, 3, 2, 1, 9, 8, 7, 6], 0.0
    found = correlations(apart)
    assert found["text"]["pooled"]["rho"] > 0.4
    assert found["text"]["within"] == pytest.approx({"rho": -1, "n": 8})
    assert np.isnan(found["embedding"]["pooled"]["rho"]) and found["embedding"]["pooled"]["n"] == 8


def test_methods_are_pooled_over_the_same_concepts_only():
    table = pd.DataFrame({"concept": ["a", "b"] * 2, "method": ["uce", "uce", "rece", "rece"], "attack": "plain"})
    table = table.assign(n=[5, 10, 5, 10], successes=[1, 2, 0, 4])
    found = pooled(table, ["method", "attack"]).set_index("method")
    assert found.n.to_dict() == {"uce": 15, "rece": 15} and found.successes.to_dict() == {"uce": 3, "rece": 4}
    assert tuple(found.loc["rece", ["low", "high"]]) == wilson(4, 15)
    with pytest.raises(ValueError, match=r"rece was measured on a only, other methods on a, b \(plain\): run it on"):
        pooled(pd.concat([table[:3], table[:2].assign(method="mine")]), ["method", "attack"])


def test_of_four_clusters_nineteen_intervals_in_twenty_hold_the_truth():
    random, names, held = np.random.default_rng(0), np.repeat(range(4), 10), 0
    for _ in range(200):
        row = clustered(random.random(40) < random.beta(1.2, 1.2, 4).repeat(10), names, repeats=300)
        held += row["low"] <= 0.5 <= row["high"]
    assert held > 0.92 * 200  # plain percentiles: 86 to 90 %


def test_the_interval_of_clustered_values_holds_their_rate_and_stays_in_range():
    values, names = [0, 1, 1, 1, 0, 0, 0, 1], list("aaaabbbb")
    row = clustered(values, names, repeats=200)
    assert (row["n"], row["clusters"], row["rate"]) == (8, 2, 0.5) and 0 <= row["low"] < 0.5 < row["high"] <= 1
    one = clustered(values, ["a"] * 8, repeats=200)
    assert one["clusters"] == 1 and 0 <= one["low"] < 0.5 < one["high"] < 1
    half = wilson(0, 2)[1]
    assert clustered([1] * 8, names)["low"] == pytest.approx(1 - half) and clustered([1] * 8, names)["high"] == 1
    none = clustered([0] * 8, names, least=-1.0)  # differences that are all 0 may be on either side
    assert (none["low"], none["high"]) == pytest.approx((-half, half))
    assert clustered([-1] * 8, names, least=-1.0)["low"] == -1
    with pytest.raises(ValueError, match="^values"):
        clustered([], [])
