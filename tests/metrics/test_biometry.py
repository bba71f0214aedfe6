# SPDX-License-Identifier: Apache-2.0
"""Biometry against exact perimeters of ellipses and the phantoms' analytic values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ellipe

from medcf.metrics.biometry import BiometryShift, head_biometry
from medcf.phantoms.head.datasets import draw_case, on_grid


def ring(
    minor: float, major: float, angle: float = 0.0, spacing: tuple[float, float] = (1.0, 1.0), wall: float = 3.0
) -> NDArray[np.int64]:
    """A skull of the given half axes in mm on 120 x 140 mm, turned by ``angle`` degrees."""
    rows = (np.arange(round(120 / spacing[0])) + 0.5) * spacing[0] - 60.3
    cols = (np.arange(round(140 / spacing[1])) + 0.5) * spacing[1] - 69.8
    v, u = np.meshgrid(rows, cols, indexing="ij")
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    x, y = cos * u + sin * v, cos * v - sin * u
    outer = np.hypot(x / major, y / minor) < 1
    return (outer & ~(np.hypot(x / (major - wall), y / (minor - wall)) < 1)).astype(np.int64)


def gap(labels: NDArray[np.int64], degrees: float) -> NDArray[np.int64]:
    rows, cols = np.indices(labels.shape)
    angle = np.arctan2(rows - labels.shape[0] / 2, cols - labels.shape[1] / 2)
    return np.where(np.abs(angle - 0.4) < np.deg2rad(degrees / 2), 0, labels)


@pytest.mark.parametrize(("minor", "major", "angle"), [(30, 40, 0), (38, 50, 25), (45, 45, 0)])
def test_a_closed_skull_has_the_exact_perimeter_and_diameters(minor: float, major: float, angle: float) -> None:
    found = head_biometry(ring(minor, major, angle), 1.0)
    assert found.reason is None
    assert found.hc_mm == pytest.approx(4 * major * ellipe(1 - (minor / major) ** 2), rel=0.005)
    assert found.bpd_mm == pytest.approx(2 * minor, rel=0.005)
    assert found.ofd_mm == pytest.approx(2 * major, rel=0.005)


@pytest.mark.parametrize("degrees", [0, 60])
def test_pixels_need_not_be_square(degrees: float) -> None:
    spacing = (1.0, 1.75)
    found = head_biometry(gap(ring(38, 50, 30, spacing), degrees), spacing)
    assert found.bpd_mm == pytest.approx(76, rel=0.015)
    assert found.ofd_mm == pytest.approx(100, rel=0.015)


def test_true_segmentations_of_phantoms_give_the_phantoms_own_values() -> None:
    for index in range(6):
        _, sample = draw_case("fetal_head", "test", index)
        labels = on_grid(sample, (64, 80))[1]
        found = head_biometry(labels, 1.75)
        assert found.hc_mm == pytest.approx(sample.hc_mm, rel=0.015)
        assert found.bpd_mm == pytest.approx(sample.bpd_mm, rel=0.02)


@pytest.mark.parametrize("degrees", [10, 40, 90])
def test_a_gap_in_the_skull_is_bridged_by_the_ellipse(degrees: float) -> None:
    found = head_biometry(gap(ring(38, 50), degrees), 1.0)
    assert found.hc_mm == pytest.approx(head_biometry(ring(38, 50), 1.0).hc_mm, rel=0.02)


def test_no_head_and_half_a_head_have_no_values_but_a_reason() -> None:
    nothing = head_biometry(np.zeros((64, 80), int), 1.0)
    assert np.isnan(nothing.hc_mm)
    assert "pixels of skull" in str(nothing.reason)
    half = head_biometry(gap(ring(38, 50), 200), 1.0)
    assert np.isnan(half.bpd_mm)
    assert "directions" in str(half.reason)
    with pytest.raises(ValueError, match="2D image"):
        head_biometry(np.zeros((2, 64, 80)), 1.0)


def test_other_labels_and_small_islands_do_not_matter() -> None:
    labels = ring(38, 50)
    expected = head_biometry(labels, 1.0)
    labels[60:70, 60:70] = 2
    labels[:3, :3] = 1
    assert head_biometry(labels, 1.0) == expected


def test_shifts_are_signed_in_the_bias_and_absolute_in_the_aggregate() -> None:
    small, large = (torch.from_numpy(ring(minor, minor + 10))[None, None] for minor in (30, 36))
    metric = BiometryShift(1.0, "bpd")
    metric(torch.cat([small, large]), torch.cat([large, small]))
    assert metric.aggregate() == pytest.approx(12, abs=0.3)
    assert metric.bias() == pytest.approx(0, abs=1e-9)
    assert metric.get_buffer()[0] < 0 < metric.get_buffer()[1]
    for _ in range(2):
        metric(torch.cat([small, large]), torch.cat([large, small]))
    low, high = metric.bias_interval(groups=range(6))
    assert low < 0 < high
    known = BiometryShift(1.0, "ofd")
    known(small, torch.tensor([80.0]))
    assert known.aggregate() == pytest.approx(0, abs=0.4)


def test_a_counterfactual_without_a_head_is_left_out_and_counted() -> None:
    head = torch.from_numpy(ring(38, 50))[None, None]
    metric = BiometryShift(1.0)
    metric(torch.cat([head, torch.zeros_like(head)]), torch.cat([head, head]))
    assert metric.aggregate() == 0
    assert metric.counts().entered == 1
    assert metric.counts().left_out == {"no head found in counterfactual or reference": 1}
    with pytest.raises(ValueError, match="measure"):
        BiometryShift(1.0, "width")  # type: ignore[arg-type]
