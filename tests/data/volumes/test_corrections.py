# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from medcf.data.volumes import to_volume_grid
from medcf.data.volumes.corrections import correct_bias, register


@pytest.fixture
def brain(heads):
    shape, affine = heads.geometry("LAS", (3, 3, 4))
    values = heads.head(shape, affine).astype(np.float32)
    return values, values > 0, affine


def test_n4_takes_a_bias_field_out(brain):
    values, inside, affine = brain
    flat = np.where(inside, 400 + 100 * (np.indices(values.shape).sum(0) % 2), 0).astype(np.float32)
    field = (1 + 0.5 * np.linspace(-1, 1, values.shape[0]))[:, None, None].astype(np.float32)

    corrected = correct_bias(flat * field, inside, affine)

    def slope(volume):
        return np.polyfit(field[:, 0, 0].repeat(inside.sum(axis=(1, 2))), (volume / np.maximum(flat, 1))[inside], 1)[0]

    assert slope(flat * field) == pytest.approx(1, abs=1e-3)
    assert abs(slope(corrected)) < 0.25
    assert corrected[inside].mean() == pytest.approx((flat * field)[inside].mean(), rel=1e-3)


def test_registration_finds_a_known_motion(brain):
    values, inside, affine = brain
    template = MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine))
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", (10, -6, 14), degrees=True).as_matrix()
    motion[:3, 3] = (14, -9, 20)

    middle, found = register(values, inside, motion @ affine, template)

    places = np.argwhere(inside)[::50] @ affine[:3, :3].T + affine[:3, 3]
    off = (places @ found[:3, :3].T + found[:3, 3]) - (places @ motion[:3, :3].T + motion[:3, 3])
    assert np.linalg.norm(off, axis=1).max() < 1.0  # mm, of 27 before
    np.testing.assert_allclose(middle, [5, -20, 30], atol=3)


def test_registered_volumes_agree_on_the_grid_and_their_affine_leads_home(brain):
    values, inside, affine = brain
    template = MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine))
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix()
    lying = MetaTensor(template.as_tensor(), affine=torch.from_numpy(motion @ affine))
    mask = torch.from_numpy(inside)[None]

    straight, _ = to_volume_grid(template, (24, 28, 22), 4.0, mask=mask)
    crooked, _ = to_volume_grid(lying, (24, 28, 22), 4.0, mask=mask)
    turned, record = to_volume_grid(lying, (24, 28, 22), 4.0, mask=mask, template=template)

    def apart(other):
        return float((other - straight).as_tensor().abs().mean())

    assert apart(turned) < 0.2 * apart(crooked)
    corners = np.array([[0, 0, 0, 1], [23, 27, 21, 1], [23, 0, 21, 1]]).T
    expected = motion @ np.asarray(straight.affine) @ corners
    off = np.asarray(turned.affine) @ corners - expected
    assert np.linalg.norm(off, axis=0).max() < 2.0  # mm, at the corners of a grid of 140 mm
    np.testing.assert_allclose(np.array(record["registration"])[:3, :3], motion[:3, :3], atol=0.03)


def test_what_cannot_be_corrected_is_named(brain, monkeypatch):
    values, inside, affine = brain
    with pytest.raises(ValueError, match="no MR magnitude image"):
        correct_bias(values - 500, inside, affine)
    template = MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine))
    with pytest.raises(ValueError, match="neither 'rigid' nor 'affine'"):
        register(values, inside, affine, template, "elastic")
    with pytest.raises(ValueError, match="read_volume"):
        register(values, inside, affine, template.as_tensor())
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ImportError, match="pip install SimpleITK"):
        to_volume_grid(template, mask=torch.from_numpy(inside)[None], bias_correction=True)
