# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import list_data_collate

from medcf.data import UnreadableImage
from medcf.data.volumes import find_volumes, read_mask, read_volume
from medcf.runtime.fingerprint import hash_inputs


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "ASR"])
def test_a_nifti_keeps_its_array_order_and_affine(heads, tmp_path, codes):
    shape, affine = heads.geometry(codes, (6, 8, 12), (10, 5, -7))
    values = np.random.default_rng(0).integers(0, 500, shape).astype(np.int16)

    volume = read_volume(heads.save_nifti(tmp_path / "a.nii.gz", values, affine))

    assert np.array_equal(volume.numpy()[0], values)
    assert volume.dtype == torch.float32
    np.testing.assert_allclose(np.asarray(volume.affine), affine, atol=1e-5)
    np.testing.assert_allclose(volume.meta["spacing_mm"], np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-6)
    assert volume.meta["value_range"] == (float(values.min()), float(values.max()))
    assert volume.meta["source_format"] == "nifti"


def test_the_scaling_of_the_header_is_applied_and_nan_becomes_zero(tmp_path, caplog):
    values = np.full((4, 5, 6), 7.0, np.float32)
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2, 2, 1])), tmp_path / "nan.nii")
    scaled = nib.Nifti1Image(np.full((4, 5, 6), 10, np.int16), np.eye(4))
    scaled.header.set_slope_inter(0.5, 3.0)
    nib.save(scaled, tmp_path / "scaled.nii")

    assert read_volume(tmp_path / "nan.nii")[0, 0, 0, 0] == 0
    assert "not finite" in caplog.text
    stored = nib.load(tmp_path / "scaled.nii").get_fdata()
    np.testing.assert_allclose(read_volume(tmp_path / "scaled.nii").numpy()[0], stored)


def test_axes_of_length_one_behind_the_third_are_dropped(tmp_path):
    nib.save(nib.Nifti1Image(np.arange(120, dtype=np.float32).reshape(4, 5, 6, 1), np.eye(4)), tmp_path / "v.nii")

    assert read_volume(tmp_path / "v.nii").shape == (1, 4, 5, 6)


@pytest.mark.parametrize("edge", [400.0, 0.01])
def test_a_volume_longer_than_a_body_or_smaller_than_a_grain_is_refused(tmp_path, edge):
    nib.save(nib.Nifti1Image(np.ones((10, 12, 14), np.float32), np.diag([edge, edge, edge, 1])), tmp_path / "v.nii")

    with pytest.raises(UnreadableImage, match=r"v\.nii: is .* mm long.*voxel size or its unit"):
        read_volume(tmp_path / "v.nii")


def test_micrometers_become_millimeters(tmp_path):
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.diag([500.0, 500, 500, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "v.nii")

    assert read_volume(tmp_path / "v.nii").meta["spacing_mm"] == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("shape", "reason", "remedy"),
    [
        ((4, 5, 6, 3), "series of volumes", "one of its volumes"),
        ((4, 5), "no volume", "3D"),
        ((4, 5, 1), "no volume", "3D"),
    ],
)
def test_other_dimensions_are_refused_with_a_remedy(tmp_path, shape, reason, remedy):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "x.nii")

    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_volume(tmp_path / "x.nii")
    assert remedy in caught.value.remedy
    assert caught.value.path.endswith("x.nii")


@pytest.mark.parametrize("name", ["pair.hdr", "pair.img"])
def test_a_pair_of_header_and_pixels_is_one_volume(tmp_path, name):
    values = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    nib.save(nib.Nifti1Pair(values, np.diag([2, 2, 3, 1])), tmp_path / "pair.img")
    (tmp_path / "list.csv").write_text(f"file\n{name}\n")

    assert np.array_equal(read_volume(tmp_path / name).numpy()[0], values)
    for arguments in ((tmp_path,), (None, tmp_path / "list.csv")):
        cases, failures = find_volumes(*arguments)
        assert failures == []
        assert [(case["case"], case["image"]) for case in cases] == [("pair", str(tmp_path / "pair.hdr"))]
    before = hash_inputs(cases)
    nib.save(nib.Nifti1Pair(values + 1, np.diag([2, 2, 3, 1])), tmp_path / "pair.img")
    assert hash_inputs(cases) != before


