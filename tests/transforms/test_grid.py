# SPDX-License-Identifier: Apache-2.0
"""ToGrid inside MONAI: collated, decollated and inverted like any other invertible transform."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.transforms import Compose, Invertd, LoadImaged
from PIL import Image

from medcf.data import Grid, StudyReader, find_cases, get_spacing, grid_record, read
from medcf.runtime.errors import UnreadableImage
from medcf.transforms import RemoveOverlaysd, ToGrid, ToGridd

GRID = {"size": (24, 28, 22), "spacing": 4.0}
LOAD = LoadImaged(keys="image", reader=StudyReader, expanduser=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of three sizes."""
    generator = np.random.default_rng(0)
    for index, shape in enumerate([(120, 160), (90, 200), (300, 240)]):
        smooth = generator.random((6, 8))
        picture = Image.fromarray(np.uint8(40 + 150 * smooth)).resize(shape[::-1], Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.fixture
def brain(tmp_path: Path, brain_files) -> Path:
    """An oblique head of 3 x 3 x 5 mm, flipped, and its mask; returns the table."""
    return brain_files(tmp_path)


def test_a_batch_of_different_sizes_goes_there_and_back(folder: Path) -> None:
    preprocessing = Compose([LOAD, RemoveOverlaysd(keys="image"), ToGridd(keys="image", size=(32, 40))])
    items = [preprocessing(case.item()) for case in find_cases(folder)[0]]
    (batch,) = DataLoader(Dataset([{"image": item["image"]} for item in items]), batch_size=3)
    assert batch["image"].shape == (3, 1, 32, 40)
    batch["pred"] = batch["image"].clone()
    back = Invertd(keys="pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
    for item, alone in zip(decollate_batch(batch), items, strict=True):
        record = grid_record(alone["image"])
        assert record.image.meta["overlay_mask"].shape == record.image.shape
        assert get_spacing(record.image) is None
        pred = back(item)["pred"]
        assert pred.shape == (1, *record.native)
        torch.testing.assert_close(pred.affine, record.image.affine)
        torch.testing.assert_close(pred.as_tensor(), record.back(alone["image"]))


def test_the_transform_is_the_grid(folder: Path) -> None:
    image = read(folder / "0.png")
    image.affine = torch.diag(torch.tensor([-0.6, -0.5, 1, 1], dtype=torch.float64))
    grid = ToGrid(size=(48, 64), spacing=(2.0, 1.5))(image)
    spec = Grid((48, 64), (2.0, 1.5))
    record = spec.fit(image)
    torch.testing.assert_close(grid.as_tensor(), spec.to(image, record).as_tensor())
    np.testing.assert_array_equal(grid_record(grid).matrix, record.matrix)
    np.testing.assert_allclose(np.abs(grid.affine.numpy()[:2, :2]), [[0, 1.5], [2, 0]], atol=1e-9)


def test_an_image_without_a_record_is_told_what_to_do(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"apply medcf\.transforms\.ToGrid"):
        grid_record(read(folder / "0.png"))
    for transform, shape in ((ToGrid(), (1, 64, 80)), (ToGrid(**GRID), (1, 24, 28, 22))):
        with pytest.raises(TypeError, match="must be a MetaTensor that went through ToGrid"):
            transform.inverse(torch.zeros(shape))


def prepared(table: Path, **options) -> dict:
    cases, _ = find_cases(None, table, spatial_dims=3)
    return Compose([LOAD, ToGridd("image", **GRID, **options)])(cases[0].item())


def test_a_volume_comes_onto_the_grid_with_its_mask(brain: Path) -> None:
    data = prepared(brain)
    stored = nib.load(brain.parent / "head.nii.gz")
    record = grid_record(data["image"])

    assert np.array_equal(record.image.numpy()[0], stored.get_fdata())
    assert np.array_equal(record.mask.numpy()[0], nib.load(brain.parent / "masks" / "head.nii.gz").get_fdata() > 0)
    assert data["image"].shape == (1, 24, 28, 22)
    assert float(data["image"].min()) == -1
    assert record.native == (30, 34, 20)
    assert data["case"] == "head"
    # nothing but the image is a tensor: whoever hands tensors on as arguments finds one
    assert [key for key, value in data.items() if isinstance(value, torch.Tensor)] == ["image"]


def test_without_a_mask_the_one_that_was_found_is_handed_on(brain: Path) -> None:
    given = prepared(brain)["image"]
    brain.write_text("file\nhead.nii.gz\n")
    found = prepared(brain)["image"]

    assert torch.equal(grid_record(given).mask, grid_record(found).mask)
    torch.testing.assert_close(given.as_tensor(), found.as_tensor())


def test_a_mask_beside_the_image_is_its_subject(brain: Path) -> None:
    image = read(brain.parent / "head.nii.gz")
    half = image.as_tensor() > 500
    data = ToGridd("image", **GRID)({"image": image, "mask": half, "label": 1})
    assert data.keys() == {"image", "label"}
    assert torch.equal(grid_record(data["image"]).mask, half)


def test_monai_inverts_the_grid_of_a_volume(brain: Path) -> None:
    resampler = ToGridd("image", **GRID)
    data = resampler(LOAD(find_cases(None, brain, spatial_dims=3)[0][0].item()))
    record = grid_record(data["image"])
    data["pred"] = data["image"].clone()

    back = Invertd("pred", resampler, orig_keys="image", nearest_interp=False, to_tensor=True)(data)["pred"]

    torch.testing.assert_close(back.as_tensor(), record.back(data["image"]))
    np.testing.assert_allclose(np.asarray(back.affine), np.asarray(record.image.affine), atol=1e-6)
    # what was inside the brain comes back as it was but for the resampling
    inside = record.mask[0].numpy()
    low, high = record.intensity
    restored = (back.numpy()[0] + 1) / 2 * (high - low) + low
    assert np.corrcoef(restored[inside], record.image.numpy()[0][inside])[0, 1] > 0.85


def test_options_reach_the_grid(brain: Path) -> None:
    wide = prepared(brain, intensity=(0.0, 5000.0))["image"]
    assert grid_record(wide).intensity == (0.0, 5000.0)
    assert float(wide.max()) < -0.5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"subject": "masks/head.nii.gz"}, "subject='masks/head.nii.gz' is not one of"),
        ({"size": (8, 8, 2.5)}, "three positive numbers"),
        ({"spacing": 0}, "positive millimeters"),
        ({"spacing": "4mm"}, "positive millimeters"),
        ({"registration": "elastic"}, "registration='elastic'"),
        ({"center": "nose"}, "center='nose'"),
        ({"percentile": 5}, "percentile=5"),
    ],
)
def test_a_wrong_option_is_no_fault_of_a_file(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ToGrid(**{**GRID, **option})
    assert not isinstance(caught.value, UnreadableImage)


def test_a_mask_of_hardly_anything_is_refused(brain: Path) -> None:
    image = read(brain.parent / "head.nii.gz")
    speck = torch.zeros_like(image.as_tensor())
    speck[0, 15, 17, 10] = 1
    with pytest.raises(UnreadableImage, match=r"head\.nii\.gz: holds less brain than a voxel"):
        ToGrid((24, 28, 22), 8.0, intensity=(0.0, 500.0))(image, speck)


@pytest.mark.parametrize(("grid", "name"), [(GRID, "plane.png"), ({}, "head.nii.gz")])
def test_an_image_of_the_other_dimension_names_its_file(brain: Path, grid: dict, name: str) -> None:
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(brain.parent / "plane.png")
    with pytest.raises(UnreadableImage, match=f"{name}: cannot be put onto the network's grid .image must be"):
        ToGrid(**grid)(read(brain.parent / name))
