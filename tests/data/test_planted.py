# SPDX-License-Identifier: Apache-2.0
"""A planted change lands at its place in the world: from the grid in the volume, and from the volume on the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcf.data import Grid, GridRecord, read
from medcf.transforms.corrections import register
from tests.data.planted import measure_planted_change

GRID = Grid((24, 28, 22), 4.0, "RAS", "auto")
AXIAL = ("LPS", (2.5, 2.5, 5.0), (0, 0, 0))
SAGITTAL = ("PIR", (2.5, 2.5, 5.0), (0, 0, 0))
CORONAL = ("LIA", (2.5, 2.5, 5.0), (0, 0, 0))
OBLIQUE = ("RAS", (3.0, 3.0, 3.0), (25, -18, 33))
LAYOUTS = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "oblique": OBLIQUE,
    "LAS": ("LAS", (3.0, 3.0, 3.0), (0, 0, 0)),
    "ASR": ("ASR", (3.0, 3.0, 3.0), (0, 0, 0)),
    "anisotropic": ("RAS", (1.5, 1.5, 6.0), (0, 0, 0)),
    "all at once": ("PLS", (1.5, 2.0, 6.0), (14, 9, -21)),
}


@pytest.mark.parametrize("container", ["nifti", "dicom"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_planted_change_keeps_its_place(heads, tmp_path, layout, container):
    shape, affine = heads.geometry(*layout)
    values = heads.head(shape, affine)
    save = heads.save_nifti if container == "nifti" else heads.save_series
    image = read(save(tmp_path / "head.nii", values, affine))

    for spec in (GRID, Grid((48, 56, 44), 2.0, "RAS", "auto"), Grid((28, 22, 24), 4.0, "PIL", "auto")):
        measured = measure_planted_change(image, spec, mask=image.as_tensor() > 0)

        assert measured["voxel_mm"] == pytest.approx(max(*layout[1], spec.spacing), rel=1e-3)
        assert measured["native_mm"] < 0.4, measured
        assert measured["grid_mm"] < 0.4, measured
        assert measured["native_voxels"] < 0.1
        assert measured["grid_voxels"] < 0.1


def test_a_tilted_gantry_keeps_the_place_too(heads, tmp_path):
    shape, affine = heads.geometry("LPS", (3.0, 3.0, 4.0))
    affine[1, 2] += 4.0 * np.tan(np.radians(20))
    affine[1, 3] -= 4.0 * np.tan(np.radians(20)) * (shape[2] - 1) / 2
    image = read(heads.save_series(tmp_path, heads.head(shape, affine), affine))

    measured = measure_planted_change(image, GRID, mask=image.as_tensor() > 0)

    assert max(measured["native_mm"], measured["grid_mm"]) < 0.4


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_registration_keeps_the_place_in_the_original(heads, kind):
    shape, affine = heads.geometry("LPS", (4.0, 4.0, 4.0))
    template = MetaTensor(torch.from_numpy(heads.head(shape, affine).astype(np.float32))[None], affine=affine)
    shape, lying = heads.geometry("LAS", (3.0, 4.0, 5.0))
    head = heads.head(shape, lying).astype(np.float32)
    turned = np.eye(4)
    turned[:3, :3] = np.array([[0.966, -0.259, 0], [0.259, 0.966, 0], [0, 0, 1]])
    turned[:3, 3] = (12, 3, -8)
    image = MetaTensor(torch.from_numpy(head)[None], affine=turned @ lying)

    mask = image.as_tensor() > 0

    measured = measure_planted_change(image, GRID, mask=mask, registered=register(image, mask, template, kind))

    assert max(measured["native_mm"], measured["grid_mm"]) < 0.5, measured


@pytest.mark.parametrize(
    ("wrong", "distance"),
    [(lambda values: values.flip(1), 30.0), (lambda values: values.roll(1, 3), 3.9)],
    ids=["mirrored", "one voxel off"],
)
def test_a_wrong_way_back_is_noticed(heads, monkeypatch, wrong, distance):
    shape, affine = heads.geometry("RAS", (4.0, 4.0, 4.0))
    image = MetaTensor(torch.from_numpy(heads.head(shape, affine).astype(np.float32))[None], affine=affine)
    right = GridRecord.back
    monkeypatch.setattr(GridRecord, "back", lambda record, values: wrong(right(record, values)))

    measured = measure_planted_change(image, GRID, mask=image.as_tensor() > 0)

    assert measured["native_mm"] > distance


def test_a_point_outside_of_the_brain_is_refused(heads):
    shape, affine = heads.geometry(voxel=(6, 6, 6))
    image = MetaTensor(torch.from_numpy(heads.head(shape, affine).astype(np.float32))[None], affine=affine)
    with pytest.raises(ValueError, match="outside of the brain"):
        measure_planted_change(image, GRID, mask=image.as_tensor() > 0, offset=(60, 0, 0))
