# SPDX-License-Identifier: Apache-2.0
"""Secondary captures: images that no other SOP class fits, because they come from no DICOM object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from medcf.dicom.derived import Kind
from medcf.dicom.job import Job
from medcf.dicom.marks import mark, reference

__all__ = ["capture", "study_of"]

_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MULTI_FRAME = {8: f"{_CAPTURE}.2", 16: f"{_CAPTURE}.3", 24: f"{_CAPTURE}.4"}  # bits of a pixel
_OF_THE_STUDY = (
    *("SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName"),
    *("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"),
    *("StudyDescription", "PatientAge", "FrameOfReferenceUID", "BodyPartExamined", "Laterality"),
    *("PatientBirthTime", "PatientSize", "PatientWeight", "AdditionalPatientHistory", "OtherPatientIDs"),
    *("OtherPatientIDsSequence", "OtherPatientNames", "EthnicGroup", "PatientComments", "Occupation"),
    *("ReferencedPatientSequence", "ReferencedStudySequence", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy"),
    *("ProcedureCodeSequence", "MedicalAlerts", "Allergies", "SmokingStatus", "PregnancyStatus", "AdmissionID"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    "LongitudinalTemporalInformationModified",
)
#: Attributes that every object has, even if nothing is known of them.
_EMPTY = (
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
)


def capture(
    pixels: NDArray[Any],
    kind: Kind,
    job: Job,
    origin: str,
    key: Sequence[str] = (),
    *,
    source: Dataset | None = None,
    references: Sequence[Dataset] = (),
    spacing: tuple[float, float] | None = None,
    burned: bool = True,
) -> Dataset:
    """Make a secondary capture.

    Args:
        pixels: uint8 or uint16 (rows, columns), or (frames, rows, columns); uint8 (..., 3) for colors.
        kind: which series.
        job: what made it.
        origin: what it was made from, such as the source's UID or the SHA-256 of the input.
        key: what else the UIDs depend on.
        source: header whose patient and study it belongs to; None for no patient, in a study of its own.
        references: headers of what it was made from.
        spacing: mm between rows and between columns.
        burned: whether letters were drawn into the image.
    """
    dataset = study_of(source)
    if not dataset.get("StudyInstanceUID"):
        dataset.StudyInstanceUID = job.uid("study", origin if source is None else str(source.SOPInstanceUID))
    dataset.Modality = str(source.get("Modality", "OT") or "OT") if source is not None else "OT"
    dataset.ConversionType = "WSD"
    dataset.Manufacturer = "medcf"
    dataset.SeriesInstanceUID = job.uid("series", kind.name, origin, *key)
    dataset.SOPInstanceUID = job.uid("instance", kind.name, origin, *key)
    dataset.SeriesNumber, dataset.InstanceNumber = kind.number, 1
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.PatientOrientation = ""
    if references:
        dataset.SourceImageSequence = [reference(header) for header in references]
    mark(dataset, job, kind.series, kind.what, burned=burned)
    _set_pixels(dataset, np.asarray(pixels), spacing)
    return dataset


def study_of(source: Dataset | None) -> Dataset:
    """Return the attributes of the patient and the study; empty ones without a source."""
    dataset = Dataset()
    for name in _OF_THE_STUDY:
        if source is not None and name in source:
            dataset[name] = source[name]
    for name in _EMPTY:
        if name not in dataset:
            setattr(dataset, name, "")
    return dataset


def _set_pixels(dataset: Dataset, pixels: NDArray[Any], spacing: tuple[float, float] | None) -> None:
    color = pixels.shape[-1] == 3 and pixels.ndim in (3, 4) and pixels.dtype == np.uint8
    frames = pixels.ndim == (4 if color else 3)
    bits = 8 * pixels.dtype.itemsize
    dataset.SOPClassUID = _MULTI_FRAME[24 if color else bits] if frames else _CAPTURE
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if color else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if color else 1
    dataset.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
    if frames:
        dataset.NumberOfFrames = len(pixels)
        dataset.FrameIncrementPointer = 0x00182001
        dataset.PageNumberVector = list(range(1, len(pixels) + 1))
        if not color:
            dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
            dataset.PresentationLUTShape = "IDENTITY"
    if spacing is not None:
        dataset.NominalScannedPixelSpacing = [format_number_as_ds(float(mm)) for mm in spacing]
    if dataset.get("Laterality") is None and not dataset.get("BodyPartExamined"):
        dataset.Laterality = ""
    data = pixels.astype(f"<u{bits // 8}").tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
