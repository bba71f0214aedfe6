# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from medcf.data import grid_record
from medcf.transforms import CorrectBias, CorrectBiasd, ToGrid
from medcf.transforms.corrections import register

GRID = {"size": (24, 28, 22), "spacing": 4.0}


def volume(values, affine, mask=None):
    image = MetaTensor(torch.from_numpy(np.asarray(values, np.float32))[None], affine=torch.from_numpy(affine))
    if mask is not None:
        image.meta["mask"] = mask[None]
    return image


@pytest.fixture
def brain(heads):
    shape, affine = heads.geometry("LAS", (3, 3, 4))
    values = heads.head(shape, affine).astype(np.float32)
    return values, values > 0, affine


def test_n4_takes_a_bias_field_out(brain):
    values, inside, affine = brain
    flat = np.where(inside, 400 + 100 * (np.indices(values.shape).sum(0) % 2), 0).astype(np.float32)
    field = (1 + 0.5 * np.linspace(-1, 1, values.shape[0]))[:, None, None].astype(np.float32)

    image = volume(flat * field, affine, inside)
    image.meta["filename_or_obj"] = "a.nii"

    data = CorrectBiasd("image")({"image": image, "label": 1})

    corrected = data["image"].numpy()[0]
    assert data["label"] == 1
    assert data["image"].meta["filename_or_obj"] == "a.nii"
    assert np.array_equal(data["image"].meta["mask"][0], inside)
    assert np.array_equal(data["image"].affine, affine)

    def slope(found):
        return np.polyfit(field[:, 0, 0].repeat(inside.sum(axis=(1, 2))), (found / np.maximum(flat, 1))[inside], 1)[0]

    assert slope(flat * field) == pytest.approx(1, abs=1e-3)
    assert abs(slope(corrected)) < 0.25
    assert corrected[inside].mean() == pytest.approx((flat * field)[inside].mean(), rel=1e-3)


def test_the_bias_field_is_fitted_at_four_millimeters_along_every_axis(monkeypatch):
    import SimpleITK

    shrink, seen = SimpleITK.Shrink, []

    def noted(image, factors):
        seen.append((image.GetSize(), image.GetSpacing(), tuple(factors)))
        return shrink(image, factors)

    monkeypatch.setattr(SimpleITK, "Shrink", noted)
    values = np.full((24, 36, 12), 100.0)
    inside = np.zeros(values.shape, dtype=bool)
    inside[4:20, 6:30, 2:10] = True
    CorrectBias()(volume(values, np.diag([2.0, 1.0, 4.0, 1.0]), inside))
    assert seen == [((12, 36, 24), (4.0, 1.0, 2.0), (1, 4, 2))] * 2  # the array's last axis is ITK's first


def test_registration_finds_a_known_motion(brain):
    values, inside, affine = brain
    template = volume(values, affine)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", (10, -6, 14), degrees=True).as_matrix()
    motion[:3, 3] = (14, -9, 20)

    middle, found = register(volume(values, motion @ affine), torch.from_numpy(inside)[None], template)

    places = np.argwhere(inside)[::50] @ affine[:3, :3].T + affine[:3, 3]
    off = (places @ found[:3, :3].T + found[:3, 3]) - (places @ motion[:3, :3].T + motion[:3, 3])
    assert np.linalg.norm(off, axis=1).max() < 1.0  # mm, of 27 before
    np.testing.assert_allclose(middle, [5, -20, 30], atol=3)


def test_registered_volumes_agree_on_the_grid_and_their_affine_leads_home(brain, tmp_path):
    values, inside, affine = brain
    template = volume(values, affine)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix()
    lying = MetaTensor(template.as_tensor(), affine=torch.from_numpy(motion @ affine))
    mask = torch.from_numpy(inside)[None]

    nib.save(nib.Nifti1Image(values, affine), tmp_path / "template.nii")

    straight = ToGrid(**GRID)(template, mask)
    crooked = ToGrid(**GRID)(lying, mask)
    turned = ToGrid(**GRID, template=tmp_path / "template.nii")(lying, mask)

    def apart(other):
        return float((other - straight).as_tensor().abs().mean())

    assert apart(turned) < 0.2 * apart(crooked)
    corners = np.array([[0, 0, 0, 1], [23, 27, 21, 1], [23, 0, 21, 1]]).T
    expected = motion @ np.asarray(straight.affine) @ corners
    off = np.asarray(turned.affine) @ corners - expected
    assert np.linalg.norm(off, axis=0).max() < 2.0  # mm, at the corners of a grid of 140 mm
    # the way back holds the registration: voxels of the grid lie along the turned axes
    found = (motion @ affine @ grid_record(turned).matrix)[:3, :3] / 4
    np.testing.assert_allclose(found, motion[:3, :3], atol=0.03)


def test_what_cannot_be_corrected_is_named(brain, monkeypatch):
    values, inside, affine = brain
    with pytest.raises(ValueError, match="not an MR magnitude image"):
        CorrectBias()(volume(values - 500, affine, inside))
    template = volume(values, affine)
    with pytest.raises(ValueError, match="neither 'rigid' nor 'affine'"):
        ToGrid(**GRID, registration="elastic")
    mask = torch.from_numpy(inside)[None]
    with pytest.raises(ValueError, match=r"medcf\.read"):
        register(template, mask, template.as_tensor())
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ImportError, match=r"pip install 'medcf\[registration\]'"):
        CorrectBias()(volume(values, affine, inside))
    with pytest.raises(ImportError, match="template needs SimpleITK"):
        register(template, mask, template)
