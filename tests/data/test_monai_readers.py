# SPDX-License-Identifier: Apache-2.0
"""Images that MONAI's own readers loaded."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImaged
from PIL import Image

from medcf.data import get_spacing, read
from medcf.transforms import ToGrid, ToGridd
from tests.data.test_dicom import ultrasound


def write(folder: Path, name: str, heads: ModuleType) -> Path:
    """Write an image of random values under a name that says what it is."""
    generator = np.random.default_rng(0)
    affine = np.array([[-0.6, 0.1, 0, 5], [0.1, -0.4, 0, 7], [0, 0, 1.2, 9], [0, 0, 0, 1]])
    path = folder / name
    if name in ("series", "slice.dcm"):
        shape, placed = heads.geometry("LPS", (2, 2, 3), (12, -9, 21))
        series = heads.save_series(
            folder / "series", generator.integers(0, 900, shape).astype(np.int16), placed, modality="CT"
        )
        return series if name == "series" else min(series.iterdir())
    shape = (12, 17, 3) if name.startswith("color") else (12, 17)
    if name.endswith("nii.gz"):
        shape = (17, 12, 9)
    values = generator.integers(1, 256, shape, dtype=np.uint8)
    if name.endswith(".png"):
        Image.fromarray(values).save(path)
    elif name.endswith(".dcm"):
        spacing = {} if name.startswith("color") else {"PixelSpacing": [0.5, 0.7]}
        ultrasound(values, "RGB" if name.startswith("color") else "MONOCHROME2", **spacing).save_as(
            path, enforce_file_format=True
        )
    else:
        nib.save(nib.Nifti1Image(values.T if values.ndim == 2 else values, affine), path)
    return path


@pytest.mark.parametrize("channel_first", [True, False])
@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("picture.png", "PILReader"),
        ("picture.png", "ITKReader"),
        ("color.png", "PILReader"),
        ("color.png", "ITKReader"),
        ("picture.nii", "NibabelReader"),
        ("picture.nii", "ITKReader"),
        ("volume.nii.gz", "NibabelReader"),
        ("volume.nii.gz", "ITKReader"),
        ("picture.dcm", "ITKReader"),
        ("color.dcm", "ITKReader"),
        ("slice.dcm", "ITKReader"),
        ("series", "ITKReader"),
        ("series", "PydicomReader"),
    ],
)
def test_monai_loader_and_ours_end_on_the_same_grid(tmp_path, heads, name, reader, channel_first) -> None:
    path = write(tmp_path, name, heads)
    load = LoadImaged("image", reader=reader, ensure_channel_first=channel_first)
    theirs, ours = load({"image": str(path)})["image"], read(path)
    volume = ours.ndim == 4
    options = {"subject": "all"} if volume else {}
    resampler = ToGridd("image", size=(16, 20, 14)[: ours.ndim - 1], spacing=0.7, **options)
    grids = [resampler({"image": image})["image"] for image in (theirs, ours)]
    torch.testing.assert_close(grids[0].as_tensor(), grids[1].as_tensor(), atol=2e-6, rtol=0)
    assert float(grids[0].std()) > 0.1
    if name != "slice.dcm":  # one slice is a picture to us, and a place in the patient to ITK
        torch.testing.assert_close(grids[0].affine, grids[1].affine, atol=1e-4, rtol=0)
    spacings = [get_spacing(grid) for grid in grids]
    assert spacings[0] == (None if spacings[1] is None else pytest.approx(spacings[1]))
    assert (spacings[0] is None) == (name.endswith(".png") or name == "color.dcm")


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
