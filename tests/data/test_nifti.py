# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import NibabelWriter, list_data_collate
from scipy.spatial.transform import Rotation

from medcf.data import Case, find_cases, get_spacing, read
from medcf.runtime.errors import UnreadableImage
from medcf.runtime.fingerprint import hash_inputs
from medcf.transforms import ToGrid


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "ASR"])
def test_a_nifti_keeps_its_array_order_and_affine(heads, tmp_path, codes):
    shape, affine = heads.geometry(codes, (6, 8, 12), (10, 5, -7))
    values = np.random.default_rng(0).integers(0, 500, shape).astype(np.int16)

    volume = read(heads.save_nifti(tmp_path / "a.nii.gz", values, affine))

    assert np.array_equal(volume.numpy()[0], values)
    assert volume.dtype == torch.float32
    np.testing.assert_allclose(np.asarray(volume.affine), affine, atol=1e-5)
    np.testing.assert_allclose(get_spacing(volume), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-6)
    assert volume.meta["value_range"] == (float(values.min()), float(values.max()))
    assert volume.meta["source_format"] == "nifti"


def test_the_scaling_of_the_header_is_applied_and_nan_becomes_zero(tmp_path, caplog):
    values = np.full((4, 5, 6), 7.0, np.float32)
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2, 2, 1])), tmp_path / "nan.nii")
    scaled = nib.Nifti1Image(np.full((4, 5, 6), 10, np.int16), np.eye(4))
    scaled.header.set_slope_inter(0.5, 3.0)
    nib.save(scaled, tmp_path / "scaled.nii")

    assert read(tmp_path / "nan.nii")[0, 0, 0, 0] == 0
    assert "not finite" in caplog.text
    stored = nib.load(tmp_path / "scaled.nii").get_fdata()
    np.testing.assert_allclose(read(tmp_path / "scaled.nii").numpy()[0], stored)


@pytest.mark.parametrize("shape", [(4, 5, 6), (8, 9, 1)])
def test_numbers_that_are_not_finite_are_told_of_and_an_image_of_nothing_else_is_refused(tmp_path, caplog, shape):
    values = np.full(shape, 0.5, np.float32)
    values[:2, 0, 0] = np.nan, np.inf
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "some.nii")
    nib.save(nib.Nifti1Image(np.full(shape, np.nan, np.float32), np.eye(4)), tmp_path / "all.nii")

    image = read(tmp_path / "some.nii").numpy().reshape(shape)
    assert not image[:2, 0, 0].any()
    assert (image[2:] == 0.5).all()
    assert "some.nii: 2 voxels are not finite" in caplog.text
    with pytest.raises(UnreadableImage, match=r"all\.nii: holds no finite number"):
        read(tmp_path / "all.nii")


def test_axes_of_length_one_behind_the_third_are_dropped(tmp_path):
    nib.save(nib.Nifti1Image(np.arange(120, dtype=np.float32).reshape(4, 5, 6, 1), np.eye(4)), tmp_path / "v.nii")

    assert read(tmp_path / "v.nii").shape == (1, 4, 5, 6)


@pytest.mark.parametrize("edge", [400.0, 0.01])
def test_a_volume_longer_than_a_body_or_smaller_than_a_grain_is_refused(tmp_path, edge):
    nib.save(nib.Nifti1Image(np.ones((10, 12, 14), np.float32), np.diag([edge, edge, edge, 1])), tmp_path / "v.nii")

    with pytest.raises(UnreadableImage, match=r"v\.nii: is .* mm long.*voxel size, or its unit"):
        read(tmp_path / "v.nii")


def test_micrometers_become_millimeters(tmp_path):
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.diag([500.0, 500, 500, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "v.nii")

    assert get_spacing(read(tmp_path / "v.nii")) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("shape", "reason", "remedy"),
    [
        ((4, 5, 6, 3), "is a series of images \\(4 x 5 x 6 x 3\\)", "one of its images"),
        ((8, 9, 1, 5), "is a series of images \\(8 x 9 x 1 x 5\\)", "one of its images"),
        ((8, 1), "no image", "again"),
    ],
)
def test_other_dimensions_are_refused_with_a_remedy(tmp_path, shape, reason, remedy):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "x.nii")

    with pytest.raises(UnreadableImage, match=reason) as caught:
        read(tmp_path / "x.nii")
    assert remedy in caught.value.remedy
    assert caught.value.path.endswith("x.nii")
    for spatial_dims in (2, 3):
        assert [failure.reason for failure in find_cases(tmp_path, spatial_dims=spatial_dims)[1]] == [
            caught.value.reason
        ]


