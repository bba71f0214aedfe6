# SPDX-License-Identifier: Apache-2.0
"""How to show a counterfactual: its window, SYNTHETIC on top, and an outline of the largest change."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy import ndimage
from skimage import measure

from medcf import __version__
from medcf.data.dicom.series import functional_group
from medcf.dicom.capture import study_of
from medcf.dicom.derived import Kind
from medcf.dicom.job import Job
from medcf.dicom.marks import mark
from medcf.dicom.templates import equipment, identify

__all__ = ["largest_change", "presentation"]

_GRAYSCALE_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
_LAYER = "MEDCF"
_WORDS = "SYNTHETIC, not for diagnosis"
_BOX = ([0.02, 0.93], [0.98, 0.99])  # of the displayed area
_WINDOW = (*("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence"),)
_RESCALING = ("RescaleIntercept", "RescaleSlope", "RescaleType")
_SMOOTH = 0.5  # pixels by which an outline may be simplified

Frame = tuple[Dataset, int | None]
"""An image, and for one of several frames its index."""


def largest_change(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected part of a mask (planes, rows, columns); nothing if it is empty.

    Example:
        >>> largest_change(np.array([[[True, False, True, True]]])).astype(int).tolist()
        [[[0, 0, 1, 1]]]
    """
    labels, count = ndimage.label(mask)
    if not count:
        return np.zeros_like(mask)
    sizes = np.bincount(labels.ravel())[1:]
    return labels == 1 + int(sizes.argmax())


def presentation(
    images: Sequence[Dataset], region: NDArray[np.bool_], kind: Kind, job: Job, key: Sequence[str] = ()
) -> list[Dataset]:
    """Make presentation states for a derived series: one for each rescaling, of which a state holds only one.

    Args:
        images: the derived series; gray.
        region: (planes, rows, columns) what is outlined, in the order of the images and their frames.
        kind: which series.
        job: what made them.
        key: what else the UIDs depend on, such as the target.
    """
    frames = [frame for image in images for frame in _frames_of(image)]
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, frame in enumerate(frames):
        groups.setdefault(tuple(str(_rescaling(frame).get(name, "")) for name in _RESCALING), []).append(place)
    made = []
    for number, places in enumerate(groups.values()):
        dataset = _state([frames[place] for place in places], [region[place] for place in places], kind, job)
        dataset = identify(dataset, images[0], kind, job, (*key, str(number)))
        dataset.SeriesInstanceUID = job.uid("series", kind.name, str(images[0].SeriesInstanceUID), *key)
        dataset.InstanceNumber = number + 1
        mark(dataset, job, kind.series, kind.what)
        made.append(dataset)
    return made


def _frames_of(image: Dataset) -> list[Frame]:
    count = int(image.get("NumberOfFrames") or 1)
    return [(image, None)] if count == 1 else [(image, index) for index in range(count)]


def _rescaling(frame: Frame) -> Dataset:
    return functional_group(frame[0], frame[1] or 0, "PixelValueTransformationSequence")


def _state(frames: Sequence[Frame], regions: Sequence[NDArray[np.bool_]], kind: Kind, job: Job) -> Dataset:
    first = frames[0][0]
    dataset = study_of(first)
    dataset.pop("FrameOfReferenceUID", None)
    dataset.SOPClassUID, dataset.Modality = _GRAYSCALE_STATE, "PR"
    dataset.Manufacturer, dataset.ManufacturerModelName = "medcf", job.bundle
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = __version__, equipment(job)["device_serial_number"]
    dataset.ContentLabel, dataset.ContentDescription = "COUNTERFACTUAL", kind.series[:64]
    for name in ("ContentCreatorName", "PresentationCreationDate", "PresentationCreationTime"):
        setattr(dataset, name, "")  # the last two are set from the source
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedImageSequence = first.SeriesInstanceUID, _references(frames)
    dataset.ReferencedSeriesSequence = [series]
    dataset.GraphicAnnotationSequence = [_text(), *_outlines(frames, regions)]
    layer = Dataset()
    layer.GraphicLayer, layer.GraphicLayerOrder, layer.GraphicLayerDescription = _LAYER, 1, "Marks of medcf"
    dataset.GraphicLayerSequence = [layer]
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner = [1, 1], [first.Columns, first.Rows]
    area.PresentationSizeMode = "SCALE TO FIT"
    _set_shape(area, first)
    dataset.DisplayedAreaSelectionSequence = [area]
    _set_tables(dataset, frames)
    return dataset


