# SPDX-License-Identifier: Apache-2.0
"""Derived objects: of the source's own class, where the source lies, marked, and the same twice."""

import hashlib
import logging
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from monai.transforms import LoadImaged
from pydicom import dcmread
from pydicom.uid import generate_uid

import medcf
from medcf.data import Case, StudyReader, find_cases
from medcf.dicom import DicomWriter, check_marks
from medcf.dicom.loops import join_loops
from medcf.inference import RunFolder
from medcf.runtime.synthetic import UID_ROOT
from tests.data import heads
from tests.dicom.sources import FILES, ct_series, file_of, middle, planted

JOB = {"config": {"target": 1}, "weights": {}}


def objects(folder):
    return [dcmread(path) for path in sorted((folder / "dicom").glob("*.dcm"))]


def images(folder):
    return [each for each in objects(folder) if str(each.SeriesDescription).startswith("SYNTHETIC counterfactual")]


def written(tmp_path, source, name="out", result=None, **options):
    DicomWriter(**{"banner": False, "objects": "counterfactual", **options})(
        planted(source) if result is None else result, tmp_path / name
    )
    return images(tmp_path / name)


@pytest.mark.parametrize("kind", ["ct", "mr", "palette", "color loop"])
def test_a_picture_keeps_class_patient_study_and_geometry_and_shows_the_planted_change(tmp_path, kind):
    source, path = dcmread(file_of(FILES[kind])), file_of(FILES[kind])
    (made,) = written(tmp_path, path)
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "ImagePositionPatient"):
        assert made.get(name) == source.get(name), name
    single = {"1.2.840.10008.5.1.4.1.1.3.1": "1.2.840.10008.5.1.4.1.1.6.1"}
    assert made.SOPClassUID == single.get(source.SOPClassUID, source.SOPClassUID)
    assert made.PhotometricInterpretation == "MONOCHROME2"
    assert list(made.ImageType)[:2] == ["DERIVED", "SECONDARY"]
    assert "NumberOfFrames" not in made
    result = planted(path)
    again = medcf.read(tmp_path / "out" / "dicom" / "counterfactual.dcm").numpy()[0]
    assert np.abs(again - result.counterfactual).max() < 0.01
    assert np.abs(again - result.original)[middle(again.shape)].mean() > 0.1


def test_what_did_not_change_is_stored_as_it_was_to_the_last_bit(tmp_path):
    (made,) = written(tmp_path, file_of(FILES["ct"]))
    source = dcmread(file_of(FILES["ct"])).pixel_array
    changed = made.pixel_array != source
    box = tuple(reversed(middle(source.T.shape)))
    assert changed[box].mean() > 0.9
    changed[box] = False
    assert not changed.any()


@pytest.mark.parametrize("tilt", [0.0, 2.0])
def test_a_series_lies_on_its_source_voxel_for_voxel_for_readers_that_nobody_here_wrote(tmp_path, tilt):
    folder = ct_series(tmp_path / "in", tilt=tilt)
    (case,), _ = find_cases(folder, spatial_dims=3)
    result = planted(case)
    made = written(tmp_path, case, result=result)
    assert len(made) == 5
    assert len({each.SeriesInstanceUID for each in made}) == 1
    assert len({each.SOPInstanceUID for each in made}) == 5
    (again_case,), _ = find_cases(tmp_path / "out" / "dicom", spatial_dims=3)
    again = medcf.read(again_case)
    np.testing.assert_allclose(again.affine, result.affine, atol=1e-4)
    assert np.abs(again.numpy()[0] - result.counterfactual).max() <= 1.01  # half of the largest slope
    by_position = {tuple(map(float, each.ImagePositionPatient)): each for each in made}
    for path in folder.glob("*.dcm"):
        source = dcmread(path)
        other = by_position[tuple(map(float, source.ImagePositionPatient))]
        assert other.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert other.RescaleSlope == source.RescaleSlope
    if not tilt:  # ITK straightens a tilted series
        itk = pytest.importorskip("SimpleITK")
        reader = itk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "out" / "dicom")))
        values = itk.GetArrayFromImage(reader.Execute())
        assert np.abs(values.transpose(2, 1, 0) - result.counterfactual).max() <= 1.01


def test_an_enhanced_object_stays_one_with_all_its_frames(tmp_path):
    shape, affine = heads.geometry("RAS", (12, 16, 5), (10, -5, 3))
    path = heads.save_enhanced(tmp_path / "in.dcm", heads.head(shape, affine), affine)
    source = dcmread(path)
    (case,), failures = find_cases(path, spatial_dims=3)
    assert not failures
    result = planted(case)
    (made,) = written(tmp_path, case, result=result)
    assert (made.SOPClassUID, made.NumberOfFrames) == (source.SOPClassUID, source.NumberOfFrames)
    second = made.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0]
    assert second.SourceImageSequence[0].ReferencedFrameNumber == 2
    again = medcf.read(tmp_path / "out" / "dicom" / "counterfactual.dcm")
    assert np.abs(again.numpy()[0] - result.counterfactual).max() <= 1
    np.testing.assert_allclose(again.affine, result.affine, atol=1e-4)


