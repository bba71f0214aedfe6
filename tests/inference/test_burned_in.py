# SPDX-License-Identifier: Apache-2.0
"""What a scanner burned into a picture is in none of the files that come out, unless the user asks for it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import medcf
from medcf.phantoms import write_demo

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffice"
QUICK = {"method": "attack", "inferer#num_steps": 2, "target": "opposite", "device": "cpu", "amp": False,
         "progress": False, "class_names": ["a", "b"]}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Files of six heads with burned-in text, and the same heads without; as png, NIfTI and DICOM in turn."""
    folders = [tmp_path_factory.mktemp(name) for name in ("marked", "clean")]
    for folder, overlays in zip(folders, (True, False), strict=True):
        write_demo(folder, count=6, overlays=overlays)
    return [tuple(folder / path.name for folder in folders) for path in sorted(folders[0].iterdir())]


def pixels(path):
    return medcf.read(path).as_tensor().numpy().mean(0)


def text_of(marked, clean):
    """Where letters stand (X, Y): in the lines at the top and at the bottom, without the calipers on the skull."""
    ink = np.abs(pixels(marked) - pixels(clean)) > 0.02
    ink[:, 12:-13] = False
    return ink


def contrast(image, clean, ink):
    """How much brighter or darker letters are than the pixels around them, beyond what the clean image is there."""
    around = ndimage.binary_dilation(ink, iterations=3) & ~ink
    return abs(float((image - clean)[ink].mean() - (image - clean)[around].mean()))


def written(folder, result):
    """Every picture that is written of a case (X, Y)."""
    case = result.save(folder)
    path = nib.load(case / "trajectory.nii.gz").get_fdata().squeeze()
    names = ("counterfactual", "difference")
    pictures = {name: nib.load(case / f"{name}.nii.gz").get_fdata().squeeze() for name in names}
    return pictures | {f"iterate {number}": path[..., number] for number in range(path.shape[-1])}


@pytest.mark.parametrize("keep", [False, True])
def test_burned_in_text_is_in_no_file_unless_it_is_kept(pairs, tmp_path, keep):
    explain = medcf.load(BUNDLE, **QUICK, keep_overlays=keep, allow_synthetic=True)
    plain = medcf.load(BUNDLE, **QUICK, allow_synthetic=True)
    for marked, clean in pairs:
        ink, truth = text_of(marked, clean), pixels(clean)
        assert ink.sum() > 100
        assert contrast(pixels(marked), truth, ink) > 0.5
        result = explain(marked)
        pictures = written(tmp_path / str(keep), result)
        difference = pictures.pop("difference")
        assert contrast(difference, np.zeros_like(truth), ink) < 0.02  # the network never sees the text
        for name, picture in pictures.items():
            left = contrast(picture, truth, ink)
            assert (left > 0.5) if keep else (left < 0.02), (marked.name, name, left)
        assert np.array_equal(difference, written(tmp_path / "plain", plain(marked))["difference"])


def test_the_panel_shows_the_cleaned_picture(pairs, tmp_path):
    marked, clean = pairs[0]
    panels = [np.asarray(Image.open(medcf.load(BUNDLE, **QUICK, **options)(path).save(tmp_path / name) / "panel.png"),
                         dtype=float)[..., :3]
              for name, path, options in (("removed", marked, {}), ("never", clean, {}),
                                          ("kept", marked, {"keep_overlays": True}))]  # fmt: skip
    corner = [panel[66:90, 10:100] for panel in panels]  # of the first tile, where the text is
    assert np.abs(corner[0] - corner[1]).mean() < 3
    assert np.abs(corner[2] - corner[1]).mean() > 20
