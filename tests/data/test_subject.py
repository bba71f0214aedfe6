# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcf.data.subject import find_subject, middle_of, picture_box
from medcf.runtime.errors import UnreadableImage
from medcf.transforms import ToGrid


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

    found = find_subject(image)

    assert torch.equal(found, find_subject(image, "nonzero"))
    assert np.array_equal(found.numpy()[0], truth)


def test_a_noisy_background_makes_it_an_estimate_with_a_warning(stripped, caplog):
    image, truth = stripped
    noise = torch.from_numpy(np.random.default_rng(0).rayleigh(20, image.shape).astype(np.float32))

    noisy = image + noise
    noisy.meta["filename_or_obj"] = "in/noisy.nii"

    found = find_subject(noisy)

    assert torch.equal(found, find_subject(noisy, "estimate"))
    assert "noisy.nii: the brain mask is estimated" in caplog.text
    assert dice(found.numpy()[0], truth) > 0.95
    assert "no skull" not in caplog.text
    assert "skull and scalp" in caplog.text


def test_the_estimate_of_a_ct_is_the_head(stripped):
    image, truth = stripped
    ct = torch.where(torch.from_numpy(truth)[None], image.as_tensor() * 0.08, -1000.0)
    ct[0, :, :, :2] = 50  # a table under the head that does not touch it
    ct[0, :, :, 2:3] = -1000

    ct = MetaTensor(ct, affine=image.affine)
    found = find_subject(ct)

    assert torch.equal(found, find_subject(ct, "estimate"))
    assert dice(found.numpy()[0], truth) > 0.95


def test_a_crop_within_the_brain_is_all_brain():
    image = MetaTensor(torch.rand(1, 35, 51, 36), affine=torch.eye(4))
    found = find_subject(image)
    assert bool(found.all())


def test_a_volume_without_contrast_and_unknown_methods_are_refused():
    flat = MetaTensor(torch.full((1, 50, 50, 50), 7.0), affine=torch.diag(torch.tensor([4.0, 4, 4, 1])))
    flat.meta["filename_or_obj"] = "/somewhere/Doe/flat.nii"
    with pytest.raises(ValueError, match="only one value"):
        find_subject(flat)
    with pytest.raises(UnreadableImage, match=r"^flat\.nii: cannot be put onto the network's grid .*no brain"):
        ToGrid(size=(8, 8, 8))(flat)
    for method in ("guess", "picture"):
        with pytest.raises(ValueError, match=f"mask='{method}' is not one of"):
            find_subject(flat, method)


def test_a_function_may_find_the_subject(stripped):
    image, truth = stripped
    found = find_subject(image, lambda volume: (volume > 500).float())
    assert np.array_equal(found.numpy()[0], image.numpy()[0] > 500)
    assert found.sum() < truth.sum()


def test_the_middle_of_a_subject_is_that_of_its_box_in_the_world(heads):
    shape, affine = heads.geometry("PIR", (3, 3, 4), (20, -11, 31))
    found = middle_of(heads.head(shape, affine) > 0, affine)
    np.testing.assert_allclose(found, [5, -20, 30], atol=2.5)


def test_the_middle_of_a_lopsided_subject_is_that_of_its_box_along_the_worlds_axes():
    inside = np.zeros((10, 9, 8), dtype=bool)
    inside[2:5, 2:5, 2:5] = True
    inside[8, 3, 4] = True  # a voxel that stands out
    upright = np.diag([-2.0, 1.0, 3.0, 1.0])
    upright[:3, 3] = (10, 20, 30)
    np.testing.assert_allclose(middle_of(inside, upright), [0, 23, 39])  # x from -6 to 6, y 22 to 24, z 36 to 42
    turned = np.array([[1.0, -1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(middle_of(inside, turned), [1.5, 7.5, 3])  # x from -2 to 5, y from 4 to 11


def test_single_bright_pixels_do_not_widen_a_picture():
    picture = torch.zeros(1, 100, 80)
    picture[0, 20:60, 10:50] = 0.5
    picture[0, 90, 70] = 1
    assert picture_box(picture) == ([20, 10], [60, 50])
    assert picture_box(picture * 255, (0, 255)) == ([20, 10], [60, 50])
    assert picture_box(picture * 0) == ([0, 0], [100, 80])
    picture[0, 80:] = 0.5  # a second screen beside the region of the header
    assert picture_box(MetaTensor(picture, meta={"region": (5, 5, 70, 60)})) == ([20, 10], [60, 50])
