# SPDX-License-Identifier: Apache-2.0
"""Images are written as their input was stored: every header field that places them, whatever its oddities."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medcf.data.image import picture_affine
from medcf.inference.case_result import CaseResult
from medcf.inference.writers import NiftiWriter, create_writers

SHAPE = (6, 5, 4)


def make_result(path: Path, source_format: str = "nifti", **changes) -> CaseResult:
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32) * 500
    difference = np.zeros(SHAPE, np.float32)
    difference[3, 2, 1], difference[0, 0, 0] = -0.25, 0.5
    affine = nib.load(path).affine if source_format == "nifti" else np.diag([-2.0, -3.0, 4.0, 1.0])
    mask = np.zeros(SHAPE, bool)
    mask[1:] = True
    counterfactual = values + 500 * difference
    fields = {"window": (0.0, 500.0), "mask": mask, "spacing": (2.0, 3.0, 4.0)}
    return CaseResult(
        "a", path, values, counterfactual, difference, np.stack([values, counterfactual]), affine, source_format,
        **(fields | changes),
    )  # fmt: skip


def write_source(path: Path, shape=SHAPE, qform=1, sform=2, kind=nib.Nifti1Image, unit="mm") -> Path:
    first, second = np.diag([-2.0, 3.0, 4.0, 1.0]), np.diag([-2.0, 3.0, 4.0, 1.0])
    second[:3, 3] = (7, 8, 9)
    second[:3, :3] = nib.eulerangles.euler2mat(0.2, -0.1, 0.3) @ second[:3, :3]
    image = kind(np.zeros(shape, np.int16), None)
    image.set_qform(first, code=qform)
    image.set_sform(second, code=sform)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    "oddity",
    [{}, {"sform": 0}, {"qform": 0}, {"qform": 0, "sform": 0}, {"kind": nib.Nifti2Image}, {"unit": "micron"}],
    ids=["unlike forms", "no sform", "no qform", "neither", "nifti2", "micrometers"],
)
def test_the_header_places_the_output_as_the_input(tmp_path, oddity):
    source = nib.load(write_source(tmp_path / "in.nii.gz", **oddity))
    NiftiWriter()(make_result(tmp_path / "in.nii.gz"), tmp_path)
    for name in ("counterfactual", "difference", "saliency", "mask"):
        image = nib.load(tmp_path / f"{name}.nii.gz")
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-6)
        assert image.header.get_xyzt_units()[0] == source.header.get_xyzt_units()[0]
        assert image.shape == source.shape
        assert image.get_data_dtype() == np.float32
        assert b"SYNTHETIC" in bytes(image.header["descrip"])
        for form in ("qform", "sform"):
            (ours, code), (theirs, expected) = (
                getattr(each.header, f"get_{form}")(coded=True) for each in (image, source)
            )
            assert code == expected
            if expected:
                np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_values_are_the_results(tmp_path):
    write_source(tmp_path / "in.nii.gz")
    result = make_result(tmp_path / "in.nii.gz")
    NiftiWriter()(result, tmp_path)
    images = {path.name.split(".")[0]: nib.load(path).get_fdata() for path in tmp_path.glob("*.nii.gz")}
    np.testing.assert_array_equal(images["counterfactual"], result.counterfactual)
    np.testing.assert_array_equal(images["difference"], result.difference)
    np.testing.assert_array_equal(images["original"], result.original)
    assert images["saliency"][3, 2, 1] == 0.25
    assert images["saliency"][0, 0, 0] == 0  # outside of the brain
    assert "trajectory" not in images


def test_the_path_is_written_on_request_along_the_fourth_axis(tmp_path):
    write_source(tmp_path / "in.nii.gz")
    result = make_result(tmp_path / "in.nii.gz")
    NiftiWriter(trajectory=True)(result, tmp_path)
    path = nib.load(tmp_path / "trajectory.nii.gz")
    assert path.shape == (*SHAPE, 2)
    np.testing.assert_array_equal(path.get_fdata()[..., 1], result.counterfactual)


def test_axes_of_length_one_come_back(tmp_path):
    write_source(tmp_path / "in.nii.gz", shape=(*SHAPE, 1))
    NiftiWriter()(make_result(tmp_path / "in.nii.gz"), tmp_path)
    assert nib.load(tmp_path / "difference.nii.gz").shape == (*SHAPE, 1)


def test_a_series_lies_in_the_scanners_space_and_without_a_mask_there_is_no_saliency(tmp_path):
    NiftiWriter()(make_result(tmp_path / "IMG0001.dcm", "dicom", mask=None), tmp_path)
    image = nib.load(tmp_path / "counterfactual.nii.gz")
    np.testing.assert_array_equal(image.affine, np.diag([-2.0, -3.0, 4.0, 1.0]))
    assert image.header["qform_code"] == image.header["sform_code"] == 1
    assert not (tmp_path / "saliency.nii.gz").exists()


@pytest.mark.parametrize("spacing", [(0.5, 0.25), None])
def test_a_picture_lies_where_its_input_lies_columns_first(tmp_path, spacing):
    plane = np.random.default_rng(0).random((6, 5)).astype(np.float32)
    affine = picture_affine(spacing)
    result = CaseResult("a", tmp_path / "a.png", plane, plane, plane, np.stack([plane] * 3), affine, "raster", spacing)
    NiftiWriter()(result, tmp_path)
    image = nib.load(tmp_path / "counterfactual.nii.gz")
    np.testing.assert_array_equal(image.get_fdata()[:, :, 0], plane)
    np.testing.assert_allclose(image.affine, affine)
    assert image.header.get_xyzt_units()[0] == ("mm" if spacing else "unknown")
    assert nib.load(tmp_path / "trajectory.nii.gz").shape == (6, 5, 1, 3)
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert names == {"original", "counterfactual", "difference", "trajectory"}


def test_writers_are_made_by_name_and_mistakes_are_named():
    nifti, panel = create_writers(nifti={"trajectory": True}, panel={"class_names": ["a", "b"]})
    assert isinstance(nifti, NiftiWriter)
    assert panel.options["class_names"] == ("a", "b")
    assert create_writers(nifti={}, panel=None)[0].trajectory is None
    assert len(create_writers(nifti={}, panel=None)) == 1
    with pytest.raises(ValueError, match="nifti"):
        create_writers(nifty={})
    with pytest.raises(ValueError, match=r"'panel', one of the registered writers, rejects its arguments.*names"):
        create_writers(panel={"names": []})
