# SPDX-License-Identifier: Apache-2.0
"""De-identified objects: nothing of the patient is left, and they still refer to one another."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID

from medcf.data import Case, find_cases
from medcf.dicom import DicomWriter, check_marks
from medcf.dicom.companions import OBJECTS
from medcf.dicom.deidentify import deidentified, mapped_uid
from medcf.inference import RunFolder
from medcf.runtime.synthetic import UID_ROOT
from tests.data import heads
from tests.dicom.sources import FILES, ct_series, file_of, planted, scored

pytest.importorskip("highdicom")
pytest.importorskip("dicomanonymizer")

SECRET = b"Zq7Secret"
DATES = (b"19771231", b"20110203", b"101112.5")
JOB = {"config": {"target": 1}, "weights": {}}


def identified(path: Path, target: Path) -> Path:
    """Copy a file and plant a patient in every place that holds text, a date or a UID of its own."""
    made = dcmread(path)
    made.PatientName, made.PatientID = "Zq7Secret^Name", "Zq7Secret-1"
    made.PatientBirthDate, made.StudyDate, made.SeriesDate, made.AcquisitionDate = "19771231", *["20110203"] * 3
    made.ContentDate, made.ContentTime, made.StudyTime, made.PatientAge = "20110203", "101112.5", "101112.5", "033Y"
    for name in (
        *("AccessionNumber", "ReferringPhysicianName", "InstitutionName", "InstitutionAddress", "StationName"),
        *("StudyDescription", "SeriesDescription", "ProtocolName", "OperatorsName", "PerformingPhysicianName"),
        *("PatientComments", "AdditionalPatientHistory", "OtherPatientIDs", "DeviceSerialNumber", "ImageComments"),
        *("DerivationDescription", "RequestedProcedureDescription", "PatientAddress", "EthnicGroup", "StudyID"),
        *("ContrastBolusAgent", "AcquisitionComments", "CurrentPatientLocation", "PerformedProcedureStepDescription"),
    ):
        setattr(made, name, "Zq7Secret")
    item = Dataset()
    item.RequestedProcedureID, item.ScheduledProcedureStepDescription = "Zq7Secret", "Zq7Secret"
    made.RequestAttributesSequence = [item]
    step = Dataset()
    step.ReferencedSOPClassUID, step.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.3", "1.2.276.99.88.77"
    made.ReferencedPerformedProcedureStepSequence = [step]
    maker = Dataset()
    maker.Manufacturer, maker.InstitutionName, maker.OperatorsName = "ACME", "Zq7Secret", "Zq7Secret"
    made.ContributingEquipmentSequence = [maker]
    made.private_block(0x0011, "Zq7Secret", create=True).add_new(0x01, "LO", "Zq7Secret")
    made.add_new(0x60000010, "US", 8)
    made.add_new(0x60004000, "LT", "Zq7Secret")
    made.add_new(0x00091002, "UN", b"Zq7Secret")
    made.save_as(target)
    return target


def uids_of(dataset) -> set[str]:
    """Return the UIDs that are not the standard's."""
    values = {str(each.value) for each in dataset.iterall() if each.VR == "UI"}
    return {value for value in values if value and not value.startswith("1.2.840.10008.")}


def written(tmp_path, result, name="out", **options):
    DicomWriter(**{"deidentify": True, "objects": OBJECTS, "manifest": JOB, **options})(scored(result), tmp_path / name)
    return sorted((tmp_path / name / "dicom").glob("*.dcm"))


@pytest.mark.parametrize("kind", FILES)
def test_nothing_of_the_patient_is_left_in_any_byte(tmp_path, kind):
    source = identified(file_of(FILES[kind]), tmp_path / "Zq7Secret.dcm")
    paths = written(tmp_path, planted(source))
    assert len(paths) == 6
    known = uids_of(dcmread(source)) | {"1.2.276.99.88.77"}
    for path in paths:
        content = path.read_bytes()
        for secret in (SECRET, *DATES, *(uid.encode() for uid in known)):
            assert secret not in content, (path.name, secret)
        made = dcmread(path)
        assert not [each for each in made.iterall() if each.tag.is_private]
        assert made.PatientIdentityRemoved == "YES"
        assert made.DeidentificationMethodCodeSequence[0].CodeValue == "113100"


