# SPDX-License-Identifier: Apache-2.0
"""A small oblique volume, for every test of reading."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation


@pytest.fixture
def oblique() -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """A small oblique volume with unequal sizes and voxels."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -12, 31), degrees=True).as_matrix() * np.array([1.5, 2.0, 3.5])
    affine[:3, 3] = (-31.5, 12.25, 7.0)
    values = np.random.default_rng(3).integers(0, 1000, (7, 6, 5)).astype(np.int16)
    return values, affine