@pytest.mark.parametrize(
    ("shape", "spatial_dims", "reason", "remedy"),
    [
        ((4, 5), 3, "is not a volume", "Give a volume"),
        ((4, 5, 1), 3, "is not a volume", "Give a volume"),
        ((8, 9, 3), 2, "is a volume", "Extract the plane"),
    ],
)
def test_a_search_for_the_other_dimension_refuses_it_with_a_remedy(tmp_path, shape, spatial_dims, reason, remedy):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "x.nii")

    cases, (failure,) = find_cases(tmp_path, spatial_dims=spatial_dims)

    assert cases == []
    assert reason in failure.reason
    assert remedy in failure.remedy
    assert failure.file.endswith("x.nii")


@pytest.mark.parametrize("name", ["pair.hdr", "pair.img"])
def test_a_pair_of_header_and_pixels_is_one_volume(tmp_path, name):
    values = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    nib.save(nib.Nifti1Pair(values, np.diag([2, 2, 3, 1])), tmp_path / "pair.img")
    (tmp_path / "list.csv").write_text(f"file\n{name}\n")

    assert np.array_equal(read(tmp_path / name).numpy()[0], values)
    for arguments in ((tmp_path,), (None, tmp_path / "list.csv")):
        cases, failures = find_cases(*arguments, spatial_dims=3)
        assert failures == []
        assert cases == [Case("pair", (tmp_path / "pair.hdr",))]
    before = hash_inputs(cases)
    nib.save(nib.Nifti1Pair(values + 1, np.diag([2, 2, 3, 1])), tmp_path / "pair.img")
    assert hash_inputs(cases) != before


def test_formats_that_are_nearly_nifti_are_refused_with_the_way_out(tmp_path):
    values = np.ones((4, 5, 6), np.float32)
    nib.save(nib.MGHImage(values, np.eye(4)), tmp_path / "brain.mgz")
    nib.AnalyzeImage(values, np.eye(4)).to_filename(tmp_path / "old.img")

    failures = find_cases(tmp_path, spatial_dims=3)[1]

    told = {Path(failure.file).name: f"{failure.reason}. {failure.remedy}" for failure in failures}
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
        ("text.nii", "not in the format of its name"),
        ("color.nii", "colors"),
        ("missing.nii", "does not exist"),
        ("empty", "no DICOM slices"),
    ]:
        with pytest.raises(UnreadableImage, match=reason):
            read(tmp_path / name)


def test_a_header_that_leaves_doubt_about_sides_is_reported(tmp_path, caplog):
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.float32), None), tmp_path / "none.nii")
    read(tmp_path / "none.nii")
    assert "left and right are a guess" in caplog.text

    image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4))
    image.set_sform(np.diag([-1.0, 1, 1, 1]), 1)
    image.set_qform(np.eye(4), 1)
    nib.save(image, tmp_path / "two.nii")
    volume = read(tmp_path / "two.nii")
    assert "sform and qform" in caplog.text
    assert float(volume.affine[0, 0]) == -1


def test_meta_data_can_be_collated(heads, tmp_path):
    shape, affine = heads.geometry(voxel=(12, 12, 12))
    path = heads.save_nifti(tmp_path / "a.nii", heads.head(shape, affine), affine)

    batch = list_data_collate([{"image": read(path)}, {"image": read(path)}])

    assert batch["image"].shape == (2, 1, *shape)


def test_a_mask_must_lie_on_the_voxels_of_its_volume(heads, tmp_path, caplog):
    shape, affine = heads.geometry(voxel=(12, 12, 12))
    values = heads.head(shape, affine)
    heads.save_nifti(tmp_path / "a.nii", values, affine)
    labels = (values > 0).astype(np.uint8) + (values > 500)
    good = heads.save_nifti(tmp_path / "mask.nii", labels, affine)
    moved = affine.copy()
    moved[0, 3] += 3
    shifted = heads.save_nifti(tmp_path / "shifted.nii", labels, moved)
    empty = heads.save_nifti(tmp_path / "empty.nii", labels * 0, affine)

    def read_with(mask):
        return read(Case("a", (tmp_path / "a.nii",), mask=mask))

    assert np.array_equal(read_with(good).meta["mask"][0], values > 0)
    assert "labels" in caplog.text
    with pytest.raises(UnreadableImage, match=r"shifted\.nii: is a mask whose voxels do not match"):
        read_with(shifted)
    with pytest.raises(UnreadableImage, match="empty"):
        read_with(empty)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 17), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(17, 12), (17, 12, 1), (17, 12, 1, 1), (17, 1, 12)])
