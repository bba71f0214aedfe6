# SPDX-License-Identifier: Apache-2.0
"""Brain phantoms as files: whatever the voxels' axes, the head lies where the affine says."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest

from medcf.data.phantoms import write_brain_demo
from medcf.data.phantoms.brain_files import GEOMETRIES


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return write_brain_demo(folder / "in", spacing=4.0, truth_dir=folder / "truth"), folder


def center(path) -> np.ndarray:
    image = nib.load(path)
    weights = image.get_fdata() > 0
    return image.affine[:3, :3] @ np.argwhere(weights).mean(0) + image.affine[:3, 3]


def test_geometries_differ_and_one_is_oblique(demo):
    images = [nib.load(record["path"]) for record in demo[0]]
    assert len({nib.aff2axcodes(image.affine) for image in images}) == 4
    assert any(np.abs(image.affine[:3, :3]).astype(bool).sum() == 9 for image in images)
    assert any(max(image.header.get_zooms()) > 2 * min(image.header.get_zooms()) for image in images)
    assert all(image.header["qform_code"] == image.header["sform_code"] == 1 for image in images)


def test_the_same_head_is_in_the_same_place_in_every_geometry(tmp_path):
    centers = []
    for number, geometry in enumerate(GEOMETRIES):
        (record,) = write_brain_demo(tmp_path / str(number), count=1, spacing=4.0, geometries=(geometry,))
        centers.append(center(record["path"]) - geometry.offset)
    # tilted slices cut the head elsewhere, but not by a voxel
    np.testing.assert_allclose(centers, [centers[0]] * 4, atol=2.0)


def test_truth_is_the_same_subject_in_the_other_class(demo):
    records, folder = demo
    with (folder / "truth" / "truth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == [0, 1, 0, 1]
    for record, row in zip(records, rows, strict=True):
        assert int(row["other_label"]) == 1 - int(row["label"])
        grows = float(row["other_ventricles_mm3"]) > float(row["ventricles_mm3"])
        assert grows == (row["label"] == "0")
        image, other = nib.load(record["path"]), nib.load(folder / "truth" / f"{row['case']}_other.nii.gz")
        np.testing.assert_array_equal(image.affine, other.affine)
        assert image.shape == other.shape
        labels = nib.load(folder / "truth" / f"{row['case']}_segmentation.nii.gz")
        volume = (np.asarray(labels.dataobj) == 4).sum() * np.prod(labels.header.get_zooms())
        assert volume == pytest.approx(float(row["ventricles_mm3"]), rel=0.2)
