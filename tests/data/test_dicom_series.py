# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import warnings

import numpy as np
import pydicom
import pytest

from medcf.data import find_cases, get_spacing, read
from medcf.runtime.errors import UnreadableImage

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def along_normal(values, affine):
    """The reader sorts along rows x columns: a left-handed volume (in LPS) comes out with its slices reversed."""
    if np.linalg.det(affine[:3, :3]) > 0:
        return values, affine
    turned = affine.copy()
    turned[:3, 3] += turned[:3, 2] * (values.shape[2] - 1)
    turned[:3, 2] *= -1
    return values[:, :, ::-1], turned


def test_an_oblique_series_is_placed_by_its_positions(heads, oblique, tmp_path):
    values, affine = oblique
    volume = read(heads.save_series(tmp_path / "s", values, affine))

    assert np.array_equal(volume.numpy()[0], values)
    np.testing.assert_allclose(np.asarray(volume.affine), affine, atol=1e-4)
    assert get_spacing(volume) == pytest.approx((1.5, 2.0, 3.5), abs=1e-5)  # SliceThickness says 1
    assert volume.meta["modality"] == "MR"
    assert volume.meta["source_format"] == "dicom"


@pytest.mark.parametrize("codes", ["LPS", "RAS", "ASR", "PIR", "LSA"])
def test_series_agree_with_simpleitk_voxel_for_voxel(heads, tmp_path, codes):
    sitk = pytest.importorskip("SimpleITK")
    shape, affine = heads.geometry(codes, (8, 12, 16), (12, -9, 21))
    values = np.random.default_rng(1).integers(-100, 900, shape).astype(np.int16)
    folder = heads.save_series(tmp_path / "s", values, affine, modality="CT")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    other = reader.Execute()
    placed = np.eye(4)
    placed[:3, :3] = np.array(other.GetDirection()).reshape(3, 3) * other.GetSpacing()
    placed[:3, 3] = other.GetOrigin()

    volume = read(folder)

    expected, expected_affine = along_normal(values * 2.0 - 1024, affine)
    assert np.array_equal(volume.numpy()[0], expected)
    np.testing.assert_allclose(np.asarray(volume.affine), expected_affine, atol=1e-4)
    assert np.array_equal(volume.numpy()[0], sitk.GetArrayFromImage(other).T)
    np.testing.assert_allclose(np.asarray(volume.affine), FLIP @ placed, atol=1e-4)


def test_series_agree_with_highdicom(heads, oblique, tmp_path):
    highdicom = pytest.importorskip("highdicom")
    folder = heads.save_series(tmp_path / "s", *oblique)
    other = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in folder.iterdir()])
    volume = read(folder)

    theirs = {
        tuple(np.round((FLIP @ other.affine @ [*index, 1])[:3], 2)): other.array[index]
        for index in np.ndindex(other.array.shape)
    }
    ours = {
        tuple(np.round((np.asarray(volume.affine) @ [*index, 1])[:3], 2)): float(volume[0][index])
        for index in np.ndindex(volume.shape[1:])
    }

    def nearest(places):
        return {tuple(np.round(np.array(place) * 10).astype(int)): value for place, value in places.items()}

    assert nearest(theirs) == nearest(ours)


def test_a_tilted_gantry_shears_the_affine(heads, tmp_path):
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    affine[1, 2] = 5.0 * np.tan(np.radians(18))  # every slice lies further to the front
    values = np.random.default_rng(2).integers(0, 900, (6, 7, 5)).astype(np.int16)
    folder = heads.save_series(tmp_path / "s", values, affine, modality="CT")

    volume = read(folder)

    np.testing.assert_allclose(np.asarray(volume.affine), affine, atol=1e-4)
    for path in folder.iterdir():  # the first voxel of every slice lies where its header says
        ds = pydicom.dcmread(path)
        k = round((float(ds.ImagePositionPatient[2]) - affine[2, 3]) / 5)
        where = np.asarray(volume.affine) @ [0, 0, k, 1]
        np.testing.assert_allclose((FLIP @ where)[:3], [float(v) for v in ds.ImagePositionPatient], atol=1e-4)
        assert np.array_equal(volume.numpy()[0, :, :, k], ds.pixel_array.T * 2.0 - 1024)


def test_an_enhanced_object_is_the_same_volume(heads, oblique, tmp_path):
    values, affine = oblique
    volume = read(heads.save_enhanced(tmp_path / "one.dcm", values, affine))

    assert np.array_equal(volume.numpy()[0], values * 3.0)
    np.testing.assert_allclose(np.asarray(volume.affine), affine, atol=1e-4)


def test_a_list_of_files_and_a_folder_with_side_cars_are_the_same(heads, oblique, tmp_path):
    folder = heads.save_series(tmp_path / "s", *oblique)
    files = sorted(folder.glob("*.dcm"), reverse=True)
    (folder / "notes.txt").write_text("x")
    report = heads.make_slice(*oblique, 0, series="9")
    report.Modality = "SR"
    del report.PixelData
    report.save_as(folder / "report.dcm", enforce_file_format=True)

    assert np.array_equal(read(folder).numpy(), read(files).numpy())


def refused(heads, oblique, folder, change, match):
    heads.save_series(folder, *oblique, change=change)
    with pytest.raises(UnreadableImage, match=match) as caught:
        read(folder)
    assert caught.value.remedy
    assert "Doe" not in str(caught.value)
    assert "secret" not in str(caught.value)
    return caught.value


