# SPDX-License-Identifier: Apache-2.0
"""Quality differences: which inputs count, by structure, and against the input's own quality."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binned_statistic

from medcf.metrics.quality import MeanQualityDifference, StructureQualityDifference, quality_by_input


def test_the_gain_of_the_poor_inputs_is_divided_by_all() -> None:
    metric = MeanQualityDifference()
    metric(torch.tensor([0.8, 0.3, 0.1]), torch.tensor([0.2, 0.4, 0.9]))
    assert metric.aggregate() == pytest.approx(0.5 / 3)
    assert metric.counts().entered == 3
    assert metric.mean_difference == pytest.approx((0.6 - 0.1 - 0.8) / 3)


def test_an_input_at_the_threshold_counts_as_good() -> None:
    metric = MeanQualityDifference(threshold=0.75)
    metric(torch.tensor([1.0, 1.0]), torch.tensor([0.75, 0.5]))
    assert metric.aggregate() == 0.25


def test_the_unchanged_input_gains_nothing_and_a_ruined_one_loses() -> None:
    quality = torch.tensor([0.1, 0.3, 0.45, 0.2, 0.4])
    same, ruined = MeanQualityDifference(), MeanQualityDifference()
    same(quality, quality)
    ruined(torch.zeros(5), quality)
    assert same.aggregate() == 0
    assert ruined.aggregate() == pytest.approx(-quality.mean().item())
    assert ruined.interval()[1] < 0


def test_a_score_that_is_not_finite_is_left_out_of_every_figure() -> None:
    metric = MeanQualityDifference()
    metric(torch.tensor([math.nan, 0.5]), torch.tensor([0.1, 0.2]))
    assert metric.aggregate() == pytest.approx(0.3)
    assert metric.mean_difference == pytest.approx(0.3)
    assert metric.left_out_cases() == {"a score is not finite": [0]}


def test_bins_agree_with_scipy() -> None:
    generator = torch.Generator().manual_seed(1)
    before, difference = torch.rand(200, generator=generator), torch.randn(200, generator=generator)
    expected = binned_statistic(before.numpy(), difference.numpy(), bins=4, range=(0, 1))
    rows = quality_by_input(before, difference, bins=4)
    assert [row.mean for row in rows] == pytest.approx(expected.statistic.tolist(), rel=1e-5)
    assert [row.count for row in rows] == np.bincount(expected.binnumber)[1:].tolist()
    assert all(row.interval[0] < row.mean < row.interval[1] for row in rows)


def test_a_bin_without_inputs_is_shown_as_empty_and_the_best_input_is_in_the_last() -> None:
    rows = quality_by_input(torch.tensor([0.1, 1.0]), torch.tensor([0.5, 0.0]), bins=[0.0, 0.5, 0.75, 1.0])
    assert [row.count for row in rows] == [1, 0, 1]
    assert math.isnan(rows[1].mean)


def test_the_same_quality_for_everybody_falls_with_slope_minus_one() -> None:
    before = torch.linspace(0, 1, 101)
    rows = quality_by_input(before, 0.6 - before, 10)
    slope = np.polyfit([(row.low + row.high) / 2 for row in rows], [row.mean for row in rows], 1)[0]
    assert slope == pytest.approx(-1, abs=0.02)


@pytest.mark.parametrize("bins", [0, [0.5], [0.0, 0.5, 0.5]])
def test_edges_that_do_not_rise_are_refused(bins: int | list[float]) -> None:
    with pytest.raises(ValueError, match="ascending edges"):
        quality_by_input(torch.rand(3), torch.rand(3), bins)


def test_structures_are_told_apart_where_their_mean_hides_them() -> None:
    before = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.25, 0.9]])
    after = torch.tensor([[1.0, 0.0, 0.2], [1.0, 0.0, 0.8]])
    metric = StructureQualityDifference({"FP": 0, "CSP": 1})
    metric(after.repeat(3, 1), before.repeat(3, 1))
    rows = metric.by_structure()
    assert (rows["FP"].mean, rows["CSP"].mean) == (0.5, -0.375)
    assert metric.aggregate() == pytest.approx(0.0625)
    assert rows["CSP"].interval[1] < 0 < rows["FP"].interval[0]


def test_each_structure_is_binned_by_its_own_score() -> None:
    before = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    metric = StructureQualityDifference(["TH", "CSP"])
    metric(before + torch.tensor([[0.5, 0.0], [0.0, 0.25]]), before)
    bins = metric.quality_by_input(2)
    assert [row.mean for row in bins["TH"]] == pytest.approx([0.5, 0.0], abs=1e-6)
    assert [row.mean for row in bins["CSP"]] == pytest.approx([0.25, 0.0], abs=1e-6)


def test_intervals_of_structures_widen_when_cases_share_a_subject() -> None:
    generator = torch.Generator().manual_seed(2)
    subjects = [i // 5 for i in range(40)]
    gain = torch.randn(8, 1, generator=generator).repeat_interleave(5, 0)
    metric = StructureQualityDifference(["TH"])
    metric(gain, torch.zeros(40, 1))
    single, grouped = metric.by_structure()["TH"].interval, metric.by_structure(groups=subjects)["TH"].interval
    assert grouped[1] - grouped[0] > 1.5 * (single[1] - single[0])


def test_names_must_fit_the_scores() -> None:
    with pytest.raises(ValueError, match="map names to columns"):
        StructureQualityDifference(["TH", "CSP"])(torch.rand(2, 7), torch.rand(2, 7))
    with pytest.raises(ValueError, match="K > 7"):
        StructureQualityDifference({"TH": 7})(torch.rand(2, 7), torch.rand(2, 7))
