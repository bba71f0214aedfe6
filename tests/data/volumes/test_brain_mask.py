# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcf.data import UnreadableImage
from medcf.data.volumes import brain_mask, resolve_mask


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture
def stripped(heads):
    shape, affine = heads.geometry(voxel=(3, 3, 4))
    values = heads.head(shape, affine).astype(np.float32)
    return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine)), values > 0


def test_a_cleared_background_tells_the_brain_with_its_holes_and_without_islands(stripped):
    image, truth = stripped
    image[0, 16, 16, 12] = 0  # a dark voxel within
    image[0, 1, 1, 1] = 300  # a speck that the stripping left

    found, method = brain_mask(image)

    assert method == "nonzero"
    assert np.array_equal(found.numpy()[0], truth)


def test_a_noisy_background_makes_it_an_estimate_with_a_warning(stripped, caplog):
    image, truth = stripped
    noise = torch.from_numpy(np.random.default_rng(0).rayleigh(20, image.shape).astype(np.float32))

    noisy = image + noise
    noisy.meta["filename_or_obj"] = "in/noisy.nii"

    found, method = brain_mask(noisy)

    assert method == "estimate"
    assert "noisy.nii: the brain mask is an estimate" in caplog.text
    assert dice(found.numpy()[0], truth) > 0.95
    assert "no skull" not in caplog.text
    assert "skull and scalp" in caplog.text


def test_the_estimate_of_a_ct_is_the_head(stripped):
    image, truth = stripped
    ct = torch.where(torch.from_numpy(truth)[None], image.as_tensor() * 0.08, -1000.0)
    ct[0, :, :, :2] = 50  # a table under the head that does not touch it
    ct[0, :, :, 2:3] = -1000

    found, method = brain_mask(MetaTensor(ct, affine=image.affine))

    assert method == "estimate"
    assert dice(found.numpy()[0], truth) > 0.95


def test_a_crop_within_the_brain_is_all_brain():
    image = MetaTensor(torch.rand(1, 35, 51, 36), affine=torch.eye(4))
    found, method = brain_mask(image)
    assert method == "all"
    assert bool(found.all())


def test_a_volume_without_contrast_and_unknown_methods_are_refused():
    flat = MetaTensor(torch.full((1, 50, 50, 50), 7.0), affine=torch.diag(torch.tensor([4.0, 4, 4, 1])))
    flat.meta["filename_or_obj"] = "/somewhere/Doe/flat.nii"
    with pytest.raises(ValueError, match="one value only"):
        brain_mask(flat)
    with pytest.raises(UnreadableImage, match=r"flat\.nii: has no brain"):
        resolve_mask(flat)
    with pytest.raises(ValueError, match="none of"):
        brain_mask(flat, "guess")