@pytest.mark.parametrize("kind", FILES)
def test_marks_survive(tmp_path, kind):
    source = identified(file_of(FILES[kind]), tmp_path / "in.dcm")
    made = {path.stem: dcmread(path) for path in written(tmp_path, planted(source))}
    for name, dataset in made.items():
        check_marks(dataset, [made["counterfactual"] if name == "presentation" else deidentified(dcmread(source))])
        assert dataset.SyntheticData == "YES"
        assert dataset.SeriesDescription.startswith("SYNTHETIC")
        assert dataset.SOPInstanceUID.startswith(UID_ROOT)
        (maker,) = [each for each in dataset.ContributingEquipmentSequence if each.Manufacturer == "medcf"]
        assert "counterfactual" in maker.ContributionDescription.lower()
    with pytest.raises(ValueError, match="refers to no source"):  # the source itself is named nowhere
        check_marks(made["counterfactual"], [dcmread(source)])


def test_objects_of_a_study_still_belong_together(tmp_path):
    source = file_of(FILES["ct"])
    header = dcmread(source)
    made = [dcmread(path) for path in written(tmp_path, planted(source))]
    assert {each.StudyInstanceUID for each in made} == {mapped_uid(header.StudyInstanceUID)}
    frames = {each.FrameOfReferenceUID for each in made if "FrameOfReferenceUID" in each}
    assert frames == {mapped_uid(header.FrameOfReferenceUID)}
    references = [
        each.SourceImageSequence[0].ReferencedSOPInstanceUID for each in made if each.get("SourceImageSequence")
    ]
    assert set(references) == {mapped_uid(header.SOPInstanceUID)}


def test_another_process_writes_the_same_bytes(tmp_path):
    here = written(tmp_path, planted(file_of(FILES["ct"])), "here")
    program = (
        "import sys; from pathlib import Path; from tests.dicom.test_deidentify import *;"
        "written(Path(sys.argv[1]), planted(file_of(FILES['ct'])), 'there')"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=True, capture_output=True)
    for path in here:
        assert path.read_bytes() == (tmp_path / "there" / "dicom" / path.name).read_bytes(), path.name


def test_a_mapped_uid_is_valid_stable_and_not_our_own():
    assert mapped_uid("1.2.3") == "2.25.46695996011327810954123529897350214890"
    assert UID(mapped_uid("1.2.3")).is_valid
    assert len(mapped_uid("1." + "2" * 62)) <= 64
    assert not mapped_uid("1.2.3").startswith(UID_ROOT)
    assert mapped_uid("1.2.840.10008.1.2.1") == "1.2.840.10008.1.2.1"


def test_a_volume_keeps_its_geometry(tmp_path):
    (case,), _ = find_cases(ct_series(tmp_path / "in"), spatial_dims=3)
    result = planted(case)
    paths = written(tmp_path, result, objects="counterfactual")
    places = {tuple(map(float, dcmread(path).ImagePositionPatient)) for path in paths}
    assert places == {tuple(map(float, dcmread(path).ImagePositionPatient)) for path in case.files}


def test_frames_of_an_enhanced_object_are_cleaned_too(tmp_path):
    shape, affine = heads.geometry("RAS", (12, 16, 5), (10, -5, 3))
    path = heads.save_enhanced(tmp_path / "in.dcm", heads.head(shape, affine), affine)
    source = dcmread(path)
    for groups in source.PerFrameFunctionalGroupsSequence:
        content = Dataset()
        content.FrameAcquisitionDateTime, content.FrameComments = "20110203101112.5", "Zq7Secret"
        groups.FrameContentSequence = [content]
    source.save_as(path)
    (case,), _ = find_cases(path, spatial_dims=3)
    for made in written(tmp_path, planted(case)):
        content = made.read_bytes()
        assert not any(secret in content for secret in (SECRET, *DATES, str(source.SOPInstanceUID).encode()))


def test_a_joined_loop_is_de_identified(tmp_path):
    source = identified(file_of(FILES["color loop"]), tmp_path / "in.dcm")
    cases = [Case(f"heart_f{n:04d}", (source,), n) for n in range(int(dcmread(source).NumberOfFrames))]
    folder = RunFolder(tmp_path / "out")
    folder.open(cases)
    writer = DicomWriter(JOB, deidentify=True, objects="counterfactual")
    for case in cases:
        folder.take(replace(scored(planted(case), case=case.id, format="dicom", frame=case.frame), writers=(writer,)))
    assert writer.finish(folder) == ["heart_loop"]
    folder.release()
    (loop,) = (tmp_path / "out" / "heart_loop" / "dicom").glob("*.dcm")
    assert not any(secret in loop.read_bytes() for secret in (SECRET, *DATES))
    assert dcmread(loop).StudyInstanceUID == mapped_uid(dcmread(source).StudyInstanceUID)


def test_letters_that_are_burned_in_are_warned_about(tmp_path, caplog):
    source = dcmread(file_of(FILES["ct"]))
    source.BurnedInAnnotation = "YES"
    source.save_as(tmp_path / "in.dcm")
    written(tmp_path, planted(tmp_path / "in.dcm"))
    assert caplog.text.count("only headers are de-identified, not pixels") == 1
