# SPDX-License-Identifier: Apache-2.0
"""Likeness of chest phantoms: the spectrum's slope is the one that was put in, and groups are what they are called."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.chest_xray.likeness import PROPERTIES, markdown, measure, phantoms, spectral_slope


@pytest.mark.parametrize("slope", [0.0, -2.0, -3.0])
def test_the_slope_of_a_power_law_is_found(slope: float) -> None:
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    frequency[0, 0] = 1.0
    found = [
        spectral_slope(np.fft.ifft2(np.fft.fft2(rng.standard_normal((64, 64))) * frequency ** (slope / 2)).real)
        for _ in range(20)
    ]
    assert np.mean(found) == pytest.approx(slope, abs=0.15)


def test_properties_are_means_and_deviations_over_images() -> None:
    images = [np.full((64, 64), 0.25) + ramp for ramp in (0.0, 0.5)]
    images[0][0, 0] += 1e-3  # a spectrum needs some contrast
    images[1][0, 0] += 1e-3
    found = measure(images)
    assert found["gray value, mean"] == pytest.approx((0.5, 0.25), abs=1e-5)
    assert found["gray value, 50 % of the pixels are darker"] == pytest.approx((0.5, 0.25))
    lines = markdown({"two": found}).splitlines()
    assert len(lines) == len(PROPERTIES) + 2
    assert lines[2] == "| gray value, mean | 0.500 (0.250) |"


def test_sick_and_normal_phantoms_of_an_age_group_are_other_images() -> None:
    normal, sick = (phantoms(3, sick=sick, child=True) for sick in (False, True))
    assert len(normal) == len(sick) == 3
    assert np.mean(sick) > np.mean(normal)