def test_formats_that_are_nearly_nifti_are_refused_with_the_way_out(tmp_path):
    values = np.ones((4, 5, 6), np.float32)
    nib.save(nib.MGHImage(values, np.eye(4)), tmp_path / "brain.mgz")
    nib.AnalyzeImage(values, np.eye(4)).to_filename(tmp_path / "old.img")

    failures = find_volumes(tmp_path)[1]

    told = {Path(failure["file"]).name: failure["reason"] + ". " + failure["remedy"] for failure in failures}
    assert set(told) == {"brain.mgz", "old.hdr", "old.img"}
    assert "FreeSurfer" in told["brain.mgz"]
    assert "mri_convert brain.mgz brain.nii.gz" in told["brain.mgz"]
    assert "Analyze" in told["old.hdr"]


def test_damaged_and_foreign_files_are_refused(heads, tmp_path):
    values = np.random.default_rng(0).integers(0, 500, (20, 20, 20)).astype(np.int16)
    path = heads.save_nifti(tmp_path / "cut.nii", values, np.eye(4))
    path.write_bytes(path.read_bytes()[:4000])
    (tmp_path / "text.nii").write_text("no image at all")
    color = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(color, np.eye(4)), tmp_path / "color.nii")
    (tmp_path / "empty").mkdir()

    for name, reason in [
        ("cut.nii", "damaged"),
        ("text.nii", "no NIfTI or DICOM"),
        ("color.nii", "colors"),
        ("missing.nii", "does not exist"),
        ("empty", "no DICOM slices"),
    ]:
        with pytest.raises(UnreadableImage, match=reason):
            read_volume(tmp_path / name)


def test_a_header_that_leaves_doubt_about_sides_is_reported(tmp_path, caplog):
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.float32), None), tmp_path / "none.nii")
    read_volume(tmp_path / "none.nii")
    assert "left and right are a guess" in caplog.text

    image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4))
    image.set_sform(np.diag([-1.0, 1, 1, 1]), 1)
    image.set_qform(np.eye(4), 1)
    nib.save(image, tmp_path / "two.nii")
    volume = read_volume(tmp_path / "two.nii")
    assert "sform and qform" in caplog.text
    assert float(volume.affine[0, 0]) == -1


def test_meta_data_can_be_collated(heads, tmp_path):
    shape, affine = heads.geometry(voxel=(12, 12, 12))
    path = heads.save_nifti(tmp_path / "a.nii", heads.head(shape, affine), affine)

    batch = list_data_collate([{"image": read_volume(path)}, {"image": read_volume(path)}])

    assert batch["image"].shape == (2, 1, *shape)
    json.dumps({k: v for k, v in read_volume(path).meta.items() if not isinstance(v, torch.Tensor)})


def test_a_mask_must_lie_on_the_voxels_of_its_volume(heads, tmp_path, caplog):
    shape, affine = heads.geometry(voxel=(12, 12, 12))
    values = heads.head(shape, affine)
    image = read_volume(heads.save_nifti(tmp_path / "a.nii", values, affine))
    labels = (values > 0).astype(np.uint8) + (values > 500)
    good = heads.save_nifti(tmp_path / "mask.nii", labels, affine)
    moved = affine.copy()
    moved[0, 3] += 3
    shifted = heads.save_nifti(tmp_path / "shifted.nii", labels, moved)
    empty = heads.save_nifti(tmp_path / "empty.nii", labels * 0, affine)

    assert np.array_equal(read_mask(good, image).numpy()[0], values > 0)
    assert "labels" in caplog.text
    with pytest.raises(UnreadableImage, match="other voxels"):
        read_mask(shifted, image)
    with pytest.raises(UnreadableImage, match="empty"):
        read_mask(empty, image)
