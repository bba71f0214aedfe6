# SPDX-License-Identifier: Apache-2.0
"""What every object says of itself: that it is synthetic, from what and by what it was made. Nothing else is saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from medcf import __version__
from medcf.dicom.job import Job
from medcf.runtime.synthetic import UID_ROOT

__all__ = ["check_marks", "code", "mark", "reference", "save"]

#: Codes of PS3.16: why an image is referred to, what a device did, how an image was derived.
_SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")
_SYNTHESIZING = ("109100", "DCM", "Synthesizing Equipment")
_NOT_FOR_DIAGNOSIS = "SYNTHETIC, made by a diffusion model. Not for diagnosis."
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LONGEST = {"SeriesDescription": 64, "DerivationDescription": 1024}


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def reference(header: Dataset, frames: Sequence[int] = ()) -> Dataset:
    """Return a reference to a source object.

    Args:
        header: of the source.
        frames: indices of the frames that were used, from 0, if the source has several.
    """
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if frames and header.SOPClassUID != _CAPTURE:  # some captures have frames that their class does not allow
        item.ReferencedFrameNumber = [frame + 1 for frame in frames]
    item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = [code(*_SOURCE_IMAGE)]
    return item


def mark(dataset: Dataset, job: Job, series: str, what: str, *, burned: bool | None = None) -> None:
    """Let an object say that it is synthetic, and what made it.

    Args:
        dataset: changed in place.
        job: what made it.
        series: text of its series, for lists in viewers; shortened to what DICOM holds.
        what: how it was derived, in a sentence.
        burned: whether letters were drawn into the image; None if it is no image.
    """
    dataset.SyntheticData = "YES"
    dataset.SeriesDescription = f"SYNTHETIC {series}"[: _LONGEST["SeriesDescription"]]
    if burned is not None:
        dataset.ImageComments = _NOT_FOR_DIAGNOSIS
        dataset.DerivationDescription = f"{what} {job.describe()}"[: _LONGEST["DerivationDescription"]]
        dataset.BurnedInAnnotation = "YES" if burned else dataset.get("BurnedInAnnotation") or "NO"
    item = Dataset()
    item.Manufacturer, item.ManufacturerModelName, item.SoftwareVersions = "medcf", job.bundle, __version__
    item.PurposeOfReferenceCodeSequence = [code(*_SYNTHESIZING)]
    item.ContributionDescription = f"{what} {job.describe()}"[: _LONGEST["DerivationDescription"]]
    others = [
        each for each in dataset.get("ContributingEquipmentSequence") or () if each.get("Manufacturer") != "medcf"
    ]
    dataset.ContributingEquipmentSequence = [*others, item]


def check_marks(dataset: Dataset, sources: Iterable[Dataset] = ()) -> None:
    """Refuse an object that could be mistaken for a patient's image, or cannot be traced to what made it.

    Args:
        dataset: the object.
        sources: headers of the objects that it was made from; none for an image that was made from noise.

    Raises:
        ValueError: if it does not say that it is synthetic, has a UID that is not its own, does not refer to its
            source, does not name its maker, or shows a patient without having a source.
    """
    origins = {str(header.SOPInstanceUID) for header in sources}
    series = {str(header.get("SeriesInstanceUID", "")) for header in sources}
    missing = []
    if dataset.get("SyntheticData") != "YES":
        missing.append("SyntheticData is not YES")
    for name, taken in (("SOPInstanceUID", origins), ("SeriesInstanceUID", series)):
        uid = str(dataset.get(name, ""))
        if not uid.startswith(UID_ROOT) or uid in taken:
            missing.append(f"{name} is not its own")
    if not any(each.get("Manufacturer") == "medcf" for each in dataset.get("ContributingEquipmentSequence") or ()):
        missing.append("ContributingEquipmentSequence does not name medcf")
    referred = {str(each.value) for each in dataset.iterall() if each.keyword == "ReferencedSOPInstanceUID"}
    if origins and not origins & referred:
        missing.append("it refers to no source")
    if not origins and (dataset.get("PatientName") or dataset.get("PatientID")):
        missing.append("it names a patient, and has no source")
    if missing:
        raise ValueError(f"A DICOM object is not written, because it could be mistaken: {'; '.join(missing)}.")


def save(dataset: Dataset, path: Path, sources: Sequence[Dataset] = ()) -> Path:
    """Write an object, uncompressed, if it has every mark.

    Args:
        dataset: the object.
        path: file, in a folder that is created.
        sources: headers of what it was made from.

    Raises:
        ValueError: see `check_marks`.
    """
    check_marks(dataset, sources)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = UID(f"{UID_ROOT}1"), f"medcf {__version__}"[:16]
    dataset.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return path
