# SPDX-License-Identifier: Apache-2.0
"""Likeness of fetal planes: borders, speckle and gray values are measured as they were put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from benchmarks.fetal_planes.likeness import black_border, compare, markdown, speckle_width, write


def test_a_dark_organ_is_no_border() -> None:
    image = np.full((64, 64), 0.5)
    image[:16] = 0.0
    image[40:44, 40:44] = 0.0
    assert black_border(image) == 0.25


@pytest.mark.parametrize("width", [0.7, 1.2])
def test_the_speckles_width_is_the_one_that_was_put_in(width: float) -> None:
    # White noise blurred by a Gaussian of standard deviation s has an autocorrelation of s√2: 2.355 √2 s wide.
    noise = gaussian_filter1d(np.random.default_rng(0).standard_normal((512, 512)), width, axis=0)
    image = np.exp(0.05 * noise / noise.std())
    assert speckle_width(image, 0) == pytest.approx(2.355 * 2**0.5 * width, rel=0.2)
    assert speckle_width(image, 1) < 2


def test_groups_are_compared_by_mean_deviation_and_distance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dark = [np.full((128, 128), 0.25) + 0.001 * rng.standard_normal((128, 128)) for _ in range(2)]
    bright = [image + 0.5 for image in dark]
    rows = list(compare("brain", "A", {"real": dark, "phantom": bright}))
    found = {row["property"]: row for row in rows}
    assert found["gray value, mean"]["real_mean"] == pytest.approx(0.25, abs=1e-3)
    assert found["gray value, mean"]["phantom_mean"] == pytest.approx(0.75, abs=1e-3)
    assert found["distance between the gray values"]["phantom_mean"] == pytest.approx(0.5, abs=1e-3)
    rows += compare("cervix", "A", {"real": [], "phantom": bright})
    write(tmp_path / "rows.csv", rows)
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == len(rows) + 1
    lines = markdown(rows, ["gray value, mean", "distance between the gray values"]).splitlines()
    assert lines[2:] == ["| brain, A | 2 / 2 | 0.250 / 0.750 | 0.500 |", "| cervix, A | 0 / 2 | - / 0.750 | - |"]
