# SPDX-License-Identifier: Apache-2.0
"""Intervals against the closed form of a mean, against scipy's bootstrap and against the exact binomial ones."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from medcf.metrics.bootstrap import bootstrap_interval, group_members, half_sampled_indices


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(2, 3, size=400)
    low, high = bootstrap_interval(np.mean, values, num_resamples=4000)
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_interval_of_a_mean_equals_scipys_bca_bootstrap() -> None:
    values = np.random.default_rng(4).lognormal(size=40)
    expected = scipy.stats.bootstrap((values,), np.mean, n_resamples=1000, method="BCa", rng=7).confidence_interval
    assert bootstrap_interval(np.mean, values, seed=7) == pytest.approx((expected.low, expected.high))
    percentile = scipy.stats.bootstrap((values,), np.mean, n_resamples=1000, method="percentile", rng=7)
    assert expected.high > percentile.confidence_interval.high  # it follows the skewness


def test_interval_of_groups_equals_scipys_bca_bootstrap_of_their_sums_and_sizes() -> None:
    rng = np.random.default_rng(6)
    subjects = rng.integers(0, 25, 80)
    values = rng.lognormal(size=80) + subjects / 10
    names = np.unique(subjects)
    sums = np.array([values[subjects == name].sum() for name in names])
    sizes = np.array([(subjects == name).sum() for name in names])
    expected = scipy.stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="BCa",
        rng=0,
    ).confidence_interval
    found = bootstrap_interval(np.mean, values, groups=subjects, num_resamples=4000)
    assert found == pytest.approx((expected.low, expected.high), rel=0.01)  # the groups come in another order
    slow = bootstrap_interval(lambda x: float(x.mean()), values, groups=subjects, num_resamples=4000)
    assert slow == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("hits", [0, 1, 30, 63, 64])
def test_a_proportion_of_independent_subjects_has_the_exact_interval(hits: int) -> None:
    values = np.arange(64) < hits
    low, high = bootstrap_interval(np.mean, values, groups=range(64))
    expected = scipy.stats.binomtest(hits, 64).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((expected.low, expected.high))
    # by its definition: each end is where what was found, or more extreme, has a chance of 2.5 %
    assert low == (0 if hits == 0 else pytest.approx(scipy.stats.beta.ppf(0.025, hits, 65 - hits)))
    assert high == (1 if hits == 64 else pytest.approx(scipy.stats.beta.ppf(0.975, hits + 1, 64 - hits)))
    assert high - low > 0.05


def test_subjects_who_agree_with_themselves_are_the_trials_where_all_agree() -> None:
    subjects = np.repeat(np.arange(16), 4)
    low, high = bootstrap_interval(np.mean, np.ones(64, bool), groups=subjects)
    assert (low, high) == pytest.approx((0.025 ** (1 / 16), 1.0))


def test_several_images_of_a_subject_are_no_independent_trials() -> None:
    subjects = np.repeat(np.arange(16), 4)
    hits = subjects < 12  # all four images of a subject, or none
    found = bootstrap_interval(np.mean, hits, groups=subjects)
    independent = scipy.stats.binomtest(48, 64).proportion_ci(0.95, method="exact")
    assert np.ptp(found) > 1.5 * (independent.high - independent.low)


def test_values_that_happen_to_be_zero_are_no_proportion() -> None:
    assert bootstrap_interval(np.mean, np.zeros(20)) == (0.0, 0.0)


def test_interval_equals_scipys_bca_bootstrap_of_two_columns() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)

    def correlation(a, b):
        return float(np.corrcoef(a, b)[0, 1])

    expected = scipy.stats.bootstrap(
        (x, y), correlation, paired=True, vectorized=False, n_resamples=3000, method="BCa", rng=rng
    ).confidence_interval
    found = bootstrap_interval(correlation, x, y, num_resamples=3000)
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_repeated_images_of_a_subject_widen_the_interval_only_when_subjects_are_drawn() -> None:
    subjects = np.repeat(np.arange(30), 10)
    values = np.random.default_rng(2).normal(size=30)[subjects]
    by_case = np.ptp(bootstrap_interval(np.mean, values))
    by_subject = np.ptp(bootstrap_interval(np.mean, values, groups=subjects))
    assert by_subject / by_case == pytest.approx(10**0.5, rel=0.15)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = [
        low <= 0 <= high
        for low, high in (
            bootstrap_interval(np.mean, rng.normal(size=50), confidence=0.8, num_resamples=200, seed=seed)
            for seed in range(300)
        )
    ]
    assert 0.73 < np.mean(covered) < 0.87


def test_groups_are_drawn_whole_and_repeatedly() -> None:
    groups = ["b", "a", "b", "c", "a", "b", "d", "e"]
    assert [members.tolist() for members in group_members(groups)] == [[1, 4], [0, 2, 5], [3], [6], [7]]

    def check(cases: np.ndarray) -> float:
        counts = np.bincount(cases, minlength=8)
        assert counts[0] == counts[2] == counts[5]
        assert counts[1] == counts[4]
        assert counts[[0, 1, 3, 6, 7]].sum() in (5, 4)  # a resample, or one group left out for the acceleration
        return float(counts[0])

    assert bootstrap_interval(check, np.arange(8), groups=groups, num_resamples=50)[1] > 1


def test_half_samples_never_repeat_a_case_and_keep_groups_whole() -> None:
    rng = np.random.default_rng(5)
    members = group_members(np.repeat(np.arange(9), 2))
    drawn = [half_sampled_indices(members, rng) for _ in range(200)]
    for chosen in drawn:
        assert len(set(chosen.tolist())) == len(chosen) == 8
        assert (np.bincount(chosen // 2) % 2 == 0).all()
    assert np.bincount(np.concatenate(drawn), minlength=18) / 200 == pytest.approx(np.full(18, 4 / 9), abs=0.12)


def test_resamples_without_a_finite_value_are_passed_over() -> None:
    values = np.array([np.nan, 1.0, 1.0, 1.0, 1.0])
    assert bootstrap_interval(np.mean, values) == (1.0, 1.0)
    assert np.isnan(bootstrap_interval(np.mean, np.full(6, np.nan))).all()


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_four_subjects_have_no_interval_but_the_exact_one_of_a_share(statistic) -> None:
    values, subjects = np.random.default_rng(8).normal(size=40), np.repeat(np.arange(4), 10)
    assert np.isnan(bootstrap_interval(statistic, values, groups=subjects)).all()
    assert np.isnan(bootstrap_interval(statistic, values[:4])).all()
    assert np.isfinite(bootstrap_interval(statistic, values[:5])).all()
    assert bootstrap_interval(np.mean, np.ones(4, bool)) == pytest.approx((0.025**0.25, 1.0))
    assert bootstrap_interval(np.mean, np.ones(40, bool), groups=subjects) == pytest.approx((0.025**0.25, 1.0))
    # several images of a subject that disagree are no trials
    assert np.isnan(bootstrap_interval(np.mean, np.arange(40) % 3 == 0, groups=subjects)).all()


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (([1.0, 2.0], [1.0]), {}, "lengths"),
        (([],), {}, "positive length"),
        (([1.0, 2.0],), {"groups": [1]}, "lengths"),
        (([1.0, 2.0],), {"confidence": 95}, "between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(arrays, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.mean, *arrays, **options)
