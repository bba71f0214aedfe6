# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate

from medcf.data.volumes import apply_volume_difference, from_volume_grid, read_volume, to_volume_grid
from medcf.phantoms import BrainMRI
from medcf.phantoms.brain.dataset import brain_on_grid

GRID = {"size": (24, 28, 22), "spacing": 4.0}


@pytest.fixture
def volume(heads):
    shape, affine = heads.geometry("LPS", (3, 3.5, 5), (11, -6, 17))
    values = torch.from_numpy(heads.head(shape, affine).astype(np.float32))[None]
    return MetaTensor(values, affine=torch.from_numpy(affine)), values > 0


def test_the_grid_is_upright_centered_on_the_brain_and_scaled(volume):
    image, mask = volume
    grid, record = to_volume_grid(image, **GRID, mask=mask)

    affine = np.asarray(grid.affine)
    np.testing.assert_allclose(affine[:3, :3], 4 * np.eye(3), atol=1e-9)
    middle = affine @ [11.5, 13.5, 10.5, 1]
    np.testing.assert_allclose(middle[:3], [5, -20, 30], atol=2.5)  # half of the largest voxel
    assert float(grid.min()) == -1
    assert float(grid.max()) <= 1
    low, high = record["intensity"]
    assert low == 0
    assert high == pytest.approx(np.percentile(image.numpy()[mask.numpy()], 99.5))
    outside = grid.as_tensor() == -1
    assert outside.float().mean() == pytest.approx(1 - 209e3 / (24 * 28 * 22 * 64), abs=0.02)  # 4/3 pi 36 42 33 mm3


def test_intensities_arrive_where_they_belong(volume, heads):
    """On the grid stands what the head's formula gives at the world coordinates of its voxels."""
    image, mask = volume
    grid, record = to_volume_grid(image, **GRID, mask=mask)
    truth = heads.head(GRID["size"], np.asarray(grid.affine)).astype(np.float32)
    found = (grid.numpy()[0] + 1) / 2 * record["intensity"][1]

    both = (truth > 0) & (grid.numpy()[0] > -1)
    assert np.abs(found - truth)[both].mean() < 15  # of 1000; the mean over a voxel differs a little from its middle
    assert np.corrcoef(found[both], truth[both])[0, 1] > 0.99


def test_a_volume_on_twice_the_grid_comes_as_the_phantoms_do():
    sample = BrainMRI(3).render(size=(40, 48, 40), spacing=4.0)
    image = MetaTensor(torch.from_numpy(sample.image)[None], affine=torch.from_numpy(sample.affine))
    mask = torch.from_numpy(sample.mask)[None]

    grid, record = to_volume_grid(image, (20, 24, 20), 8.0, mask=mask, center="image")

    expected = brain_on_grid(sample, 2)[0] / 255.0 / record["intensity"][1]
    assert np.array_equal(grid.numpy()[0] > -1, expected > 0)
    np.testing.assert_allclose((grid.numpy()[0] + 1) / 2, np.clip(expected, 0, 1), atol=0.004)


def test_a_thing_smaller_than_a_voxel_is_averaged_not_missed():
    image = MetaTensor(torch.ones(1, 32, 32, 32), affine=torch.eye(4))
    spread = []
    for shift in range(4):
        planted = image.clone()
        planted[0, 13 + shift, 14, 15] = 65
        grid, _ = to_volume_grid(planted, (8, 8, 8), 4.0, mask=torch.ones(1, 32, 32, 32), intensity=(0, 100))
        spread.append(float((grid.as_tensor() + 1).sum() * 50 - 512))
    np.testing.assert_allclose(spread, 1.0, atol=1e-2)  # 64 spread over 64 voxels, wherever it lies


def test_a_microscopic_volume_is_averaged_by_few_points():
    values = torch.zeros(1, 100, 100, 100)
    values[:, :, :, :50] = 1
    image = MetaTensor(values, affine=torch.diag(torch.tensor([0.1, 0.1, 0.1, 1.0], dtype=torch.float64)))
    started = time.process_time()

    grid, _ = to_volume_grid(image, (2, 2, 2), 5.0, mask=torch.ones_like(values), intensity=(0.0, 1.0))

    assert time.process_time() - started < 10  # a point for every voxel in them would take minutes
    np.testing.assert_allclose(grid.as_tensor()[0, :, :, 0], 1, atol=0.05)
    np.testing.assert_allclose(grid.as_tensor()[0, :, :, 1], -1, atol=0.05)


def test_negative_values_do_not_become_black(heads):
    shape, affine = heads.geometry(voxel=(6, 6, 6))
    values = heads.head(shape, affine).astype(np.float32)
    scored = np.where(values > 0, (values - 500) / 100, 0).astype(np.float32)
    image = MetaTensor(torch.from_numpy(scored)[None], affine=torch.from_numpy(affine))

    grid, record = to_volume_grid(image, **GRID, mask=torch.from_numpy(values > 0)[None])

    assert record["intensity"][0] == pytest.approx(np.percentile(scored[values > 0], 0.5))
    brain = grid.as_tensor()[grid.as_tensor() > -1]
    assert float((brain < -0.99).float().mean()) < 0.05


