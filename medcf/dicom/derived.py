# SPDX-License-Identifier: Apache-2.0
"""Derived images: instances of their source's own SOP class, with its geometry, its window and its stored range."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medcf.data.dicom.decoder import decode_frame
from medcf.data.dicom.header import open_dicom
from medcf.dicom.banner import draw_banner
from medcf.dicom.job import Job
from medcf.dicom.marks import code, mark, reference
from medcf.dicom.source import Plane, Source

__all__ = ["Kind", "derive", "encoded", "without_pixels"]

_MULTI_FRAME_ULTRASOUND, _ULTRASOUND = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.6.1"
_CAPTURE, _BYTES, _COLORS = (f"1.2.840.10008.5.1.4.1.1.7{end}" for end in ("", ".2", ".4"))
#: SOP classes of loops, and those of one of their frames.
_SINGLE = {_MULTI_FRAME_ULTRASOUND: _ULTRASOUND, **{f"{_CAPTURE}.{n}": _CAPTURE for n in range(1, 5)}}
_ADDED = ("113042", "DCM", "Pixel by pixel addition")  # a counterfactual is the input plus a difference

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_OF_THE_SOURCE = (  # what was true of the source only
    *("SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries"),
    *("IconImageSequence", "DigitalSignaturesSequence", "MACParametersSequence", "PixelDataProviderURL"),
    *("InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID", "OriginalAttributesSequence"),
    *("SourceImageSequence", "ReferencedImageSequence", "DerivationCodeSequence", "PyramidUID"),
)
_OF_COLOR = (
    *("PlanarConfiguration", "ICCProfile", "ColorSpace", "PaletteColorLookupTableUID", "RescaleSlope"),
    *("RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation"),
    *("VOILUTSequence", "VOILUTFunction", "ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *(f"{name}PaletteColorLookupTable{what}" for name in ("Red", "Green", "Blue") for what in ("Descriptor", "Data")),
    *(f"Segmented{name}PaletteColorLookupTableData" for name in ("Red", "Green", "Blue")),
)
_OF_A_LOOP = (
    *("NumberOfFrames", "FrameTime", "FrameTimeVector", "FrameIncrementPointer", "FrameDelay", "StartTrim"),
    *("StopTrim", "CineRate", "RecommendedDisplayFrameRate", "PreferredPlaybackSequencing", "PageNumberVector"),
    *("ActualFrameDuration", "FrameNumbersOfInterest", "FrameOfInterestDescription", "FrameOfInterestType"),
    *("RepresentativeFrameNumber", "EffectiveDuration", "FrameLabelVector", "FramePrimaryAngleVector", "HeartRate"),
    *("FrameSecondaryAngleVector", "SliceLocationVector", "DisplayWindowLabelVector", "RWaveTimeVector"),
)
_FRAME_TYPES = (
    "CTImageFrameTypeSequence",
    "MRImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "USImageDescriptionSequence",
)


@dataclass(frozen=True)
class Kind:
    """A series that derives from a case.

    Attributes:
        name: in UIDs and names of files.
        number: SeriesNumber.
        series: SeriesDescription.
        what: DerivationDescription, a sentence.
    """

    name: str
    number: int
    series: str
    what: str


def encoded(source: Source, values: NDArray[np.floating], *, banner: bool) -> list[NDArray[Any]]:
    """Return the stored values of new images, one per plane.

    Args:
        source: what they derive from.
        values: (X, Y) for a picture or (X, Y, Z) for a volume, in the units of `medcf.read`.
        banner: whether to write SYNTHETIC into each.
    """
    planes = [values.T] if values.ndim == 2 else [values[:, :, index].T for index in range(values.shape[2])]
    result = []
    for plane, image in zip(source.planes, planes, strict=True):
        stored = plane.encode(image)
        if banner:
            low, high = plane.scale.nearest(np.array([plane.shown.min(), plane.shown.max()]))
            stored = draw_banner(stored, low, high)
        result.append(stored)
    return result


def derive(
    source: Source, images: Sequence[NDArray[Any]], kind: Kind, job: Job, key: Sequence[str] = (), *, banner: bool
) -> list[Dataset]:
    """Make the instances of a derived series, one per file of the source.

    Args:
        source: what they derive from.
        images: (rows, columns) stored values, one per plane, from `encoded`.
        kind: which series.
        job: what made it.
        key: what else the UIDs depend on, such as the target.
        banner: whether letters were drawn into the images.

    Returns:
        The instances, in the order of the planes.
    """
    made = []
    for path in dict.fromkeys(plane.path for plane in source.planes):
        of_file = [(plane, image) for plane, image in zip(source.planes, images, strict=True) if plane.path == path]
        planes, arrays = [plane for plane, _ in of_file], [image for _, image in of_file]
        first = planes[0]
        whole = first.num_frames > 1 and len(planes) > 1
        dataset = without_pixels(first.header)
        frames = [plane.frame for plane in planes] if first.num_frames > 1 else []
        if not whole and first.num_frames > 1:
            _one_frame(dataset, first.frame)
        if first.recoded:
            _to_gray(dataset, whole=whole)
        parts = (job, kind, frames, key)
        _identify(dataset, first.header, *parts)
        dataset.SourceImageSequence = [reference(first.header, frames)]
        dataset.DerivationCodeSequence = [code(*_ADDED)]
        mark(dataset, job, kind.series, kind.what, burned=banner)
        _tell_frames(dataset, first.header, frames, kind, job)
        _set_pixels(dataset, _all_frames(planes, arrays) if whole else arrays[0])
        made.append(dataset)
    return made


def without_pixels(header: Dataset) -> Dataset:
    """Copy a header without pixels, private attributes, graphics on top of the image, and what holds for it alone."""
    kept = Dataset()
    left_out = {*_PIXELS, *_OF_THE_SOURCE}
    for tag in list(header.keys()):
        if tag.is_private or tag.group >> 8 == 0x60 or tag.element == 0:
            continue
        element = header[tag]
        if element.keyword not in left_out:
            kept.add(element)
    copied = deepcopy(kept)
    copied.remove_private_tags()  # in sequences, too
    return copied


def _identify(
    dataset: Dataset, header: Dataset, job: Job, kind: Kind, frames: Sequence[int], key: Sequence[str]
) -> None:
    """Give a copy its own UIDs, series number and image type."""
    series = str(header.get("SeriesInstanceUID") or header.SOPInstanceUID)
    dataset.SeriesInstanceUID = job.uid("series", kind.name, series, *key)
    shown = ",".join(map(str, frames))
    dataset.SOPInstanceUID = job.uid("instance", kind.name, str(header.SOPInstanceUID), shown, *key)
    dataset.SeriesNumber = kind.number
    if not dataset.get("StudyInstanceUID"):
        dataset.StudyInstanceUID = job.uid("study", str(header.SOPInstanceUID))
    if not any(dataset.get(name) for name in ("Laterality", "ImageLaterality", "BodyPartExamined")):
        dataset.Laterality = ""  # required, and may be empty, if nothing says which part of the body this is
    rest = [str(value) for value in header.get("ImageType") or []][2:]
    dataset.ImageType = ["DERIVED", "SECONDARY", *rest]


def _one_frame(dataset: Dataset, frame: int) -> None:
    """Turn the header of a loop into that of one of its frames."""
    for name in _OF_A_LOOP:
        if name in dataset:
            delattr(dataset, name)
    if groups := dataset.get("PerFrameFunctionalGroupsSequence"):
        dataset.NumberOfFrames = 1
        dataset.PerFrameFunctionalGroupsSequence = [groups[frame]]
    dataset.SOPClassUID = _SINGLE.get(dataset.SOPClassUID, dataset.SOPClassUID)


def _to_gray(dataset: Dataset, *, whole: bool) -> None:
    """Describe an image in color as one of eight gray bits."""
    for name in _OF_COLOR:
        if name in dataset:
            delattr(dataset, name)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    if "UltrasoundColorDataPresent" in dataset:
        dataset.UltrasoundColorDataPresent = 0
    if dataset.SOPClassUID == _COLORS and whole:
        dataset.SOPClassUID = _BYTES
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
        dataset.PresentationLUTShape = "IDENTITY"


def _tell_frames(dataset: Dataset, header: Dataset, frames: Sequence[int], kind: Kind, job: Job) -> None:
    """Let an enhanced object say of its frames, too, that and from what they derive (PS3.3 C.7.6.16.2.6)."""
    shared, own = dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")
    if not own:
        return
    for groups in (*(shared or ()), *own):
        for name in _FRAME_TYPES:
            for item in groups.get(name) or ():
                if "FrameType" in item:
                    item.FrameType = ["DERIVED", "SECONDARY", *list(item.FrameType)[2:]]
    for index, groups in enumerate(own):
        item = Dataset()
        item.DerivationDescription = f"{kind.what} {job.describe()}"[:1024]
        item.DerivationCodeSequence = [code(*_ADDED)]
        item.SourceImageSequence = [reference(header, [frames[0] if len(own) == 1 else index])]
        groups.DerivationImageSequence = [item]
    evidence, series, instance = Dataset(), Dataset(), Dataset()
    evidence.StudyInstanceUID, series.SeriesInstanceUID = header.StudyInstanceUID, header.SeriesInstanceUID
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    series.ReferencedSOPSequence, evidence.ReferencedSeriesSequence = [instance], [series]
    dataset.SourceImageEvidenceSequence = [evidence]


def _all_frames(planes: Sequence[Plane], arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return all frames of a file in its own order; those that are no part of the volume stay as they are."""
    new = {plane.frame: array for plane, array in zip(planes, arrays, strict=True)}
    count, path = planes[0].num_frames, planes[0].path
    header = open_dicom(path) if len(new) < count else None
    return np.stack([new[n] if n in new else decode_frame(path, header, n) for n in range(count)])  # type: ignore[arg-type]


def _set_pixels(dataset: Dataset, array: NDArray[Any]) -> None:
    """Store gray values uncompressed, in the bits that the header states."""
    rows, columns = array.shape[-2:]
    dataset.Rows, dataset.Columns = rows, columns
    if array.ndim == 3:
        dataset.NumberOfFrames = len(array)
    wide = int(dataset.BitsAllocated) > 8
    kind = "i" if int(dataset.PixelRepresentation) == 1 else "u"
    dataset.BitsAllocated = 8 * array.dtype.itemsize if array.dtype.itemsize > 1 or not wide else 16
    data = array.astype(np.dtype(f"<{kind}{int(dataset.BitsAllocated) // 8}")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if int(dataset.BitsAllocated) > 8 else "OB"
