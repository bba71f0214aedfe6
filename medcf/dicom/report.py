# SPDX-License-Identifier: Apache-2.0
"""A case's scores as a structured report: TID 1500, in Comprehensive SR."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medcf.dicom.capture import study_of
from medcf.dicom.derived import Kind
from medcf.dicom.job import Job
from medcf.dicom.marks import mark, reference
from medcf.dicom.source import Source
from medcf.dicom.templates import OWN_CODES, equipment, extra, identify
from medcf.inference.case_result import CaseResult

__all__ = ["coded_column", "report"]

#: Columns of what the input is, which the objects that the report refers to say better, and of how long it took.
_LEFT_OUT = re.compile(r"case|file|format|frame|rows|columns|spacing_.*|size_.|orientation|black|white|seconds")
_CLASSES = ("target", "label_before", "label_after")
_ANSWERS = {True: ("373066001", "SCT", "Yes"), False: ("373067005", "SCT", "No")}
_NO_UNITS = ("1", "UCUM", "no units")
_NOVELTY = "out_of_distribution"
_CT, _SHORTEST = "1.2.840.10008.5.1.4.1.1.2", 16


def coded_column(name: str) -> tuple[str, str, str]:
    """Return the code of a column of ``scores.csv``: its own name, or where that is too long for a code, a hash.

    Example:
        >>> coded_column("flipped"), coded_column("confidence_before")[2]
        (('FLIPPED', '99MEDCF', 'flipped'), 'confidence before')
    """
    value = name.upper()
    if len(value) > _SHORTEST or not re.fullmatch(r"\w+", value, re.ASCII):
        value = f"C{hashlib.sha256(name.encode()).hexdigest()[: _SHORTEST - 1].upper()}"
    return value, OWN_CODES, name.replace("_", " ")[:64]


def report(
    result: CaseResult,
    source: Source | None,
    evidence: Sequence[Dataset],
    kind: Kind,
    job: Job,
    key: Sequence[str] = (),
    *,
    class_names: Sequence[str] = (),
) -> Dataset:
    """Make a report that holds the scores, and what made them.

    Args:
        result: the case, whose row is reported.
        source: what it was made from; None if that is no DICOM.
        evidence: the objects that were made of it, one at least.
        kind: which series.
        job: what made it.
        key: what else the UIDs depend on, such as the target.
        class_names: names of the classes 0, 1, ...
    """
    hd = extra("highdicom")
    coded = hd.sr.CodedConcept
    origin = [] if source is None else source.headers
    header = origin[0] if origin else evidence[0]
    tracked = str(header.SOPInstanceUID)
    algorithm = hd.sr.AlgorithmIdentification(
        name=f"medcf {job.bundle}",
        version=equipment(job)["software_versions"],
        parameters=[f"{name} sha256:{value}" for name, value in _hashes(job)] or None,
    )
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(job.uid("tracking", tracked, *key), "counterfactual"),
        finding_type=coded("COUNTERFACTUAL", OWN_CODES, "Counterfactual explanation"),
        algorithm_id=algorithm,
        measurements=[
            hd.sr.Measurement(coded(*coded_column(name)), value, coded(*_NO_UNITS))
            for name, value in _numbers(result.row)
        ],
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(coded(*coded_column(name)), coded(*value))
            for name, value in _answers(result.row, class_names)
        ],
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(each.SOPClassUID, each.SOPInstanceUID, _frames(source, each))
            for each in origin or evidence[:1]
        ],
    )
    observer = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=job.uid("device"), name="medcf", manufacturer_name="medcf", model_name=job.bundle
    )
    device = coded("121007", "DCM", "Device")
    content = hd.sr.MeasurementReport(
        hd.sr.ObservationContext(observer_device_context=hd.sr.ObserverContext(device, observer)),
        procedure_reported=coded("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=[group],
        title=coded("126000", "DCM", "Imaging Measurement Report"),
    )
    made = hd.sr.ComprehensiveSR(
        [_evidence(each, evidence[0].StudyInstanceUID) for each in (*origin, *evidence)],
        content[0],
        *("1.2", 1, "1.3", 1),  # until `identify` sets them
        manufacturer="medcf",
        is_complete=True,
    )
    dataset = identify(made, header, kind, job, key)
    for name in ("BodyPartExamined", "Laterality", "FrameOfReferenceUID"):  # a report has none
        dataset.pop(name, None)
    mark(dataset, job, kind.series, kind.what)
    return dataset


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Return the columns that are measured, without what is not known."""
    for name, value in row.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and math.isfinite(value) and name not in _CLASSES and not _LEFT_OUT.fullmatch(name):
            yield name, value


def _answers(row: Mapping[str, Any], class_names: Sequence[str]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Return the columns that are answered by yes or no, and the classes."""
    for name, value in row.items():
        if isinstance(value, bool):
            yield name, _ANSWERS[value]
        elif name in _CLASSES and isinstance(value, int):
            named = class_names[value] if 0 <= value < len(class_names) else f"class {value}"
            yield name, (f"CLASS{value}".replace("-", "_"), OWN_CODES, named[:64])
    if _NOVELTY not in row:
        yield _NOVELTY, ("NOT_TESTED", OWN_CODES, "Not tested")


def _hashes(job: Job) -> list[tuple[str, str]]:
    return [(name, value) for name, value in (("weights", job.weights), ("settings", job.settings)) if value]


def _frames(source: Source | None, header: Dataset) -> list[int] | None:
    """Return the numbers of the frames that were used, of an object that has several."""
    planes = () if source is None else source.planes
    frames = [plane.frame for plane in planes if plane.header is header and plane.num_frames > 1]
    numbers = reference(header, frames).get("ReferencedFrameNumber")
    return None if numbers is None else [int(number) for number in np.atleast_1d(numbers)]


def _evidence(each: Dataset, study: str) -> Dataset:
    """Return a header for highdicom that says which object it is, and nothing about a patient."""
    dataset = study_of(None)
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = each.get("SeriesInstanceUID") or each.SOPInstanceUID
    dataset.SOPClassUID, dataset.SOPInstanceUID = each.SOPClassUID, each.SOPInstanceUID
    return dataset
