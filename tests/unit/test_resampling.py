"""The comparison's statistics against scipy's on the same data."""

import numpy as np
import pytest

from selfcorrect.evaluation.resampling import bootstrap, draws, mcnemar, mean_over_seeds, ratio, weighted_mean


@pytest.mark.parametrize(("up", "down"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 22), (700, 900)])
def test_mcnemar_is_the_exact_binomial_test(up: int, down: int) -> None:
    from scipy import stats

    expected = stats.binomtest(up, up + down).pvalue if up + down else 1.0
    assert mcnemar(up, down) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(up, down) == mcnemar(down, up)


def test_bootstrap_of_a_mean_and_of_a_ratio() -> None:
    from scipy import stats

    rng = np.random.default_rng(3)
    top_P = (rng.random(400) < 0.2).astype(float)
    bottom_P = np.maximum(top_P, (rng.random(400) < 0.5).astype(float))
    counts_RP = draws(400, 4000, seed=1)
    ours = bootstrap(weighted_mean(top_P), counts_RP)
    theirs = stats.bootstrap((top_P,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert ours.value == pytest.approx(top_P.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    both = bootstrap(ratio(top_P, bottom_P), counts_RP)
    paired = stats.bootstrap(
        (top_P, bottom_P), lambda a, b, axis: a.sum(axis) / b.sum(axis), n_resamples=4000, paired=True,
        method="percentile", rng=1,
    ).confidence_interval  # fmt: skip
    assert both.value == pytest.approx(top_P.sum() / bottom_P.sum())
    assert (both.low, both.high) == pytest.approx((paired.low, paired.high), abs=0.008)


def test_what_could_not_be_graded_is_left_out() -> None:
    values_SP = np.array([[1.0, np.nan, np.nan, 0.0], [0.0, 1.0, np.nan, 0.0]])
    assert mean_over_seeds(values_SP)[:2].tolist() == [0.5, 1.0]
    assert np.isnan(mean_over_seeds(values_SP)[2])
    assert weighted_mean(mean_over_seeds(values_SP))(np.ones((1, 4))).tolist() == [0.5]
    assert np.isnan(ratio(np.zeros(2), np.zeros(2))(np.ones((1, 2))))[0]
