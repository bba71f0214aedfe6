# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Invertd

from medcf.data import UnreadableImage, grid_record
from medcf.data.volumes import find_volumes, from_volume_grid
from medcf.transforms.volumes import LoadVolumed, NativeVolume, NativeVolumed, ToVolumeGrid, ToVolumeGridd

GRID = {"size": (24, 28, 22), "spacing": 4.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An oblique head of 3 x 3 x 5 mm, flipped, and its mask."""
    affine = np.array([[-2.9, 0.4, 0.3, 40], [0.5, 2.9, 0.8, -60], [0.1, -0.5, 4.9, -50], [0, 0, 0, 1]])
    shape = (30, 34, 20)
    x, y, z = (np.indices(shape).reshape(3, -1).T - np.array([14.5, 16.5, 9.5])).T.reshape(3, *shape) * [
        [[[3]]],
        [[[3]]],
        [[[5]]],
    ]
    inside = (x / 36) ** 2 + (y / 42) ** 2 + (z / 36) ** 2 < 1
    values = np.where(inside, 500 + 200 * np.sin(x / 9) + 3 * y, 0).astype(np.int16)
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "head.nii.gz")
    (tmp_path / "masks").mkdir()
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), affine), tmp_path / "masks" / "head.nii.gz")
    (tmp_path / "list.csv").write_text("file,mask\nhead.nii.gz,masks/head.nii.gz\n")
    return tmp_path


def prepared(folder: Path, **options) -> dict:
    cases, _ = find_volumes(None, folder / "list.csv")
    return Compose([LoadVolumed(), ToVolumeGridd("image", **GRID, **options)])(cases[0])


def test_a_case_comes_onto_the_grid_with_its_mask(folder):
    data = prepared(folder)
    stored = nib.load(folder / "head.nii.gz")

    assert np.array_equal(data["original"].numpy()[0], stored.get_fdata())
    assert np.array_equal(data["mask"].numpy()[0], nib.load(folder / "masks" / "head.nii.gz").get_fdata() > 0)
    assert data["image"].shape == (1, 24, 28, 22)
    assert float(data["image"].min()) == -1
    assert grid_record(data["image"])["native_size"] == (30, 34, 20)
    assert data["case"] == "head"


def test_without_a_mask_the_one_that_was_found_is_handed_on(folder):
    given = prepared(folder)
    (folder / "list.csv").write_text("file\nhead.nii.gz\n")
    found = prepared(folder)

    assert torch.equal(given["mask"], found["mask"])
    torch.testing.assert_close(given["image"].as_tensor(), found["image"].as_tensor())


def test_monai_inverts_the_grid(folder):
    cases, _ = find_volumes(None, folder / "list.csv")
    resampler = ToVolumeGridd("image", **GRID)
    data = resampler(LoadVolumed()(cases[0]))
    record = grid_record(data["image"])
    data["pred"] = data["image"].clone()

    back = Invertd("pred", resampler, orig_keys="image", nearest_interp=False, to_tensor=True)(data)["pred"]

    torch.testing.assert_close(back.as_tensor(), from_volume_grid(data["image"], record))
    np.testing.assert_allclose(np.asarray(back.affine), np.asarray(data["original"].affine), atol=1e-6)
    # what was inside the brain comes back as it was but for the resampling
    inside = data["mask"][0].numpy()
    low, high = record["intensity"]
    restored = (back.numpy()[0] + 1) / 2 * (high - low) + low
    assert np.corrcoef(restored[inside], data["original"].numpy()[0][inside])[0, 1] > 0.85


def test_the_inverse_needs_the_record(folder):
    with pytest.raises(TypeError, match="ToVolumeGrid"):
        ToVolumeGrid(**GRID).inverse(torch.zeros(1, 24, 28, 22))


def test_the_counterfactual_is_the_original_plus_the_change_in_its_own_units(folder):
    data = prepared(folder)
    start = data["image"].as_tensor()
    step = torch.zeros_like(start)
    step[0, 12:16, 10:14, 9:12] = 0.4
    data["trajectory"] = torch.stack([start, start + 0.5 * step, start + step])

    native = NativeVolumed()(data)["native"]

    low, high = native["window"]
    original = nib.load(folder / "head.nii.gz").get_fdata()
    assert np.array_equal(native["original"].numpy(), original)
    assert native["difference"].shape == original.shape
    assert float(native["difference"].max()) == pytest.approx(0.2, abs=1e-3)  # of the full range
    torch.testing.assert_close(native["difference_units"], native["difference"] * (high - low))
    torch.testing.assert_close(native["counterfactual"], native["original"] + native["difference_units"])
    untouched = native["difference"] == 0
    assert torch.equal(native["counterfactual"][untouched], native["original"][untouched])
    assert native["trajectory"].shape[0] == 2
    assert torch.equal(native["trajectory"][0], native["original"])
    assert np.array_equal(native["mask"].numpy(), data["mask"].numpy()[0])
    # the change's volume is the same in the world: 48 voxels of 64 mm3
    voxel = abs(np.linalg.det(np.asarray(data["original"].affine)[:3, :3]))
    assert float(native["difference"].sum()) * voxel == pytest.approx(0.2 * 48 * 64, rel=0.03)


def test_every_step_comes_back_if_asked_for(folder):
    data = prepared(folder)
    start = data["image"].as_tensor()
    trajectory = torch.stack([start, start + 0.1, start + 0.3])

    native = NativeVolume(all_steps=True)(data["original"], trajectory, grid_record(data["image"]))

    assert native["trajectory"].shape[0] == 3
    changes = (native["trajectory"] - native["original"])[:, 15, 17, 10]
    torch.testing.assert_close(changes / native["window"][1], torch.tensor([0.0, 0.05, 0.15]), atol=1e-4, rtol=0)


def test_options_reach_the_grid(folder):
    wide = prepared(folder, intensity=(0.0, 5000.0))
    assert grid_record(wide["image"])["intensity"] == (0.0, 5000.0)
    assert float(wide["image"].max()) < -0.5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mask": "masks/head.nii.gz"}, "mask='masks/head.nii.gz'.*column 'mask'"),
        ({"size": 40}, "three positive numbers.*40"),
        ({"size": (8, 8, 2.5)}, "three positive numbers"),
        ({"spacing": 0}, "positive millimeters"),
        ({"spacing": "4mm"}, "positive millimeters"),
        ({"registration": "elastic"}, "registration='elastic'"),
        ({"center": "nose"}, "center='nose'"),
        ({"percentile": 5}, "percentile=5"),
    ],
)
def test_a_wrong_option_is_no_fault_of_a_file(option, message):
    with pytest.raises(ValueError, match=message):
        ToVolumeGrid(**option)


def test_a_mask_of_hardly_anything_is_refused(folder):
    mask = nib.load(folder / "masks" / "head.nii.gz")
    speck = np.zeros(mask.shape, np.uint8)
    speck[15, 17, 10] = 1
    nib.save(nib.Nifti1Image(speck, mask.affine), folder / "masks" / "head.nii.gz")
    case = LoadVolumed()(find_volumes(None, folder / "list.csv")[0][0])
    with pytest.raises(UnreadableImage, match=r"head\.nii\.gz: holds less brain than a voxel"):
        ToVolumeGrid((24, 28, 22), 8.0, intensity=(0.0, 500.0))(case["image"], case["mask"])


def test_a_case_that_is_no_volume_names_its_file(folder):
    (folder / "broken.nii").write_bytes(b"x" * 500)
    with pytest.raises(UnreadableImage, match=r"broken\.nii"):
        LoadVolumed()({"image": str(folder / "broken.nii")})