def test_one_frame_of_a_loop_refers_to_it_and_all_frames_make_a_loop_again(tmp_path):
    path = file_of(FILES["color loop"])
    source = dcmread(path)
    count = int(source.NumberOfFrames)
    cases = [Case(f"heart_f{n:04d}", (path,), n) for n in range(count)]
    folder = RunFolder(tmp_path / "out")
    folder.open(cases)
    writer = DicomWriter(JOB, banner=False)
    for case in cases:
        folder.take(
            replace(planted(case), writers=(writer,), row={**planted(case).row, "case": case.id, "format": "dicom"})
        )
    (single,) = images(tmp_path / "out" / "heart_f0003")
    assert single.SourceImageSequence[0].ReferencedFrameNumber == 4
    assert writer.finish(folder) == ["heart_loop"]
    (loop,) = images(tmp_path / "out" / "heart_loop")
    assert (loop.SOPClassUID, loop.NumberOfFrames, loop.FrameTime) == (source.SOPClassUID, count, source.FrameTime)
    np.testing.assert_array_equal(loop.pixel_array[3], single.pixel_array)
    check_marks(loop, [source])
    folder.release()


def test_a_loop_with_a_missing_frame_is_not_joined(tmp_path):
    path = file_of(FILES["color loop"])
    cases = [Case(f"heart_f{n:04d}", (path,), n) for n in range(3)]
    folder = RunFolder(tmp_path / "out")
    folder.open(cases)
    writer = DicomWriter(JOB)
    for case in cases:
        folder.take(
            replace(planted(case), writers=(writer,), row={**planted(case).row, "case": case.id, "format": "dicom"})
        )
    assert join_loops(folder, writer.job) == []
    folder.release()


def test_the_same_job_twice_is_one_object_and_another_setting_is_another(tmp_path):
    path = file_of(FILES["ct"])
    for name, job in (("a", JOB), ("b", JOB), ("c", {**JOB, "config": {"target": 0}})):
        written(tmp_path, path, name, manifest=job)
    first, second, third = (tmp_path / name / "dicom" / "counterfactual.dcm" for name in "abc")
    assert first.read_bytes() == second.read_bytes()
    one, other = dcmread(first), dcmread(third)
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert one.SeriesInstanceUID != other.SeriesInstanceUID


def test_where_and_how_fast_a_job_runs_does_not_change_its_uids(tmp_path):
    path = file_of(FILES["ct"])
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"weights")
    for name, more in (("a", {}), ("b", {"output_dir": "elsewhere", "batch_size": 4, "output_format": "dicom"})):
        job = {"config": {"target": 1, **more}, "weights": {"model": weights}}
        written(tmp_path, path, name, manifest=job)
    weights.write_bytes(b"others")
    written(tmp_path, path, "c", manifest=job)
    a, b, c = (dcmread(tmp_path / name / "dicom" / "counterfactual.dcm").SOPInstanceUID for name in "abc")
    assert a == b != c


def test_private_attributes_overlays_and_thumbnails_of_the_source_are_dropped(tmp_path):
    source = dcmread(file_of(FILES["ct"]))
    source.private_block(0x0011, "SOMEONE", create=True).add_new(0x01, "LO", "secret")
    source.add_new(0x60000010, "US", 128)
    source.add_new(0x60003000, "OW", b"\xff" * 2048)
    source.SmallestImagePixelValue = 0
    source["SmallestImagePixelValue"].VR = "SS"
    source.save_as(tmp_path / "in.dcm")
    (made,) = written(tmp_path, tmp_path / "in.dcm")
    assert not [element for element in made if element.tag.is_private or element.tag.group == 0x6000]
    assert "SmallestImagePixelValue" not in made
    assert b"secret" not in (tmp_path / "out" / "dicom" / "counterfactual.dcm").read_bytes()