def test_the_axes_of_a_picture_are_those_of_the_file(
    tmp_path: Path, picture: np.ndarray, shape: tuple[int, ...]
) -> None:
    affine = np.diag([-0.6, -0.4, 1, 1])
    if shape == (17, 1, 12):  # a coronal plane: x and z
        affine = np.diag([-0.6, 1, -0.4, 1])
    nib.save(nib.Nifti1Image(picture.T.reshape(shape), affine), tmp_path / "a.nii.gz")
    image = read(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.numpy()[0], picture.T / 255, atol=1e-6)
    assert get_spacing(image) == pytest.approx((0.6, 0.4))


@pytest.mark.parametrize("flip", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("transpose", [False, True])
def test_nifti_stored_in_any_orientation_shows_the_same(
    tmp_path: Path, picture: np.ndarray, flip: tuple[int, ...], transpose: bool
) -> None:
    stored, affine = picture.T, np.diag([-0.6, -0.4, 1.0, 1.0])
    affine[:3, 3] = 5, 7, 9
    for axis in flip:
        affine[:3, 3] += affine[:3, axis] * (stored.shape[axis] - 1)
        affine[:3, axis] *= -1
        stored = np.flip(stored, axis)
    if transpose:
        stored, affine = stored.T, affine[:, [1, 0, 2, 3]]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored), affine), tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    np.testing.assert_allclose(image.numpy()[0], stored / 255, atol=1e-6)
    # row 3, column 4 of the picture lies where the file has it, wherever it is stored
    column, row = (n - 1 - at if axis in flip else at for axis, (at, n) in enumerate(((4, 17), (3, 12))))
    index = [row, column, 0, 1] if transpose else [column, row, 0, 1]
    np.testing.assert_allclose(image[0][tuple(index[:2])], picture[3, 4] / 255, atol=1e-6)
    np.testing.assert_allclose(image.affine.numpy() @ index, [5 - 0.6 * 4, 7 - 0.4 * 3, 9, 1], atol=1e-5)
    # a grid of its own pixels shows it upright
    grid = ToGrid(size=(12, 17), spacing=(0.4, 0.6))(image)
    np.testing.assert_allclose((grid.numpy()[0] + 1) / 2, picture / 255, atol=1e-5)
    np.testing.assert_allclose(grid.affine.numpy() @ [3, 4, 0, 1], [5 - 0.6 * 4, 7 - 0.4 * 3, 9, 1], atol=1e-5)


