# SPDX-License-Identifier: Apache-2.0
"""What highdicom is given and what it gives back: plain headers in, objects that are the same twice out.

highdicom copies patient and study from the headers of the source and refuses those with an unusual value. It gets
headers with nothing but a position; patient, study and references are set afterward as the source has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from medcf import __version__
from medcf.data.dicom.series import functional_group
from medcf.dicom.capture import study_of
from medcf.dicom.derived import Kind
from medcf.dicom.job import Job
from medcf.dicom.marks import reference
from medcf.dicom.source import Plane, Source

__all__ = ["OWN_CODES", "equipment", "extra", "identify", "refer_frames", "template"]

OWN_CODES = "99MEDCF"
"""Coding scheme of what no public one has a code for."""

_CT, _CAPTURE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
_UNKNOWN_DATE, _UNKNOWN_TIME = "19000101", "000000"
_OF_THE_CLOCK = {  # when a program ran is no part of what it made
    "ContentDate": ("ContentDate", "StudyDate"),
    "ContentTime": ("ContentTime", "StudyTime"),
    "PresentationCreationDate": ("ContentDate", "StudyDate"),
    "PresentationCreationTime": ("ContentTime", "StudyTime"),
}
_DROPPED = ("InstanceCreationDate", "InstanceCreationTime")
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def extra(name: str) -> ModuleType:
    """Import a package of the extra ``dicom``.

    Raises:
        ImportError: if it is not installed; names the extra.
    """
    if find_spec(name.partition(".")[0]) is None:
        raise ImportError(f"{name} is not installed: python -m pip install 'medcf[dicom]'.", name=name)
    return import_module(name)


def template(source: Source, frame_of_reference: str = "", spacing: tuple[float, ...] | None = None) -> list[Dataset]:
    """Return headers for highdicom, one per plane: a position and no patient.

    Args:
        source: what an object is made from.
        frame_of_reference: UID of one in which a picture lies at the origin, if its source states no position, as
            ultrasound does not; without it, highdicom puts such a picture into no coordinate system.
        spacing: of such a picture in mm, between columns and between rows.
    """
    planes, step = source.planes, 0.0
    if len(planes) > 1:
        ends = [
            np.array(_group(plane, "PlanePosition").ImagePositionPatient, float) for plane in (planes[0], planes[-1])
        ]
        step = float(np.linalg.norm(ends[1] - ends[0])) / (len(planes) - 1)
    made = []
    for number, plane in enumerate(planes):
        dataset = study_of(None)
        # until `identify` and `refer_frames` set them; highdicom writes some to its log
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = "1.1", "1.2", f"1.3.{number}"
        dataset.SOPClassUID = _CAPTURE
        dataset.Rows, dataset.Columns = plane.stored.shape
        dataset.Modality = str(plane.header.get("Modality") or "OT")
        for name in _LOSSY:
            if plane.header.get(name):
                dataset[name] = plane.header[name]
        _set_position(dataset, plane, step)
        if frame_of_reference and "ImagePositionPatient" not in dataset:
            dataset.SOPClassUID, dataset.FrameOfReferenceUID = _CT, frame_of_reference
            dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
            between = (1.0, 1.0) if spacing is None else spacing
            dataset.PixelSpacing = [format_number_as_ds(float(between[1])), format_number_as_ds(float(between[0]))]
            dataset.SliceThickness = dataset.get("SliceThickness")
        made.append(dataset)
    return made


def _group(plane: Plane, name: str) -> Dataset:
    return functional_group(plane.header, plane.frame, f"{name}Sequence")


def _set_position(dataset: Dataset, plane: Plane, step: float) -> None:
    measures = _group(plane, "PixelMeasures")
    spacing = measures.get("PixelSpacing")
    if spacing:
        dataset.PixelSpacing = [format_number_as_ds(float(mm)) for mm in spacing]
    thickness = float(measures.get("SliceThickness") or 0) or step
    if thickness:
        dataset.SliceThickness = format_number_as_ds(thickness)
    frame_of_reference = plane.header.get("FrameOfReferenceUID")
    position = _group(plane, "PlanePosition").get("ImagePositionPatient")
    turn = _group(plane, "PlaneOrientation").get("ImageOrientationPatient")
    if not thickness:
        dataset.pop("PixelSpacing", None)  # highdicom does not read one without the other
        return
    if not (frame_of_reference and position and turn and spacing):
        return
    dataset.SOPClassUID, dataset.FrameOfReferenceUID = _CT, frame_of_reference
    dataset.ImagePositionPatient = [format_number_as_ds(float(mm)) for mm in position]
    dataset.ImageOrientationPatient = [format_number_as_ds(float(cosine)) for cosine in turn]


def equipment(job: Job) -> dict[str, str]:
    """Return what highdicom asks for of the maker of an object."""
    serial = job.weights[:16] or "0"
    return {
        "manufacturer": "medcf",
        "manufacturer_model_name": job.bundle,
        "software_versions": __version__,
        "device_serial_number": serial,
    }


def identify(made: Dataset, header: Dataset, kind: Kind, job: Job, key: Sequence[str] = ()) -> Dataset:
    """Turn an object of highdicom into a plain one that depends on nothing but its source and its job.

    Args:
        made: the object.
        header: whose patient and study it belongs to.
        kind: which series.
        job: what made it.
        key: what the UIDs depend on beside the source.
    """
    dataset = Dataset()
    dataset.update({tag: made[tag] for tag in made.keys()})  # noqa: SIM118 - iterating gives elements
    known = study_of(header)
    known.pop("FrameOfReferenceUID", None)  # the object has one already, or none
    dataset.update(known)
    dataset.StudyInstanceUID = header.get("StudyInstanceUID") or job.uid("study", str(header.SOPInstanceUID))
    for name in _DROPPED:
        dataset.pop(name, None)
    for name, when in _OF_THE_CLOCK.items():
        if name in dataset:
            setattr(dataset, name, _when(header, when))
    series = str(header.get("SeriesInstanceUID") or header.SOPInstanceUID)
    dataset.SeriesInstanceUID = job.uid("series", kind.name, series, *key)
    dataset.SOPInstanceUID = job.uid("instance", kind.name, str(header.SOPInstanceUID), *key)
    dataset.SeriesNumber, dataset.InstanceNumber = kind.number, 1
    for maker in dataset.get("ContributingEquipmentSequence") or ():
        maker.pop("ContributionDateTime", None)
    for element in dataset.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = job.uid("dimensions", dataset.SOPInstanceUID)
    return dataset


def _when(header: Dataset, names: Sequence[str]) -> str:
    """Return the source's own date or time, if it is one."""
    pattern, unknown = (r"\d{8}", _UNKNOWN_DATE) if names[0].endswith("Date") else (r"\d{6}(\.\d{1,6})?", _UNKNOWN_TIME)
    values = (str(header.get(name) or "").strip() for name in names)
    return next((value for value in values if re.fullmatch(pattern, value)), unknown)