def test_the_banner_is_on_the_face_and_in_the_header_by_default(tmp_path):
    path = file_of(FILES["ct"])
    (plain,) = written(tmp_path, path, "plain")
    (marked,) = written(tmp_path, path, "marked", banner=True)
    assert (plain.BurnedInAnnotation, marked.BurnedInAnnotation) == ("NO", "YES")
    differs = plain.pixel_array != marked.pixel_array
    assert differs[: differs.shape[0] // 5].any()
    assert not differs[differs.shape[0] // 5 :].any()
    assert plain.SOPInstanceUID != marked.SOPInstanceUID


def test_a_png_becomes_a_capture_without_a_patient(tmp_path):
    from PIL import Image

    picture = (np.linspace(0, 1, 64 * 48).reshape(64, 48) * 255).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    (made,) = written(tmp_path, tmp_path / "a.png")
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (made.PatientName, made.PatientID, made.pixel_array.shape) == ("", "", (64, 48))
    assert made.StudyInstanceUID.startswith(UID_ROOT)
    unchanged = made.pixel_array != picture
    unchanged[tuple(reversed(middle((48, 64))))] = False
    assert not unchanged.any()


def test_an_input_that_was_returned_unchanged_says_so_and_still_is_marked(tmp_path):
    result = planted(file_of(FILES["ct"]), amount=0.0)
    (made,) = written(tmp_path, None, result=result)
    assert "returned unchanged" in made.DerivationDescription
    assert made.SyntheticData == "YES"
    np.testing.assert_array_equal(made.pixel_array, dcmread(file_of(FILES["ct"])).pixel_array)


BROKEN = {
    "it says NO": ("SyntheticData is not YES", lambda made, source: setattr(made, "SyntheticData", "NO")),
    "it says nothing": ("SyntheticData is not YES", lambda made, source: delattr(made, "SyntheticData")),
    "no source": ("refers to no source", lambda made, source: delattr(made, "SourceImageSequence")),
    "the source's UID": (
        "SOPInstanceUID is not its own",
        lambda made, source: setattr(made, "SOPInstanceUID", source.SOPInstanceUID),
    ),
    "another's UID": (
        "SOPInstanceUID is not its own",
        lambda made, source: setattr(made, "SOPInstanceUID", generate_uid()),
    ),
    "the source's series": (
        "SeriesInstanceUID is not its own",
        lambda made, source: setattr(made, "SeriesInstanceUID", source.SeriesInstanceUID),
    ),
    "no maker": ("does not name medcf", lambda made, source: delattr(made, "ContributingEquipmentSequence")),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_object_that_could_be_mistaken_is_not_written(tmp_path, kind):
    from medcf.dicom import save

    source, (made,) = dcmread(file_of(FILES["ct"])), written(tmp_path, file_of(FILES["ct"]))
    reason, spoil = BROKEN[kind]
    spoil(made, source)
    with pytest.raises(ValueError, match=reason):
        save(made, tmp_path / "never.dcm", [source])
    assert not (tmp_path / "never.dcm").exists()


def test_a_patient_without_a_source_is_not_written(tmp_path):
    from medcf.dicom import save

    (made,) = written(tmp_path, file_of(FILES["ct"]))
    with pytest.raises(ValueError, match="names a patient, and has no source"):
        save(made, tmp_path / "never.dcm")


@pytest.mark.parametrize("kind", ["ct", "palette", "color loop"])
def test_own_objects_are_refused_on_the_way_in_unless_asked_for(tmp_path, kind):
    written(tmp_path, file_of(FILES[kind]))
    path = tmp_path / "out" / "dicom" / "counterfactual.dcm"
    with pytest.raises(Exception, match="is synthetic, as it says itself") as caught:
        LoadImaged("image", reader=StudyReader(), expanduser=False)({"image": str(path)})
    assert "allow_synthetic" in str(caught.value)
    allowed = LoadImaged("image", reader=StudyReader(allow_synthetic=True), expanduser=False)({"image": str(path)})
    assert allowed["image"].meta["synthetic"]
    made = dcmread(path)
    made.SyntheticData = "NO"  # our UIDs tell, too
    made.save_as(path)
    with pytest.raises(Exception, match="is synthetic, as it says itself"):
        LoadImaged("image", reader=StudyReader(), expanduser=False)({"image": str(path)})


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
@pytest.mark.parametrize("kind", ["ct", "mr", "palette", "color loop"])
def test_the_validator_finds_no_error_that_the_source_has_not(tmp_path, kind):
    def errors(path):
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
        # the validator is older than the attribute SyntheticData
        return {line for line in told.splitlines() if line.startswith("Error") and "(0x0008,0x001c)" not in line}

    written(tmp_path, file_of(FILES[kind]))
    before = errors(file_of(FILES[kind]))
    for path in (tmp_path / "out" / "dicom").glob("*.dcm"):
        assert errors(path) <= before


def test_no_patient_is_named_in_the_logs(tmp_path, caplog):
    source = dcmread(file_of(FILES["ct"]))
    source.PatientName, source.PatientID = "Secret^Name", "4711-secret"
    source.save_as(tmp_path / "in.dcm")
    with caplog.at_level(logging.DEBUG):
        written(tmp_path, tmp_path / "in.dcm")
    assert "ecret" not in caplog.text


def test_the_digest_of_a_file_is_that_of_its_job(tmp_path):
    """Two processes write the same bytes, so that the second of two jobs replaces nothing."""
    digests = set()
    for name in ("a", "b"):
        written(tmp_path, file_of(FILES["palette"]), name, manifest=JOB)
        digests |= {hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name / "dicom").iterdir()}
    assert len(digests) == 1