def _references(frames: Sequence[Frame]) -> list[Dataset]:
    """Refer to images, each once, and to the frames of those that have several."""
    numbers: dict[str, tuple[Dataset, list[int]]] = {}
    for image, index in frames:
        numbers.setdefault(str(image.SOPInstanceUID), (image, []))[1].extend([] if index is None else [index + 1])
    references = []
    for image, chosen in numbers.values():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        if chosen and len(chosen) < int(image.NumberOfFrames):
            item.ReferencedFrameNumber = chosen
        references.append(item)
    return references


def _text() -> Dataset:
    words = Dataset()
    words.UnformattedTextValue, words.BoundingBoxAnnotationUnits = _WORDS, "DISPLAY"
    words.BoundingBoxTopLeftHandCorner, words.BoundingBoxBottomRightHandCorner = _BOX
    words.BoundingBoxTextHorizontalJustification = "CENTER"
    annotation = Dataset()
    annotation.GraphicLayer, annotation.TextObjectSequence = _LAYER, [words]
    return annotation


def _outlines(frames: Sequence[Frame], regions: Sequence[NDArray[np.bool_]]) -> list[Dataset]:
    made = []
    for frame, region in zip(frames, regions, strict=True):
        lines = [] if not region.any() else measure.find_contours(np.pad(region, 1).astype(np.float32), 0.5)
        if not lines:
            continue
        annotation = Dataset()
        annotation.ReferencedImageSequence, annotation.GraphicLayer = _references([frame]), _LAYER
        annotation.GraphicObjectSequence = [_polyline(line) for line in lines]
        made.append(annotation)
    return made


def _polyline(contour: NDArray[np.float64]) -> Dataset:
    """Return a closed line from (row, column) of a padded mask; DICOM counts columns first, from a pixel's corner."""
    points = measure.approximate_polygon(contour, _SMOOTH)[:, ::-1] - 1 + 0.5
    line = Dataset()
    line.GraphicAnnotationUnits, line.GraphicDimensions, line.NumberOfGraphicPoints = "PIXEL", 2, len(points)
    line.GraphicData = [float(value) for value in points.astype(np.float32).ravel()]
    line.GraphicType, line.GraphicFilled = "POLYLINE", "N"
    return line


def _set_shape(area: Dataset, image: Dataset) -> None:
    """State the shape of a pixel: by its spacing if that is known, else by the aspect ratio."""
    spacing = functional_group(image, 0, "PixelMeasuresSequence").get("PixelSpacing")
    if spacing:
        area.PresentationPixelSpacing = spacing
    else:
        area.PresentationPixelAspectRatio = image.get("PixelAspectRatio") or [1, 1]


def _set_tables(dataset: Dataset, frames: Sequence[Frame]) -> None:
    """Copy the rescaling, the windows and the polarity of the images."""
    rescaling = _rescaling(frames[0])
    if "RescaleSlope" in rescaling and "RescaleIntercept" in rescaling:
        dataset.RescaleIntercept, dataset.RescaleSlope = rescaling.RescaleIntercept, rescaling.RescaleSlope
        dataset.RescaleType = rescaling.get("RescaleType") or "US"
    elif "ModalityLUTSequence" in frames[0][0]:
        dataset.ModalityLUTSequence = deepcopy(frames[0][0].ModalityLUTSequence)
    windows: dict[str, tuple[Dataset, list[Frame]]] = {}
    for image, index in frames:
        group = functional_group(image, index or 0, "FrameVOILUTSequence")
        item = Dataset()
        for name in _WINDOW:
            if name in group:
                item[name] = deepcopy(group[name])
        if "WindowCenter" in item or "VOILUTSequence" in item:
            windows.setdefault(item.to_json(), (item, []))[1].append((image, index))
    for item, shown in windows.values():
        if len(shown) < len(frames):
            item.ReferencedImageSequence = _references(shown)
    if windows:
        dataset.SoftcopyVOILUTSequence = [item for item, _ in windows.values()]
    inverse = frames[0][0].PhotometricInterpretation == "MONOCHROME1"
    dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