def refer_frames(dataset: Dataset, source: Source, derivation: Dataset) -> None:
    """Let each frame of a multi-frame object refer to the plane that it was made from, and the object to all files.

    Args:
        dataset: changed in place.
        source: what it was made from.
        derivation: code of how.
    """
    places = {}
    for plane in source.planes:
        position = _group(plane, "PlanePosition").get("ImagePositionPatient")
        places[_rounded(position)] = plane
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        position = groups.get("PlanePositionSequence")
        several = len(source.planes) > 1
        plane = places[_rounded(position[0].ImagePositionPatient)] if several else source.planes[0]
        item = Dataset()
        item.DerivationCodeSequence = [derivation]
        item.SourceImageSequence = [reference(plane.header, [plane.frame] if plane.num_frames > 1 else [])]
        groups.DerivationImageSequence = [item]
    dataset.SourceImageSequence = [reference(header) for header in source.headers]
    series = Dataset()
    series.SeriesInstanceUID = source.first.get("SeriesInstanceUID") or source.first.SOPInstanceUID
    series.ReferencedInstanceSequence = []
    for header in source.headers:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        series.ReferencedInstanceSequence.append(item)
    dataset.ReferencedSeriesSequence = [series]


def _rounded(position: Sequence[float] | None) -> tuple[float, ...]:
    return tuple(round(float(mm), 3) for mm in position or ())