def test_the_record_survives_json_and_collating(volume):
    image, mask = volume
    grid, record = to_volume_grid(image, **GRID, mask=mask)
    change = torch.randn(1, *GRID["size"], generator=torch.Generator().manual_seed(0))
    expected = from_volume_grid(change, record)

    restored = json.loads(json.dumps(record))
    item = {"record": record, "image": grid}
    collated = decollate_batch(list_data_collate([item, item]))[1]["record"]

    for other in (restored, collated):
        torch.testing.assert_close(from_volume_grid(change, other), expected, atol=1e-5, rtol=1e-5)


def test_a_smooth_difference_comes_back_as_it_was(volume):
    image, mask = volume
    grid, record = to_volume_grid(image, **GRID, mask=mask)
    ramp = np.asarray(grid.affine)[:3, :3] @ np.indices(GRID["size"]).reshape(3, -1)
    ramp = (ramp[0] - 0.5 * ramp[1] + 2 * ramp[2]).reshape(1, *GRID["size"])

    native = from_volume_grid(torch.from_numpy(ramp), record)[0].numpy()

    steps = np.asarray(image.affine)[:3, :3]
    where = np.argwhere(mask[0].numpy())[::97]
    for direction, step in enumerate(steps.T):  # the ramp's slope along each axis of the volume
        ahead = where + np.eye(3, dtype=int)[direction]
        slope = native[tuple(ahead.T)] - native[tuple(where.T)]
        np.testing.assert_allclose(slope, step @ [1, -0.5, 2], atol=1e-3)


def test_a_difference_is_zero_outside_of_the_grid(volume):
    image, mask = volume
    _, record = to_volume_grid(image, (8, 8, 8), 4.0, mask=mask)
    native = from_volume_grid(torch.ones(2, 1, 8, 8, 8), record)

    assert native.shape == (2, 1, *image.shape[1:])
    assert 0 < float((native > 0).float().mean()) < 0.2
    volume_mm3 = float(native[0].sum()) * abs(np.linalg.det(np.asarray(image.affine)[:3, :3]))
    assert volume_mm3 == pytest.approx(32**3, rel=0.02)


def test_an_unchanged_grid_gives_the_original_to_the_bit_and_a_change_is_in_its_units(volume):
    image, mask = volume
    _, record = to_volume_grid(image, **GRID, mask=mask)
    nothing = torch.zeros(1, *GRID["size"])

    assert torch.equal(apply_volume_difference(image, nothing, record).as_tensor(), image.as_tensor())
    brighter = apply_volume_difference(image, nothing + 0.2, record)
    gain = (brighter - image).as_tensor()[mask]
    torch.testing.assert_close(gain, torch.full_like(gain, 0.1 * record["intensity"][1]), atol=0.1, rtol=1e-4)
    darker = apply_volume_difference(image, nothing - 4, record)
    assert float(darker.min()) == 0  # no MR image has negative values
    np.testing.assert_allclose(np.asarray(brighter.affine), np.asarray(image.affine))


def test_mistakes_are_named(volume):
    image, mask = volume
    for options, match in [
        ({"size": (8, 8)}, "three positive numbers"),
        ({"spacing": 0.0}, "positive millimeters"),
        ({"center": "nose"}, "neither 'brain' nor 'image'"),
        ({"mask": mask[..., 1:]}, "image's voxels"),
        ({"mask": mask & False}, "mask is empty"),
        ({"mask": "magic"}, "none of"),
        ({"percentile": 5.0}, "percentile"),
        ({"mask": mask, "intensity": (3.0, 3.0)}, "no range"),
    ]:
        with pytest.raises(ValueError, match=match):
            to_volume_grid(image, **{**GRID, **options})
    with pytest.raises(ValueError, match=r"\(1, X, Y, Z\)"):
        to_volume_grid(image[0], **GRID)
    _, record = to_volume_grid(image, **GRID, mask=mask)
    with pytest.raises(ValueError, match="shape"):
        from_volume_grid(torch.zeros(1, 3, 3, 3), record)


def test_reading_and_gridding_does_not_depend_on_how_the_voxels_are_laid(heads, tmp_path):
    """The same head in eight layouts gives the same picture on the grid."""
    grids = []
    for number, codes in enumerate(["RAS", "LAS", "LPS", "ASR", "PIR", "LSA", "SRA", "IPL"]):
        shape, affine = heads.geometry(codes, (4, 4, 4))
        image = read_volume(heads.save_nifti(tmp_path / f"{number}.nii", heads.head(shape, affine), affine))
        grids.append(to_volume_grid(image, **GRID, mask=image.as_tensor() > 0)[0].as_tensor())
    for other in grids[1:]:
        torch.testing.assert_close(other, grids[0], atol=1e-4, rtol=0)
