# SPDX-License-Identifier: Apache-2.0
"""Resampling by one matrix, with values that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcf.data.resample import resample, resample_labels


def shift_and_scale(shift: float, scale: float = 1.0) -> np.ndarray:
    """Index in the result to index in the source, along every axis."""
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = shift
    return matrix


@pytest.mark.parametrize("axes", [2, 3])
def test_labels_beyond_the_grid_are_zero(axes: int) -> None:
    labels = np.arange(1, 1 + 3**axes, dtype=np.uint8).reshape(1, *(3,) * axes)
    found = resample_labels(labels, shift_and_scale(-1.0), (5,) * axes)
    wanted = np.pad(labels, [(0, 0), *[(1, 1)] * axes])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)


def test_every_pixel_takes_the_nearest_label() -> None:
    labels = np.array([[[1, 2], [3, 4]]], dtype=np.uint8)
    found = resample_labels(labels, shift_and_scale(-0.4, 0.4), (5, 5))  # at -0.4, 0, 0.4, 0.8 and 1.2
    rows = np.repeat(labels[0], [3, 2], axis=0)
    np.testing.assert_array_equal(found[0], np.repeat(rows, [3, 2], axis=1))
    flip = np.array([[0, -1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    np.testing.assert_array_equal(resample_labels(labels, flip, (2, 2))[0], [[3, 1], [4, 2]])


def test_the_outer_half_of_a_border_pixel_holds_its_value_or_fades_and_all_beyond_is_zero() -> None:
    line = torch.tensor([[[2.0, 4.0]]])  # one column of two rows
    at = shift_and_scale(-1.0, 0.25)
    at[0] = [1, 0, 0, 0]
    held = resample(line, at, (1, 13), hold_edges=True)[0, 0]  # at -1, -0.75, -0.5, ..., 2
    faded = resample(line, at, (1, 13))[0, 0]
    torch.testing.assert_close(held, torch.tensor([0, 0, 2, 2, 2, 2.5, 3, 3.5, 4, 4, 4, 0, 0]))
    torch.testing.assert_close(faded, torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 3, 2, 1, 0]))
