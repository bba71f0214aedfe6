# SPDX-License-Identifier: Apache-2.0
"""Difference maps, segments and overlays: the values and the places are those of the case, whoever reads them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from monai.transforms import LoadImaged
from pydicom import dcmread

from medcf.data import StudyReader, find_cases
from medcf.dicom import DicomWriter, check_marks, save
from medcf.dicom.companions import OBJECTS
from medcf.dicom.deidentify import deidentified
from medcf.inference.drawing import colored_difference
from medcf.runtime.errors import UnreadableImage
from medcf.runtime.synthetic import UID_ROOT, says_synthetic
from tests.data import heads
from tests.dicom.sources import FILES, ct_series, errors_of, file_of, planted, scored

hd = pytest.importorskip("highdicom")

JOB = {"config": {"target": 1}, "weights": {}}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def written(tmp_path, result, name="out", **options):
    DicomWriter(**{"banner": False, "class_names": ["a", "b"], **options})(scored(result), tmp_path / name)
    return tmp_path / name / "dicom"


def by_column(volume):
    """Return an array (columns, rows, slices) and its affine to RAS, from a volume (slices, rows, columns)."""
    swap = np.eye(4)[[2, 1, 0, 3]]
    return volume.array.transpose(2, 1, 0), LPS_TO_RAS @ volume.affine @ swap


@pytest.mark.parametrize("kind", ["ct", "mr", "palette", "color loop"])
def test_a_map_of_a_picture_holds_the_difference_to_the_last_bit(tmp_path, kind):
    result = planted(file_of(FILES[kind]))
    folder = written(tmp_path, result)
    made = hd.imread(folder / "difference.dcm")
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
    frame = np.frombuffer(made.FloatPixelData, "<f4").reshape(made.Rows, made.Columns)
    np.testing.assert_array_equal(frame.T, result.difference)
    np.testing.assert_array_equal(made.get_frames().squeeze().T, result.difference)
    units = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert units.MeasurementUnitsCodeSequence[0].CodeMeaning == "no units"
    assert (units.RealWorldValueSlope, units.RealWorldValueIntercept) == (1, 0)


def test_a_negative_difference_stays_negative(tmp_path):
    result = planted(file_of(FILES["ct"]), amount=-0.2)
    made = dcmread(written(tmp_path, result) / "difference.dcm")
    values = np.frombuffer(made.FloatPixelData, "<f4")
    assert values.min() < -0.1
    assert values.max() == 0


@pytest.mark.parametrize("tilt", [0.0, 2.0])
def test_a_planted_voxel_comes_back_at_its_voxel(tmp_path, tilt):
    (case,), _ = find_cases(ct_series(tmp_path / "in", tilt=tilt), spatial_dims=3)
    result = planted(case)
    difference = np.zeros_like(result.difference)
    difference[70, 20, 3] = -0.5
    folder = written(tmp_path, replace(result, difference=difference))
    made = dcmread(folder / "difference.dcm")
    frames = np.frombuffer(made.FloatPixelData, "<f4").reshape(-1, made.Rows, made.Columns)
    place = np.argwhere(frames == -0.5)
    assert place.shape == (1, 3)
    groups = made.PerFrameFunctionalGroupsSequence[place[0, 0]]
    corner = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
    steps = result.affine[:3, 0] * place[0, 2] + result.affine[:3, 1] * place[0, 1]
    found = LPS_TO_RAS[:3, :3] @ corner + steps
    np.testing.assert_allclose(found, (result.affine @ [70, 20, 3, 1])[:3], atol=1e-3)
    source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    (slice_,) = [each for each in map(dcmread, (tmp_path / "in").glob("*")) if each.SOPInstanceUID == source]
    np.testing.assert_allclose(np.array(slice_.ImagePositionPatient, float), corner, atol=1e-4)
    if not tilt:  # highdicom has no volumes that are sheared
        array, affine = by_column(hd.imread(folder / "difference.dcm").get_volume())
        index = np.argwhere(array == np.float32(-0.5))
        np.testing.assert_allclose((affine @ [*index[0], 1])[:3], (result.affine @ [70, 20, 3, 1])[:3], atol=1e-3)


def test_a_map_of_an_enhanced_object_refers_to_its_frames(tmp_path):
    shape, affine = heads.geometry("RAS", (12, 16, 5), (10, -5, 3))
    (case,), _ = find_cases(heads.save_enhanced(tmp_path / "in.dcm", heads.head(shape, affine), affine), spatial_dims=3)
    result = planted(case)
    made = hd.imread(written(tmp_path, result) / "difference.dcm")
    array, to_ras = by_column(made.get_volume())
    for index in np.argwhere(array != 0):
        back = np.rint(np.linalg.inv(result.affine) @ to_ras @ [*index, 1]).astype(int)[:3]
        assert array[tuple(index)] == result.difference[tuple(back)]
    assert (array != 0).sum() == (result.difference != 0).sum()
    numbers = [
        each.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for each in made.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(map(int, numbers)) == list(range(1, int(dcmread(tmp_path / "in.dcm").NumberOfFrames) + 1))


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.9])
def test_a_segment_is_what_exceeds_the_threshold_and_says_so(tmp_path, threshold):
    result = planted(file_of(FILES["palette"]))
    ramp = np.linspace(-0.5, 0.5, result.difference.size).reshape(result.difference.shape).astype(np.float32)
    folder = written(tmp_path, replace(result, difference=ramp), threshold=threshold)
    made = hd.seg.segread(folder / "segmentation.dcm")
    np.testing.assert_array_equal(made.pixel_array.T.squeeze() > 0, np.abs(ramp) > threshold)
    assert f"> {threshold:g} in fractions" in made.SegmentSequence[0].SegmentDescription


def test_segments_of_a_series_are_where_the_volume_changed(tmp_path):
    (case,), _ = find_cases(ct_series(tmp_path / "in"), spatial_dims=3)
    result = planted(case)
    folder = written(tmp_path, result)
    array, affine = by_column(hd.seg.segread(folder / "segmentation.dcm").get_volume(combine_segments=True))
    to_index = np.linalg.inv(result.affine) @ affine
    found = {tuple(np.rint(to_index @ [*index, 1]).astype(int)[:3]) for index in np.argwhere(array > 0)}
    assert found == set(map(tuple, np.argwhere(np.abs(result.difference) > 0.1)))


def test_an_overlay_is_a_capture_in_color_with_the_banner(tmp_path):
    result = planted(file_of(FILES["ct"]))
    plain = dcmread(written(tmp_path, result, "plain") / "overlay.dcm")
    marked = dcmread(written(tmp_path, result, "marked", banner=True) / "overlay.dcm")
    assert plain.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    pixels = plain.pixel_array.astype(int)
    red = pixels[..., 0] - pixels[..., 2]
    assert (red.T[result.difference > 0.1] > 5).all()  # brighter is red
    assert not red[result.difference.T == 0].any()
    wanted = colored_difference(result.original.T, result.difference.T, 0.5) * 255
    assert np.abs(pixels - wanted).max() < 3
    assert (marked.BurnedInAnnotation, plain.BurnedInAnnotation) == ("YES", "NO")
    assert (marked.pixel_array != plain.pixel_array)[:20].any()


def test_a_series_has_one_overlay_for_each_slice(tmp_path):
    (case,), _ = find_cases(ct_series(tmp_path / "in"), spatial_dims=3)
    made = [dcmread(path) for path in sorted(written(tmp_path, planted(case)).glob("overlay-*.dcm"))]
    assert [each.InstanceNumber for each in made] == [1, 2, 3, 4, 5]
    assert len({each.SOPInstanceUID for each in made}) == 5
    assert len({each.SeriesInstanceUID for each in made}) == 1
    assert len({each.SourceImageSequence[0].ReferencedSOPInstanceUID for each in made}) == 5


def test_a_png_has_an_overlay_and_a_report_but_no_map(tmp_path):
    from PIL import Image

    Image.fromarray((np.linspace(0, 1, 64 * 48).reshape(64, 48) * 255).astype(np.uint8)).save(tmp_path / "a.png")
    folder = written(tmp_path, planted(tmp_path / "a.png"))
    names = {path.stem: dcmread(path) for path in folder.glob("*.dcm")}
    assert set(names) == {"counterfactual", "overlay", "report"}
    assert len({each.StudyInstanceUID for each in names.values()}) == 1
    assert not any(each.PatientName or each.PatientID for each in names.values())


def test_the_same_job_twice_is_the_same_to_the_last_bit_whatever_the_time(tmp_path, monkeypatch):
    import datetime

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6, 7, 8, 9)

    first = written(tmp_path, planted(file_of(FILES["ct"])), "a", manifest=JOB)
    monkeypatch.setattr(datetime, "datetime", Later)
    second = written(tmp_path, planted(file_of(FILES["ct"])), "b", manifest=JOB)
    names = sorted(path.name for path in first.glob("*"))
    assert len(names) == 6
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["ct", "palette", "color loop", "series"])
def test_every_object_is_marked_and_refused_on_the_way_in(tmp_path, kind):
    source = file_of(FILES[kind]) if kind != "series" else find_cases(ct_series(tmp_path / "in"), spatial_dims=3)[0][0]
    result = planted(source)
    folder = written(tmp_path, replace(result, trajectory=np.stack([result.original] * 2)), objects=OBJECTS)
    paths = sorted(folder.glob("*.dcm"))
    assert {path.stem.partition("-")[0] for path in paths} == set(OBJECTS) - {"expected"}
    for path in paths:
        made = dcmread(path)
        assert made.SyntheticData == "YES"
        assert made.SOPInstanceUID.startswith(UID_ROOT)
        assert made.SeriesInstanceUID.startswith(UID_ROOT)
        assert made.SeriesDescription.startswith("SYNTHETIC")
        assert says_synthetic(made)
        with pytest.raises(UnreadableImage) as caught:
            LoadImaged("image", reader=StudyReader(), expanduser=False)({"image": str(path)})
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
    for dims in (2, 3):
        cases, failures = find_cases(folder, spatial_dims=dims)
        assert all("\n" not in failure.reason for failure in failures)
        for case in cases:
            with pytest.raises(UnreadableImage, match="is synthetic, as it says itself"):
                LoadImaged("image", reader=StudyReader(), expanduser=False)({"image": case})


@pytest.mark.parametrize("objects", [None, OBJECTS, ["report"], ["presentation"], "overlay, difference", []])
@pytest.mark.parametrize("deidentify", [True, False])
def test_no_option_makes_an_object_without_its_marks(tmp_path, objects, deidentify):
    result = planted(file_of(FILES["ct"]))
    for banner in (True, False):
        folder = written(tmp_path, result, f"{banner}", objects=objects, banner=banner, deidentify=deidentify)
        made = {path.stem: dcmread(path) for path in folder.glob("*.dcm")}
        header = dcmread(file_of(FILES["ct"]))
        source = deidentified(header) if deidentify else header
        for name, dataset in made.items():
            check_marks(dataset, [made["counterfactual"] if name == "presentation" else source])


@pytest.mark.parametrize("name", ["difference", "segmentation", "overlay", "report", "presentation"])
@pytest.mark.parametrize("spoiled", ["NO", "stale", "nothing"])
def test_a_spoiled_object_is_not_written(tmp_path, name, spoiled):
    source = dcmread(file_of(FILES["ct"]))
    folder = written(tmp_path, planted(file_of(FILES["ct"])))
    made, sources = dcmread(folder / f"{name}.dcm"), [source]
    if name == "presentation":
        sources = [dcmread(folder / "counterfactual.dcm")]
    save(made, tmp_path / "again.dcm", sources)
    if spoiled == "NO":
        made.SyntheticData = "NO"
    elif spoiled == "stale":
        made.SOPInstanceUID = source.SOPInstanceUID
    else:
        for element in list(made.iterall()):
            if element.keyword == "ReferencedSOPInstanceUID":
                element.value = "1.2.3"
    with pytest.raises(ValueError, match="could be mistaken"):
        save(made, tmp_path / "never.dcm", sources)


def test_an_unknown_object_and_a_bad_threshold_are_refused_and_the_extra_is_named(monkeypatch):
    with pytest.raises(ValueError, match="no object 'saliency': choose among counterfactual"):
        DicomWriter(objects="saliency")
    with pytest.raises(ValueError, match="not between 0 and 1"):
        DicomWriter(threshold=2)
    monkeypatch.setattr("medcf.dicom.templates.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"medcf\[dicom\]"):
        DicomWriter()
    DicomWriter(objects="counterfactual,overlay,presentation")


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
@pytest.mark.parametrize("kind", ["ct", "mr", "palette", "color loop", "series"])
def test_the_validator_finds_no_error_that_the_source_has_not(tmp_path, kind):
    source = file_of(FILES[kind]) if kind != "series" else find_cases(ct_series(tmp_path / "in"), spatial_dims=3)[0][0]
    result = planted(source)
    before = set().union(*map(errors_of, result.files or [result.path]))
    for deidentify in (False, True):
        for path in written(tmp_path, result, f"out{deidentify}", deidentify=deidentify).glob("*.dcm"):
            assert errors_of(path) <= before, path.name
