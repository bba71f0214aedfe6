# SPDX-License-Identifier: Apache-2.0
"""A brain on disk, for the transforms of volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def brain_files() -> Callable[[Path], Path]:
    """Write an oblique head of 3 x 3 x 5 mm, flipped, and its mask into a folder; returns the table of both."""

    def write(folder: Path) -> Path:
        affine = np.array([[-2.9, 0.4, 0.3, 40], [0.5, 2.9, 0.8, -60], [0.1, -0.5, 4.9, -50], [0, 0, 0, 1]])
        shape = (30, 34, 20)
        x, y, z = (
            (axis - (n - 1) / 2) * mm for axis, n, mm in zip(np.indices(shape), shape, (3.0, 3.0, 5.0), strict=True)
        )
        inside = (x / 36) ** 2 + (y / 42) ** 2 + (z / 36) ** 2 < 1
        values = np.where(inside, 500 + 200 * np.sin(x / 9) + 3 * y, 0).astype(np.int16)
        nib.save(nib.Nifti1Image(values, affine), folder / "head.nii.gz")
        (folder / "masks").mkdir()
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), affine), folder / "masks" / "head.nii.gz")
        (folder / "list.csv").write_text("file,mask\nhead.nii.gz,masks/head.nii.gz\n")
        return folder / "list.csv"

    return write
