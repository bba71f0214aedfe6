# SPDX-License-Identifier: Apache-2.0
"""ToGrid inside MONAI: collated, decollated and inverted like any other invertible transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.transforms import Compose, Invertd
from PIL import Image

from medcf.data import build_datalist, from_grid, get_spacing, grid_record, to_grid
from medcf.transforms import LoadCased, RemoveOverlaysd, ToGrid, ToGridd


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of three sizes."""
    generator = np.random.default_rng(0)
    for index, shape in enumerate([(120, 160), (90, 200), (300, 240)]):
        smooth = generator.random((6, 8))
        picture = Image.fromarray(np.uint8(40 + 150 * smooth)).resize(shape[::-1], Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{index}.png")
    return tmp_path


def test_batch_of_different_sizes_goes_there_and_back(folder: Path) -> None:
    preprocessing = Compose([LoadCased(), RemoveOverlaysd(keys="image"), ToGridd(keys="image", size=(32, 40))])
    cases, _ = build_datalist(folder)
    one_by_one = [preprocessing(case) for case in cases]
    dataset = Dataset([{k: v for k, v in case.items() if k != "original"} for case in one_by_one])
    (batch,) = DataLoader(dataset, batch_size=3)
    assert batch["image"].shape == (3, 1, 32, 40)
    batch["pred"] = batch["image"].clone()
    back = Invertd(keys="pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
    for item, case in zip(decollate_batch(batch), one_by_one, strict=True):
        height, width = case["original"].shape[1:]
        assert item["image"].meta["overlay_mask"].shape == (1, 32, 40)
        assert get_spacing(item["image"]) is None
        pred = back(item)["pred"]
        assert pred.shape == (1, height, width)
        torch.testing.assert_close(pred.affine, case["original"].affine)
        expected = from_grid(case["image"], grid_record(case["image"]))
        torch.testing.assert_close(
            pred.as_tensor(), expected.as_tensor() if hasattr(expected, "as_tensor") else expected
        )


def test_transform_is_the_function(folder: Path) -> None:
    image = LoadCased()(build_datalist(folder)[0][0])["image"]
    image.meta["spacing_mm"] = (0.5, 0.6)
    grid = ToGrid(size=(48, 64), spacing=(2.0, 1.5), intensity=(0, 1))(image)
    expected, record = to_grid(image, (48, 64), (2.0, 1.5), intensity=(0, 1))
    torch.testing.assert_close(grid.as_tensor(), expected.as_tensor())
    assert grid_record(grid) == record
    assert get_spacing(grid) == (2.0, 1.5)


def test_image_without_a_record_is_told_what_to_do(folder: Path) -> None:
    image = LoadCased()(build_datalist(folder)[0][0])["image"]
    with pytest.raises(ValueError, match=r"apply medcf\.transforms\.ToGrid"):
        grid_record(image)
    with pytest.raises(TypeError, match="must be a MetaTensor"):
        ToGrid().inverse(torch.zeros(1, 64, 80))
