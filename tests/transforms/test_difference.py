# SPDX-License-Identifier: Apache-2.0
"""The counterfactual in the image's own units: the original plus the change, nothing else."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcf.data import grid_record, read
from medcf.transforms import AddDifference, AddDifferenced, ToGrid

GRID = {"size": (24, 28, 22), "spacing": 4.0}


@pytest.fixture
def grid(tmp_path: Path, brain_files) -> MetaTensor:
    """A brain on the grid."""
    brain_files(tmp_path)
    return ToGrid(**GRID)(read(tmp_path / "head.nii.gz"))


def test_the_counterfactual_is_the_original_plus_the_change_in_its_own_units(grid, tmp_path):
    record = grid_record(grid)
    step = torch.zeros_like(grid)
    step[0, 12:16, 10:14, 9:12] = 0.4

    native = AddDifferenced()({"image": grid, "pred": grid + step, "label": 1})

    low, high = record.intensity
    stored = nib.load(tmp_path / "head.nii.gz")
    original, pred, difference = (x.as_tensor() for x in (record.image, native["pred"], native["difference"]))
    assert np.array_equal(original.numpy()[0], stored.get_fdata())
    assert difference.shape == original.shape
    assert float(difference.max()) == pytest.approx(0.2, abs=1e-3)  # of the full range
    torch.testing.assert_close(pred, original + difference * (high - low))
    untouched = difference == 0
    assert torch.equal(pred[untouched], original[untouched])
    for name in ("pred", "difference"):
        np.testing.assert_allclose(native[name].affine, stored.affine, atol=1e-5)
    # the change's volume is the same in the world: 48 voxels of 64 mm3
    voxel = abs(np.linalg.det(stored.affine[:3, :3]))
    assert float(difference.sum()) * voxel == pytest.approx(0.2 * 48 * 64, rel=0.03)


def test_every_step_comes_back_with_the_others(grid):
    record = grid_record(grid)
    steps = torch.cat([grid.as_tensor() + change for change in (0.0, 0.1, 0.3)])

    native, _ = AddDifference()(steps, grid)

    assert native.shape == (3, *record.native)
    assert torch.equal(native[0], record.image.as_tensor()[0])
    changes = (native - record.image.as_tensor())[:, 15, 17, 10]
    torch.testing.assert_close(changes / record.intensity[1], torch.tensor([0.0, 0.05, 0.15]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["volume", "picture"])
def test_the_prediction_alone_is_enough(grid, kind):
    if kind == "picture":
        grid = ToGrid()(torch.rand(3, 90, 70, generator=torch.Generator().manual_seed(0)))
    pred = grid * 0.5

    together = AddDifferenced()({"image": grid, "pred": pred})
    alone = AddDifferenced()({"pred": pred})

    for name in ("pred", "difference"):
        torch.testing.assert_close(alone[name].as_tensor(), together[name].as_tensor(), atol=1e-4, rtol=1e-5)


def test_a_picture_stays_between_black_and_white():
    image = torch.linspace(0, 1, 80).expand(1, 60, 80).clone()
    grid = ToGrid()(image)
    brighter, difference = AddDifference()(grid + 1, grid)
    darker, _ = AddDifference()(grid - 1, grid)
    assert float(brighter.max()) == 1
    assert float(darker.min()) == 0
    assert float(difference.max()) == pytest.approx(0.5)  # not clipped


def test_a_picture_with_an_intensity_range_of_its_own_stays_in_it():
    image = torch.linspace(100, 200, 80).expand(1, 60, 80).clone()
    grid = ToGrid(intensity=(100.0, 200.0))(image)
    for change, end in ((1.5, "max"), (-1.5, "min")):
        changed, _ = AddDifference()(grid + change, grid)
        assert getattr(changed, end)() == getattr(image, end)()
    little, difference = AddDifference()(grid + 0.02, grid)
    torch.testing.assert_close(little[0, 20:40, 20:60], image[0, 20:40, 20:60] + 1)  # a hundredth of the range
    assert float(difference[0, 30, 40]) == pytest.approx(0.01)


def test_a_ct_below_its_window_is_not_lifted_to_black(tmp_path):
    values = torch.full((1, 16, 16, 16), -1000.0)
    values[:, 4:12, 4:12, 4:12] = 40
    values[:, 8, 8, 8] = -50  # a little fat
    volume = MetaTensor(values, affine=torch.eye(4))
    grid = ToGrid((16, 16, 16), 1.0, subject="all", intensity=(0, 80))(volume)
    for change in (0.1, -0.1):  # of a range of 2: 4 HU
        changed, _ = AddDifference()(grid + change, grid)
        inner = (slice(None), *[slice(2, 14)] * 3)
        wanted = (values + 40 * change).clamp(min=-1000)  # nowhere darker than the darkest of the image
        torch.testing.assert_close(changed[inner], wanted[inner], rtol=0, atol=1e-2)


def test_a_prediction_without_a_record_is_refused():
    with pytest.raises(ValueError, match=r"apply medcf\.transforms\.ToGrid"):
        AddDifference()(torch.zeros(1, 64, 80))
    assert AddDifferenced(allow_missing_keys=True)({"label": 1}) == {"label": 1}