def test_nifti_written_by_monai_from_an_image_reads_back(tmp_path: Path, picture: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(picture.T, np.diag([-0.6, -0.4, 1, 1])), tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    writer = NibabelWriter(output_dtype=np.float32)
    writer.set_data_array(image[..., None], channel_dim=0, squeeze_end_dims=False)
    writer.set_metadata({"affine": image.affine, "original_affine": image.affine}, resample=False)
    writer.write(tmp_path / "b.nii")
    again = read(tmp_path / "b.nii")
    np.testing.assert_allclose(again.numpy(), image.numpy(), atol=1e-6)
    np.testing.assert_allclose(again.affine.numpy(), image.affine.numpy(), atol=1e-6)


def test_nifti_with_the_identity_has_no_geometry(tmp_path: Path, picture: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(picture.T, np.eye(4)), tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    assert get_spacing(image) is None
    np.testing.assert_allclose(image.numpy()[0], picture.T / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "low", "high"), [((0.0, 0.5, 1.0), 0, 1), ((0.0, 100.0, 255.0), 0, 255), ((-50.0, 0.0, 350.0), -50, 350)]
)
def test_nifti_intensities(tmp_path: Path, values: tuple[float, ...], low: float, high: float) -> None:
    stored = np.resize(np.array(values, dtype=np.float32), (6, 4))
    nib.save(nib.Nifti1Image(stored, np.diag([-1, -1, 1, 1])), tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    np.testing.assert_allclose(image.numpy()[0], (stored - low) / (high - low), atol=1e-6)
    assert tuple(image.meta["value_range"]) == (low, high)


def test_truncated_nifti_is_refused(tmp_path: Path, picture: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(picture, np.eye(4)), tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(data[:-40])
    with pytest.raises(UnreadableImage, match=r"a\.nii: is damaged"):
        read(tmp_path / "a.nii")


def with_forms(path, sform, qform, quatern=None):
    """A volume whose header holds these codes, and a quaternion as single precision may leave it."""
    image = nib.Nifti1Image(np.random.default_rng(0).random((7, 6, 5), np.float32), np.diag([2.0, 2.0, 3.0, 1.0]))
    image.set_sform(None if sform is None else sform, code=0 if sform is None else 1)
    image.set_qform(np.diag([-2.0, -2.0, 3.0, 1.0]), code=int(qform))
    nib.save(image, path)
    if quatern is not None:
        raw = bytearray(path.read_bytes())
        struct.pack_into("<3f", raw, 256, *quatern)
        if sform is not None and not np.any(sform):
            struct.pack_into("<12f", raw, 280, *[0.0] * 12)
        path.write_bytes(bytes(raw))
    return path


BEYOND_ONE = (0.6000004, 0.64000034, 0.48000026)  # b, c and d of a rotation, whose a would be the root of -1e-6


def test_a_quaternion_rounded_beyond_one_is_read_with_w_of_zero(tmp_path):
    path = with_forms(tmp_path / "v.nii", None, True, BEYOND_ONE)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(path)
    b, c, d = np.array(BEYOND_ONE) / np.linalg.norm(BEYOND_ONE)
    rotation = Rotation.from_quat([b, c, d, 0]).as_matrix()
    np.testing.assert_allclose(read(path).affine[:3, :3], rotation * [2, 2, 3], atol=1e-4)


def test_a_valid_sform_is_used_beside_such_a_quaternion(tmp_path):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    np.testing.assert_allclose(read(with_forms(tmp_path / "v.nii", affine, True, BEYOND_ONE)).affine, affine)


def test_a_valid_qform_is_used_beside_an_sform_of_zeros(tmp_path):
    path = with_forms(tmp_path / "v.nii", np.zeros((4, 4)), True, (0.0, 0.0, 1.0))
    np.testing.assert_allclose(read(path).affine, np.diag([-2.0, -2.0, 3.0, 1.0]), atol=1e-6)


@pytest.mark.parametrize("padding", [-2000, -3024, -32768])
def test_the_padding_of_a_ct_counts_as_air(tmp_path, padding):
    values = np.random.default_rng(0).integers(-1020, 1200, (12, 12, 6)).astype(np.int16)
    values[:3] = padding
    nib.save(nib.Nifti1Image(values, np.eye(4) * [2, 2, 3, 1]), tmp_path / "ct.nii")
    seen = read(tmp_path / "ct.nii").numpy()[0]
    assert (seen[:3] == values[3:].min()).all()
    np.testing.assert_array_equal(seen[3:], values[3:])


def test_a_low_value_that_pads_nothing_stays(tmp_path):
    values = np.random.default_rng(0).integers(-1020, 1200, (12, 12, 20)).astype(np.int16)
    values[5, 5, 5] = -3024  # one voxel is no field of view
    nib.save(nib.Nifti1Image(values, np.eye(4) * [2, 2, 3, 1]), tmp_path / "ct.nii")
    assert read(tmp_path / "ct.nii").min() == -3024


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1.0), ("meter", 1e-3), ("micron", 1e3)])
def test_a_picture_has_its_size_whatever_its_unit(tmp_path, unit, factor):
    image = nib.Nifti1Image(np.random.default_rng(0).random((40, 30, 1)), np.diag([0.875 * factor, 0.5 * factor, 1, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "p.nii")
    (case,), _ = find_cases(tmp_path)
    np.testing.assert_allclose(get_spacing(read(case)), (0.875, 0.5), rtol=1e-6)


def test_a_picture_smaller_than_a_grain_is_refused_from_its_header(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((40, 30, 1)), np.diag([1e-9, 1e-9, 1, 1])), tmp_path / "p.nii")
    cases, (failure,) = find_cases(tmp_path)
    assert cases == []
    assert "pixels or voxels of 1e-09 mm according to its header" in failure.reason
