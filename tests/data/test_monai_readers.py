# SPDX-License-Identifier: Apache-2.0
"""Images that MONAI's own readers loaded."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImaged
from PIL import Image

from medcf.data import get_spacing, read
from medcf.transforms import ToGrid


@pytest.mark.parametrize("name", ["picture.png", "color.png", "picture.nii", "volume.nii.gz"])
def test_monai_loader_and_ours_end_on_the_same_grid(tmp_path: Path, name: str) -> None:
    affine = np.array([[-0.6, 0.1, 0, 5], [0.1, -0.4, 0, 7], [0, 0, 1.2, 9], [0, 0, 0, 1]])
    shape = {"picture.png": (12, 17), "color.png": (12, 17, 3), "picture.nii": (17, 12), "volume.nii.gz": (17, 12, 9)}
    values = np.random.default_rng(0).integers(1, 256, shape[name], dtype=np.uint8)
    if name.endswith(".png"):
        Image.fromarray(values).save(tmp_path / name)
    else:
        nib.save(nib.Nifti1Image(values, affine), tmp_path / name)
    reader = "PILReader" if name.endswith(".png") else "NibabelReader"
    load = LoadImaged("image", reader=reader, ensure_channel_first=True)
    theirs, ours = load({"image": str(tmp_path / name)})["image"], read(tmp_path / name)
    resampler = ToGrid(size=(16, 20, 14)[: ours.ndim - 1], spacing=0.7, subject="all" if ours.ndim == 4 else None)
    grids = [resampler(image) for image in (theirs, ours)]
    torch.testing.assert_close(grids[0].as_tensor(), grids[1].as_tensor(), atol=1e-6, rtol=0)
    torch.testing.assert_close(grids[0].affine, grids[1].affine, atol=1e-6, rtol=0)
    assert get_spacing(grids[0]) == get_spacing(grids[1])
    assert (get_spacing(grids[0]) is None) == name.endswith(".png")
    assert (get_spacing(theirs) is None) == name.endswith(".png")


def test_a_grid_of_unknown_spacing_does_not_name_one(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 80), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    grid = ToGrid()(read(tmp_path / "a.png"))
    assert get_spacing(grid) is None
    np.testing.assert_allclose(grid.numpy()[0], values / 127.5 - 1, atol=1e-5)
    again = ToGrid(intensity=(-1, 1))(grid)  # its rows are still rows
    torch.testing.assert_close(again.as_tensor(), grid.as_tensor(), atol=1e-5, rtol=0)


def test_a_size_of_one_number_is_refused_as_such() -> None:
    with pytest.raises(ValueError, match=r"three positive numbers.*40"):
        ToGrid(size=40)
