# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals against the closed form of a mean, and against scipy's."""

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


def test_interval_equals_scipys_percentile_bootstrap_of_two_columns() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)

    def correlation(a, b):
        return float(np.corrcoef(a, b)[0, 1])

    expected = scipy.stats.bootstrap(
        (x, y), correlation, paired=True, vectorized=False, n_resamples=3000, method="percentile", rng=rng
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
    groups = ["b", "a", "b", "c", "a", "b"]
    assert [members.tolist() for members in group_members(groups)] == [[1, 4], [0, 2, 5], [3]]

    def check(cases: np.ndarray) -> float:
        counts = np.bincount(cases, minlength=6)
        assert counts[0] == counts[2] == counts[5]
        assert counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3
        return float(counts[0])

    assert bootstrap_interval(check, np.arange(6), groups=groups, num_resamples=50)[1] > 1


def test_half_samples_never_repeat_a_case_and_keep_groups_whole() -> None:
    rng = np.random.default_rng(5)
    members = group_members(np.repeat(np.arange(9), 2))
    drawn = [half_sampled_indices(members, rng) for _ in range(200)]
    for chosen in drawn:
        assert len(set(chosen.tolist())) == len(chosen) == 8
        assert (np.bincount(chosen // 2) % 2 == 0).all()
    assert np.bincount(np.concatenate(drawn), minlength=18) / 200 == pytest.approx(np.full(18, 4 / 9), abs=0.12)


def test_resamples_without_a_finite_value_are_passed_over() -> None:
    values = np.array([np.nan, 1.0, 1.0, 1.0])
    assert bootstrap_interval(np.mean, values) == (1.0, 1.0)
    assert np.isnan(bootstrap_interval(np.mean, values[:1])).all()


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
