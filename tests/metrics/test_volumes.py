# SPDX-License-Identifier: Apache-2.0
"""Volumes by a segmenter, and their change against the truth."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import linregress
from torch import nn

from medcf.metrics.volumes import SegmentedVolumes, VolumeChange
from medcf.registry import METRICS


class Stub(nn.Module):
    """Scores whose softmax is what the channels of the image hold."""

    def forward(self, image):
        assert not self.training
        return image.log()


def shares(generator, channels=4, spatial=(5, 6, 7)):
    return torch.rand(2, channels, *spatial, generator=generator).softmax(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_a_volume_is_the_sum_of_probabilities_times_the_voxel(generator):
    image = shares(generator)
    expected = image.numpy().astype(float).sum((2, 3, 4))[:, 1:] * 1.0 * 2.0 * 3.0
    volumes = SegmentedVolumes(Stub().train(), (1.0, 2.0, 3.0))(image)
    np.testing.assert_allclose(volumes.numpy(), expected, rtol=1e-5)
    chosen = SegmentedVolumes(Stub(), (1.0, 2.0, 3.0), {"hippocampi": 3, "csf": 1})
    np.testing.assert_allclose(chosen(image).numpy(), expected[:, [2, 0]], rtol=1e-5)


def test_images_in_2d_give_areas(generator):
    image = shares(generator, spatial=(5, 6))
    np.testing.assert_allclose(
        SegmentedVolumes(Stub(), 2.0, [1])(image), 4.0 * image[:, 1:2].double().flatten(2).sum(2), rtol=1e-5
    )


def test_half_a_voxel_counts_by_half(generator):
    image = torch.tensor([0.5, 0.5]).reshape(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 1)
    assert float(SegmentedVolumes(Stub(), 4.0)(image)) == pytest.approx(32.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": 1.0, "labels": [4]}, "labels 0 to 3"),
        ({"spacing": 0.0}, "must be positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(generator, options, message):
    with pytest.raises(ValueError, match=message):
        SegmentedVolumes(Stub(), **options)(shares(generator))


def filled(found, true, target=None, batch=7):
    metric = VolumeChange()
    for start in range(0, len(found), batch):
        part = slice(start, start + batch)
        metric(found[part], true[part], **({} if target is None else {"target": target[part]}))
    return metric


@pytest.fixture
def changes(generator):
    target = torch.arange(40) % 2
    true = torch.where(target == 1, 11.0, -12.0) + torch.randn(40, generator=generator)
    found = 0.7 * true + 1.5 + torch.randn(40, generator=generator)
    return found.double(), true.double(), target


def test_slope_and_correlation_are_those_of_scipy(changes):
    found, true, target = changes
    metric = filled(found, true, target)
    assert metric.targets() == [0, 1]
    for chosen in (None, 0, 1):
        kept = torch.ones(40, dtype=torch.bool) if chosen is None else target == chosen
        fit = linregress(true[kept], found[kept])
        assert metric.of("slope", target=chosen) == pytest.approx(fit.slope)
        assert metric.of("correlation", target=chosen) == pytest.approx(fit.rvalue)
        least, *_ = np.linalg.lstsq(true[kept, None].numpy(), found[kept].numpy(), rcond=None)
        assert metric.of("gain", target=chosen) == pytest.approx(least[0])
        assert metric.of("bias", target=chosen) == pytest.approx(float((found - true)[kept].mean()))
        assert metric.of("error", target=chosen) == pytest.approx(float((found - true)[kept].abs().mean()))
    assert metric.aggregate() == pytest.approx(metric.of("error"))


def test_the_interval_covers_the_true_slope_as_often_as_it_says(changes):
    rng = np.random.default_rng(1)
    _, true, _ = changes
    covered = 0
    for _ in range(60):
        found = 0.7 * true + torch.from_numpy(rng.normal(0, 2, len(true)))
        low, high = filled(found, true).interval_of("slope", num_resamples=200)
        covered += low < 0.7 < high
    assert 50 <= covered <= 60


def test_subjects_are_resampled_as_a_whole(changes):
    found, true, target = changes
    twice = filled(found.repeat(3), true.repeat(3), target.repeat(3))
    subjects = [*range(40)] * 3
    whole = filled(found, true, target).interval_of("gain", groups=list(range(40)), target=1)
    assert np.subtract(*twice.interval_of("gain", groups=subjects, target=1)) == pytest.approx(
        np.subtract(*whole), rel=0.2
    )
    assert np.subtract(*twice.interval_of("gain", target=1)) > 0.75 * np.subtract(*whole)  # narrower: both negative
    with pytest.raises(ValueError, match="groups has 3"):
        twice.interval_of("gain", groups=[1, 2, 3])


def test_bad_counterfactuals_are_seen(changes):
    _, true, target = changes
    unchanged = filled(torch.zeros_like(true), true, target)
    assert unchanged.of("slope") == unchanged.of("gain") == 0.0
    assert math.isnan(unchanged.of("correlation"))
    assert unchanged.interval_of("slope") == (0.0, 0.0)
    assert all(math.isnan(end) for end in unchanged.interval_of("correlation"))
    assert unchanged.aggregate() == pytest.approx(float(true.abs().mean()))
    reverse = filled(-true, true, target)
    assert reverse.of("slope") == pytest.approx(-1.0)
    assert reverse.of("correlation") == pytest.approx(-1.0)
    # Everybody gets the same change: the directions together look right, within each nobody gets their own.
    same = filled(torch.where(target == 1, 11.0, -12.0), true, target)
    assert same.of("slope") > 0.95
    assert same.of("slope", target=1) == pytest.approx(0.0, abs=1e-9)
    assert same.of("gain", target=1) == pytest.approx(1.0, abs=0.05)


def test_cases_that_cannot_be_measured_are_left_out(changes):
    found, true, target = (each.clone() for each in changes)
    clean = filled(found[1:], true[1:], target[1:])
    found[0] = torch.nan
    metric = filled(found, true, target)
    assert metric.of("slope") == pytest.approx(clean.of("slope"))
    assert metric.counts().left_out == {"measured or true change is not finite": 1}
    assert metric.interval_of("slope", groups=list(range(40))) == clean.interval_of("slope", groups=list(range(1, 40)))


def test_misuse_is_explained(changes):
    found, true, _ = changes
    with pytest.raises(ValueError, match="statistic='median' is unknown"):
        filled(found, true).of("median")
    with pytest.raises(ValueError, match="target=1 is unknown"):
        filled(found, true).of("slope", target=1)
    with pytest.raises(ValueError, match="of the same shape"):
        VolumeChange()(found[:, None], true)
    with pytest.raises(ValueError, match="before it saw a case"):
        VolumeChange().of("slope")


def test_a_single_case_has_no_slope():
    metric = filled(torch.tensor([3.0]), torch.tensor([4.0]))
    assert math.isnan(metric.of("slope"))
    assert math.isnan(metric.of("correlation"))
    assert metric.of("gain") == pytest.approx(0.75)


@pytest.mark.parametrize("value", [0.1, 0.7, 1234.567])
@pytest.mark.parametrize("count", [3, 7, 12])
def test_nothing_follows_a_constant_whose_mean_is_rounded(changes, value, count):
    changing, constant = changes[0][:count], torch.full((count,), value, dtype=torch.float64)
    assert math.isnan(filled(changing, constant).of("slope"))
    assert math.isnan(filled(changing, constant).of("correlation"))
    assert math.isnan(filled(constant, changing).of("correlation"))
    assert filled(constant, changing).of("slope") == pytest.approx(0.0, abs=1e-6)


def test_resamples_of_one_subject_alone_do_not_enter_the_interval():
    found = torch.tensor([0.07, 0.21, 0.33, 0.2, 0.1], dtype=torch.float64)
    true = torch.tensor([0.1, 0.7, 0.3, 0.5, 0.2], dtype=torch.float64)
    ends = filled(found, true).interval_of("slope", num_resamples=5000)  # one in 625 holds one case five times
    slopes = [(found[i] - found[j]) / (true[i] - true[j]) for i, j in combinations(range(5), 2)]
    assert min(slopes) - 1e-6 <= ends[0] <= ends[1] <= max(slopes) + 1e-6


def test_the_metric_is_registered():
    assert METRICS["volume_change"] is VolumeChange
