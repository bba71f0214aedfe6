# SPDX-License-Identifier: Apache-2.0
"""Brain phantoms as files: whatever the voxels' axes, the head lies where the affine says."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest

from medcf.phantoms import PairedBrainDataset, write_brain_demo
from medcf.phantoms.brain.files import GEOMETRIES


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


def run(*arguments: str) -> int:
    from medcf.phantoms.__main__ import main

    return main(["brain_mri", *arguments])


def test_the_command_writes_a_set_that_is_the_data_set_itself(tmp_path, capsys):
    assert run("--out", str(tmp_path), "--count", "2", "--truth") == 0
    assert "2 images" in capsys.readouterr().out
    with (tmp_path / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    pairs = PairedBrainDataset("demo", 2, progress=False)
    for row, item in zip(rows, pairs, strict=True):
        assert (row["case"], int(row["label"]), row["split"]) == (item["case"], int(item["label"]), "demo")
        assert float(row["age"]) == pytest.approx(float(item["age"]), abs=0.01)
        for key, suffix in {"file": "", "other": "_true"}.items():
            image = nib.load(tmp_path / row[key])
            assert image.shape == (80, 96, 80)
            blocks = (image.get_fdata() / 1000).reshape(40, 2, 48, 2, 40, 2)
            blocks = np.where(blocks > 0, blocks, np.nan).transpose(0, 2, 4, 1, 3, 5).reshape(40, 48, 40, 8)
            inside = item[f"segmentation{suffix}"][0].numpy() > 0
            expected = (item[f"image{suffix}"][0].numpy()[inside] + 1) / 2
            np.testing.assert_allclose(np.nanmean(blocks[inside], axis=1), expected, atol=0.005)
        labels = nib.load(tmp_path / row["segmentation"])
        np.testing.assert_array_equal(labels.affine, nib.load(tmp_path / row["file"]).affine)
        volume = (np.asarray(labels.dataobj) == 4).sum() * 8
        assert volume == pytest.approx(float(row["ventricles_mm3"]), rel=0.1)
        assert int(row["other_label"]) == 1 - int(row["label"])


def test_the_command_degrades_images_alone(tmp_path):
    for name, options in {"clean": (), "poor": ("--bias", "0.3", "--noise", "0.03")}.items():
        assert run("--out", str(tmp_path / name), "--count", "1", "--label", "1", *options) == 0
    assert (tmp_path / "clean/labels.csv").read_text() == (tmp_path / "poor/labels.csv").read_text()
    (path,) = (tmp_path / "clean/images").iterdir()
    clean, poor = (nib.load(tmp_path / name / "images" / path.name).get_fdata() for name in ("clean", "poor"))
    assert np.abs(clean - poor)[clean > 0].mean() > 30
    assert (poor[clean == 0] == 0).all()
    labels = [nib.load(tmp_path / name / "segmentations" / path.name).get_fdata() for name in ("clean", "poor")]
    np.testing.assert_array_equal(*labels)


@pytest.mark.parametrize("option", [("--format", "png"), ("--overlays",)])
def test_what_brains_cannot_be_written_as_is_named(tmp_path, option, capsys):
    with pytest.raises(SystemExit):
        run("--out", str(tmp_path), *option)
    assert "NIfTI volumes" in capsys.readouterr().err