def test_a_missing_slice_is_named(heads, oblique, tmp_path):
    error = refused(heads, oblique, tmp_path, lambda k, ds: None if k == 2 else ds, "about 1 slices are missing")
    assert "_001.dcm and slice" in error.reason
    assert "_003.dcm" in error.reason


def moved(ds, millimeters):
    normal = np.cross(
        [float(v) for v in ds.ImageOrientationPatient[:3]], [float(v) for v in ds.ImageOrientationPatient[3:]]
    )
    place = np.array([float(v) for v in ds.ImagePositionPatient]) + millimeters * normal
    ds.ImagePositionPatient = [f"{v:.4f}" for v in place]
    return ds


def test_uneven_slices_are_refused_and_slightly_uneven_ones_reported(heads, oblique, tmp_path, caplog):
    refused(heads, oblique, tmp_path / "a", lambda k, ds: moved(ds, 1.2) if k == 2 else ds, "off the regular spacing")

    heads.save_series(tmp_path / "b", *oblique, change=lambda k, ds: moved(ds, 0.2) if k == 2 else ds)
    volume = read(tmp_path / "b")
    assert volume.shape[-1] == 5
    assert "0.20 mm off" in caplog.text


def test_two_slices_at_one_place_are_refused(heads, oblique, tmp_path):
    def twice(k, ds):
        if k == 2:
            ds.ImagePositionPatient = heads.make_slice(*oblique, 3, series="1.2.3.6").ImagePositionPatient
        return ds

    refused(heads, oblique, tmp_path, twice, "several echoes, time points or series")


def test_a_copy_of_a_file_is_left_out(heads, oblique, tmp_path, caplog):
    folder = heads.save_series(tmp_path, *oblique)
    first = sorted(folder.iterdir())[0]
    (folder / "zcopy.dcm").write_bytes(first.read_bytes())

    assert np.array_equal(read(folder).numpy()[0], oblique[0])
    assert "1 duplicate slices" in caplog.text
    assert "zcopy.dcm" in caplog.text


def test_mixed_sizes_series_and_orientations_are_refused(heads, oblique, tmp_path):
    def smaller(k, ds):
        if k == 1:
            ds.Rows, ds.PixelData = 5, ds.PixelData[: 5 * 7 * 2]
        return ds

    def other_series(k, ds):
        ds.SeriesInstanceUID = f"1.2.3.{k % 2}"
        return ds

    def rotating(k, ds):
        angle = k * 0.3
        ds.ImageOrientationPatient = [f"{np.cos(angle):.6f}", f"{np.sin(angle):.6f}", "0", "0", "0", "-1"]
        return ds

    refused(heads, oblique, tmp_path / "a", smaller, "differs in size or pixel spacing")
    refused(heads, oblique, tmp_path / "b", other_series, "files of 2 series")
    refused(heads, oblique, tmp_path / "c", rotating, "5 slices in 5 orientations")


def test_a_localizer_is_left_out_with_a_line_in_the_log(heads, oblique, tmp_path, caplog):
    folder = heads.save_series(tmp_path, *oblique)
    scout = heads.make_slice(*oblique, 0, series="1.2.3.4")
    scout.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
    scout.save_as(folder / "scout.dcm", enforce_file_format=True)

    assert np.array_equal(read(folder).numpy()[0], oblique[0])
    assert "localizers" in caplog.text
    assert "scout.dcm" in caplog.text


def test_a_truncated_slice_is_refused_by_name(heads, oblique, tmp_path):
    folder = heads.save_series(tmp_path, *oblique)
    victim = sorted(folder.glob("*_003.dcm"))[0]
    victim.write_bytes(victim.read_bytes()[:-40])

    with pytest.raises(UnreadableImage, match="truncated or damaged") as caught:
        read(folder)
    assert caught.value.path == str(victim)


def test_objects_that_are_no_slices_are_refused(heads, oblique, tmp_path):
    def without_position(k, ds):
        del ds.ImagePositionPatient
        return ds

    def ultrasound(k, ds):
        ds.Modality = "US"
        return ds

    def inverted(k, ds):
        ds.PhotometricInterpretation = "MONOCHROME1"
        return ds

    refused(heads, oblique, tmp_path / "a", without_position, "does not state its position")
    refused(heads, oblique, tmp_path / "b", ultrasound, "modality US")
    refused(heads, oblique, tmp_path / "c", inverted, "inverted")


def test_a_lone_slice_is_a_picture_and_no_volume(heads, oblique, tmp_path):
    folder = heads.save_series(tmp_path, *oblique, change=lambda k, ds: ds if k == 0 else None)

    assert read(folder).shape == (1, 7, 6)
    cases, (failure,) = find_cases(folder, spatial_dims=3)
    assert cases == []
    assert "single slice, not a volume" in failure.reason
    assert failure.remedy


def test_the_log_names_no_patient(heads, oblique, tmp_path, caplog):
    def invalid(k, ds):
        ds.SOPInstanceUID = f"Doe.Jane.{k}"  # pydicom quotes values that do not fit their type
        ds.SeriesInstanceUID = "secret"
        return ds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = heads.save_series(tmp_path / "plain", *oblique)
        odd = heads.save_series(tmp_path / "odd", *oblique, change=invalid)
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as told:
        for folder in (plain, odd):
            read(folder)
        assert len(find_cases(tmp_path, spatial_dims=3)[0]) == 2
        find_cases(tmp_path)
    text = caplog.text + "".join(str(one.message) for one in told)
    assert "Doe" not in text
    assert "secret" not in text
