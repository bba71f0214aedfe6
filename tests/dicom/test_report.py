# SPDX-License-Identifier: Apache-2.0
"""Reports: highdicom reads the scores that the case has."""

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from medcf.data import find_cases
from medcf.dicom import DicomWriter, Job
from medcf.dicom.report import coded_column
from tests.dicom.sources import FILES, ROW, ct_series, file_of, planted, scored

hd = pytest.importorskip("highdicom")


def group_of(tmp_path, source, name="out", row=None, **options):
    result = scored(planted(source), **(row or {}))
    DicomWriter(**{"class_names": ["a", "b"], **options})(result, tmp_path / name)
    made = hd.sr.srread(tmp_path / name / "dicom" / "report.dcm")
    assert type(made).__name__ == "ComprehensiveSR"
    (group,) = made.content.get_image_measurement_groups()
    return made, group


def test_numbers_are_those_of_the_row(tmp_path):
    _, group = group_of(tmp_path, file_of(FILES["ct"]))
    found = {each.name.meaning: each.value for each in group.get_measurements()}
    wanted = {
        name.replace("_", " "): value
        for name, value in ROW.items()
        if isinstance(value, float | int) and not isinstance(value, bool) and name not in _OTHERS
    }
    assert found == wanted
    assert all(each.unit.value == "1" for each in group.get_measurements())


_OTHERS = ("target", "label_before", "label_after", "seconds")  # the same job twice takes another time


@pytest.mark.parametrize(("flipped", "unchanged"), [(True, False), (False, False), (True, True)])
def test_answers_and_classes_are_coded(tmp_path, flipped, unchanged):
    _, group = group_of(tmp_path, file_of(FILES["ct"]), row={"flipped": flipped, "unchanged": unchanged})
    found = {each.name.meaning: each.value.meaning for each in group.get_qualitative_evaluations()}
    answer = {True: "Yes", False: "No"}
    assert found == {
        "flipped": answer[flipped],
        "unchanged": answer[unchanged],
        "out of distribution": "No",
        "target": "b",
        "label before": "a",
        "label after": "b",
    }


def test_novelty_that_was_not_tested_is_said_to_be_so(tmp_path):
    result = scored(planted(file_of(FILES["ct"])))
    del result.row["out_of_distribution"]
    DicomWriter()(result, tmp_path)
    (group,) = hd.sr.srread(tmp_path / "dicom" / "report.dcm").content.get_image_measurement_groups()
    found = {each.name.meaning: each.value.meaning for each in group.get_qualitative_evaluations()}
    assert found["out of distribution"] == "Not tested"


def test_hashes_of_weights_and_settings_are_parameters_of_the_algorithm(tmp_path):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"weights")
    manifest = {"config": {"target": 1}, "weights": {"model": weights}}
    made, _ = group_of(tmp_path, file_of(FILES["ct"]), manifest=manifest)
    job = Job.of(manifest, banner=True, deidentify=False)
    texts = {str(each.value) for each in made.iterall() if each.keyword == "TextValue"}
    assert {f"weights sha256:{job.weights}", f"settings sha256:{job.settings}"} <= texts


@pytest.mark.parametrize("kind", ["ct", "color loop", "series"])
def test_the_source_and_what_was_made_of_it_are_evidence(tmp_path, kind):
    source = file_of(FILES[kind]) if kind != "series" else find_cases(ct_series(tmp_path / "in"), spatial_dims=3)[0][0]
    made, group = group_of(tmp_path, source)
    written = {path.stem: dcmread(path) for path in (tmp_path / "out" / "dicom").glob("*.dcm")}
    evidence = {
        item.ReferencedSOPInstanceUID
        for study in made.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    shown = {
        each.SOPInstanceUID
        for name, each in written.items()
        if name.partition("-")[0] not in ("report", "presentation")
    }
    sources = {dcmread(path).SOPInstanceUID for path in planted(source).files}
    assert evidence == shown | sources
    assert {each.referenced_sop_instance_uid for each in group.source_images} == sources
    if kind == "color loop":
        assert group.source_images[0].referenced_frame_numbers == [planted(source).row["frame"] + 1]


def test_a_report_of_a_png_refers_to_its_capture_and_names_no_file(tmp_path):
    Image.fromarray(np.full((48, 64), 100, np.uint8)).save(tmp_path / "Secret^Name.png")
    made, group = group_of(tmp_path, tmp_path / "Secret^Name.png", objects="counterfactual,report")
    capture = dcmread(tmp_path / "out" / "dicom" / "counterfactual.dcm")
    assert [each.referenced_sop_instance_uid for each in group.source_images] == [capture.SOPInstanceUID]
    assert made.StudyInstanceUID == capture.StudyInstanceUID
    assert b"Secret" not in (tmp_path / "out" / "dicom" / "report.dcm").read_bytes()


def test_every_column_has_a_code_of_its_own_that_fits():
    names = [*ROW, *(f"confidence_{n}" for n in range(200)), "naïve score", "a" * 100, "a" * 101]
    codes = {coded_column(name)[0] for name in names}
    assert len(codes) == len(set(names))
    assert max(map(len, codes)) <= 16
