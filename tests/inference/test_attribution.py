# SPDX-License-Identifier: Apache-2.0
"""The map of a finding: its sign, its organ, its header, and its place in the picture's own geometry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged

from medcf.data import StudyReader
from medcf.inference import Attribution, Explainer, NiftiWriter
from medcf.inference.case_result import CaseResult
from medcf.inference.panel import draw_panel
from medcf.inferers.counterfactual import Counterfactual
from medcf.transforms import AddDifferenced, ToGridd


class Brightness(torch.nn.Module):
    """Class 1 is a picture whose mean is above 0."""

    def forward(self, image):
        mean = image.mean((1, 2, 3))
        return torch.stack([-10 * mean, 10 * mean], dim=1)


class Change:
    """Adds a number to every image; its seed is another number."""

    def __init__(self, change, seed=0):
        self.change, self.seed = change, seed

    def explain(self, inputs, network, sample_ids=None, target=None):
        image = inputs + self.change * (1 + self.seed)
        ones = torch.ones(len(inputs), dtype=torch.long)
        return Counterfactual(
            image=image, trajectory=torch.stack([inputs, image], dim=1), confidences=torch.rand(len(inputs), 2),
            target=ones, num_function_evaluations=ones, flipped=ones > 0, unchanged=ones < 0, scale=ones * 1.0,
            iterations=ones, scales=torch.ones(len(inputs), 1),
        )  # fmt: skip


def upper_half(image):
    """The upper half of the screen: the grid's first rows."""
    mask = torch.zeros_like(image)
    mask[..., : image.shape[2] // 2, :] = 1.0
    return mask


def explain(path, change, **options):
    reader = LoadImaged("image", reader=StudyReader(), expanduser=False)
    steps = Compose([reader, ToGridd("image", size=(32, 40), spacing=1.75)])
    explainer = Explainer(
        steps, Change(change), torch.nn.Identity(), AddDifferenced(), Brightness(), writers=[NiftiWriter()],
        attribution=Attribution(upper_half, normal_class=0), **options,
    )  # fmt: skip
    return explainer(path)


@pytest.fixture
def picture(tmp_path):
    """A NIfTI picture of one gray level whose rows go down: ``picture(level)``."""

    def write(level):
        path = tmp_path / "in.nii.gz"
        values = np.full((40, 32, 1), round(255 * level), np.uint8)
        values[:, :2], values[:, -2:] = 0, 255  # the darkest and the brightest value of the file
        nib.save(nib.Nifti1Image(values, np.diag([-1.75, -1.75, 1.0, 1.0])), path)
        return path

    return write


@pytest.mark.parametrize("level", [0.2, 0.8])
@pytest.mark.parametrize("change", [-0.2, 0.2])
def test_the_map_is_the_abnormal_image_minus_the_normal_one(picture, level, change):
    result = explain(picture(level), change)
    abnormal = level > 0.5  # bright is class 1, which is not normal
    assert result.row["label_before"] == int(abnormal)
    assert result.row["attribution_sign"] == ("input - counterfactual" if abnormal else "counterfactual - input")
    inside = result.attribution[:, :16]  # columns first: the upper half of the screen
    np.testing.assert_allclose(inside, (-change if abnormal else change) / 2, atol=1e-5)
    assert not result.attribution[:, 16:].any()
    assert result.organ[:, :16].all()
    assert not result.organ[:, 16:].any()
    assert result.row["organ_fraction"] == pytest.approx(0.5)


def test_after_several_seeds_the_map_is_that_of_their_mean(picture):
    result = explain(picture(0.8), -0.1, seeds=3)  # changes of -0.1, -0.2 and -0.3
    np.testing.assert_allclose(result.attribution[:, :16], 0.1, atol=1e-5)
    np.testing.assert_allclose(result.difference, -0.05, atol=1e-5)


def test_the_file_has_the_geometry_of_the_input_and_says_its_sign(picture, tmp_path):
    path = picture(0.8)
    folder = explain(path, -0.2).save(tmp_path / "out")
    source, stored = nib.load(path), nib.load(folder / "attribution.nii.gz")
    assert stored.shape == source.shape
    np.testing.assert_array_equal(stored.affine, source.affine)
    assert b"SYNTHETIC input - counterfactual in the organ" in bytes(stored.header["descrip"])
    organ = nib.load(folder / "organ.nii.gz").get_fdata()
    np.testing.assert_allclose(stored.get_fdata(), 0.1 * organ, atol=1e-5)
    assert organ[:, :16].all()
    assert not organ[:, 16:].any()


def plain(**changes):
    image, difference = np.full((80, 64), 0.4, np.float32), np.zeros((80, 64), np.float32)
    difference[30:50, 20:40] = 0.3
    result = CaseResult(
        "a", Path("a.png"), image, image + difference, difference, np.stack([image, image + difference]),
        np.diag([-1.0, -1.0, 1.0, 1.0]), "raster", (1.0, 1.0),
        row={"target": 1, "label_before": 0, "label_after": 1, "confidence_before": 0.1, "confidence_after": 0.9,
             "flipped": True, "unchanged": False, "out_of_distribution": False},
    )  # fmt: skip
    return replace(result, row=result.row | changes)


def test_the_panel_names_the_sign_and_outlines_the_organ():
    result = plain(attribution_sign="counterfactual - input")
    organ = np.zeros((80, 64), bool)
    organ[10:60, 10:50] = True
    shown = draw_panel(replace(result, organ=organ, attribution=result.difference * organ))
    assert "finding: counterfactual - input, in the organ" in [text.words for text in shown.texts]
    green = (np.asarray(shown.image) == (0x59, 0xD9, 0x73)).all(-1)
    assert green.any()
    assert not (np.asarray(draw_panel(result).image) == (0x59, 0xD9, 0x73)).all(-1).any()


def test_the_panel_shows_the_floor_beside_the_change_and_warns_of_less():
    floors = {"floor": 0.06, "difference_floor": 0.0123, "edit_rms": 0.2, "below_floor": False}
    panel = draw_panel(plain(**floors))
    (line,) = [text.words for text in panel.texts if "floor" in text.words]
    assert "change 0.200, floor 0.0123, autoencoder 0.060 (RMS)" in line
    without = draw_panel(plain())
    assert panel.image.size == without.image.size
    assert np.any(np.asarray(panel.image) != np.asarray(without.image))  # also the line under the color bar
    warned = draw_panel(plain(**floors | {"below_floor": True, "out_of_distribution": True}))
    words = [text.words for text in warned.texts if text.background == "#b00020"]
    assert [word.split(":")[0] for word in words] == ["OUT OF DISTRIBUTION", "BELOW THE FLOOR"]
    assert warned.image.height > draw_panel(plain(out_of_distribution=True)).image.height
    boxes = [text.box for text in warned.texts if text.background == "#b00020"]
    assert boxes[0][3] <= boxes[1][1]
