# SPDX-License-Identifier: Apache-2.0
"""Subject parameters recovered from a counterfactual: closed forms, and counterfactuals that are not of the subject."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcf.metrics.subject_parameters import SubjectParameters

NAMES = ("bpd_mm", "ofd_mm", "facing")
STD = torch.tensor([8.0, 10.0, 1.0])


@pytest.fixture(scope="module")
def truth():
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([76.0, 96.0]) + torch.randn(40, 2, generator=generator) * STD[:2]
    facing = torch.where(torch.rand(40, 1, generator=generator) < 0.5, -1.0, 1.0)
    return torch.cat([size, facing], dim=1)


@pytest.fixture(scope="module")
def recovered(truth):
    """What a network reads from a true image: the truth with an error of 0.3 standard deviations."""
    return truth + 0.3 * STD * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))


def measure(found, truth, reference=None):
    metric = SubjectParameters(NAMES, STD)
    metric(found, truth, reference=reference)
    return metric


def test_the_value_of_a_case_is_its_mean_error_in_standard_deviations():
    truth = torch.tensor([[70.0, 90.0, 1.0], [80.0, 100.0, -1.0]])
    found = torch.tensor([[74.0, 85.0, 1.0], [80.0, 100.0, 1.0]])
    metric = measure(found, truth)
    torch.testing.assert_close(metric.per_case(), torch.tensor([(0.5 + 0.5 + 0) / 3, 2 / 3]).double())
    assert metric.aggregate() == pytest.approx(0.5)
    assert metric.mean_absolute_error() == pytest.approx({"bpd_mm": 2.0, "ofd_mm": 2.5, "facing": 1.0})
    # Without a reference: the distance of their truths, (10/8 + 10/10 + 2)/3.
    assert metric.chance() == pytest.approx(4.25 / 3)


def test_batches_add_up(truth, recovered):
    metric = SubjectParameters(NAMES, STD)
    for rows in (slice(0, 7), slice(7, 40)):
        metric(recovered[rows], truth[rows], reference=recovered[rows])
    whole = measure(recovered, truth, recovered)
    assert metric.aggregate() == pytest.approx(whole.aggregate())
    assert metric.lost_identity() == pytest.approx(whole.lost_identity())


def test_the_true_image_keeps_all_identity_and_another_subject_none(truth, recovered):
    assert measure(recovered, truth, recovered).lost_identity() == pytest.approx(0.0)
    everyone = [measure(recovered.roll(k, 0), truth, recovered).lost_identity() for k in range(1, 40)]
    assert np.mean(everyone) == pytest.approx(1.0, abs=1e-6)


def test_without_a_reference_the_floor_is_no_error(truth):
    assert measure(truth, truth).lost_identity() == 0.0


@pytest.mark.parametrize(
    ("change", "column"),
    [((1.0, 1.0, -1.0), "facing"), ((0.85, 0.85, 1.0), "ofd_mm"), ((1.15, 0.9, 1.0), "bpd_mm")],
    ids=["mirrored", "shrunk", "widened"],
)
def test_a_changed_subject_is_seen(truth, recovered, change, column):
    good = measure(recovered, truth, recovered)
    bad = measure(recovered * torch.tensor(change), truth, recovered)
    assert bad.aggregate() > good.aggregate() + 0.2
    assert bad.interval()[0] > good.interval()[1]
    assert bad.lost_identity_interval()[0] > 0.1
    assert bad.mean_absolute_error()[column] > 2 * good.mean_absolute_error()[column]


def test_the_mean_head_for_everybody_tells_nothing_about_anybody(truth, recovered):
    metric = measure(truth.mean(0).expand_as(truth), truth, recovered)
    assert metric.lost_identity() > 0.7


def test_a_case_that_is_not_finite_is_left_out_and_counted(truth, recovered):
    broken = recovered.clone()
    broken[3, 1] = torch.nan
    metric = measure(broken, truth, recovered)
    kept = [index for index in range(40) if index != 3]
    assert metric.aggregate() == pytest.approx(measure(recovered[kept], truth[kept]).aggregate())
    assert metric.counts().entered == 39
    assert metric.counts().left_out == {"a recovered parameter is not finite": 1}


def test_intervals_follow_the_subjects(truth, recovered):
    twice = torch.cat([recovered, recovered]), torch.cat([truth, truth])
    groups = list(range(40)) * 2
    metric = measure(*twice, twice[0])
    by_subject, by_case = metric.interval(groups=groups), metric.interval()
    assert by_subject[1] - by_subject[0] > 1.2 * (by_case[1] - by_case[0])


def test_what_does_not_fit_is_refused(truth):
    with pytest.raises(ValueError, match="3 positive numbers"):
        SubjectParameters(NAMES, [1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="reference has the shape"):
        measure(truth, truth, truth[:, :2])
    with pytest.raises(ValueError, match="true parameters"):
        SubjectParameters(NAMES, STD)(truth)
