# SPDX-License-Identifier: Apache-2.0
"""Where a counterfactual differs: the signed difference as a parametric map, and a segment of what differs much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medcf.dicom.derived import Kind
from medcf.dicom.job import Job
from medcf.dicom.marks import code, mark
from medcf.dicom.source import Source
from medcf.dicom.templates import OWN_CODES, equipment, extra, identify, refer_frames, template
from medcf.inference.case_result import CaseResult

__all__ = ["can_be_placed", "changed", "difference_map", "in_file_order", "planes_of", "segmentation"]

_SUBTRACTED = ("113062", "DCM", "Pixel by pixel subtraction")
_SEGMENTED = ("113076", "DCM", "Segmentation")
_SHOWN = 0.5  # end of the map's window, as of the panel's color bar
_UNITS = "in fractions of the full intensity range"


def planes_of(image: NDArray[Any]) -> NDArray[Any]:
    """Return an image (X, Y) or (X, Y, Z) as (planes, rows, columns)."""
    return np.ascontiguousarray((image[..., None] if image.ndim == 2 else image).transpose(2, 1, 0))


def changed(result: CaseResult, threshold: float) -> NDArray[np.bool_]:
    """Tell where the magnitude of the difference exceeds a threshold, (planes, rows, columns)."""
    return np.abs(planes_of(result.difference)) > threshold


def in_file_order(planes: NDArray[np.bool_], source: Source) -> NDArray[np.bool_]:
    """Return planes in the order of the files, with frames of a multi-frame object that are no part of the volume.

    Args:
        planes: (planes, rows, columns) in the order of the source's planes.
        source: what was read.
    """
    made = []
    for path in dict.fromkeys(plane.path for plane in source.planes):
        places = [place for place, plane in enumerate(source.planes) if plane.path == path]
        frames = [source.planes[place].frame for place in places]
        count = source.planes[places[0]].num_frames if len(places) > 1 else 1
        of_file = np.zeros((count, *planes.shape[1:]), bool)
        of_file[frames if len(places) > 1 else [0]] = planes[places]
        made.append(of_file)
    return np.concatenate(made)


def can_be_placed(source: Source) -> bool:
    """Tell whether a multi-frame object can hold the planes: one picture, or slices that state their position."""
    return len(source.planes) == 1 or all("ImagePositionPatient" in header for header in template(source))


def difference_map(result: CaseResult, source: Source, kind: Kind, job: Job, key: Sequence[str] = ()) -> Dataset:
    """Make a parametric map of the signed difference, float32, to the last bit.

    Args:
        result: the case.
        source: what it was made from.
        kind: which series.
        job: what made it.
        key: what else the UIDs depend on, such as the target.
    """
    hd = extra("highdicom")
    values = planes_of(result.difference).astype(np.float32)
    far = max(1.0, float(np.abs(values).max()))
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="DIFFERENCE",
        lut_explanation="counterfactual minus input",
        unit=hd.sr.CodedConcept("1", "UCUM", "no units"),
        value_range=(-far, far),
        slope=1.0,
        intercept=0.0,
    )
    # the class asks for a position; without one, the picture lies at the origin of a frame of reference of its own
    own_frame = job.uid("frame of reference", str(source.first.SOPInstanceUID))
    made = hd.pm.ParametricMap(
        template(source, own_frame, result.spacing),
        values,
        *_PLACEHOLDERS,
        **equipment(job),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.0, window_width=2 * _SHOWN)],
        content_label="DIFFERENCE",
        content_description="Counterfactual minus input",
    )
    dataset = _finished(made, source, kind, job, key, _SUBTRACTED)
    if dataset.FrameOfReferenceUID == own_frame and result.spacing is None:
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing  # nobody knows it
    return dataset


def segmentation(
    result: CaseResult, source: Source, kind: Kind, job: Job, key: Sequence[str] = (), *, threshold: float
) -> Dataset:
    """Make a binary segmentation of what differs by more than a threshold.

    Args:
        result: the case.
        source: what it was made from.
        kind: which series.
        job: what made it.
        key: what else the UIDs depend on, such as the target.
        threshold: least magnitude of the difference, in fractions of the full intensity range.
    """
    hd = extra("highdicom")
    mask = changed(result, threshold)
    key = (*key, f"threshold {threshold:g}")
    coded = hd.sr.CodedConcept
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"medcf {job.bundle}",
        version=equipment(job)["software_versions"],
        family=coded("123109", "DCM", "Artificial Intelligence"),
        parameters={"threshold": f"{threshold:g}"},
    )
    segment = hd.seg.SegmentDescription(
        1,
        f"|difference| > {threshold:g}",
        coded("309825002", "SCT", "Spatial and Relational Concept"),
        coded("CHANGED", OWN_CODES, "Region that a counterfactual changes"),
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm,
        tracking_uid=job.uid("tracking", str(source.first.SOPInstanceUID), *key),
        tracking_id="counterfactual change",
    )
    segment.SegmentDescription = f"|counterfactual minus input| > {threshold:g} {_UNITS}"
    made = hd.seg.Segmentation(
        template(source),
        mask.astype(np.uint8),
        hd.seg.SegmentationTypeValues.BINARY,
        [segment],
        *_PLACEHOLDERS,
        **equipment(job),
        content_label="CHANGED",
        content_description="What a counterfactual changes",
        omit_empty_frames=bool(mask.any()),
    )
    return _finished(made, source, kind, job, key, _SEGMENTED)


_PLACEHOLDERS = ("1.2", 1, "1.3", 1)  # UIDs and numbers of series and instance, until `identify` sets them


def _finished(
    made: Dataset, source: Source, kind: Kind, job: Job, key: Sequence[str], derivation: tuple[str, str, str]
) -> Dataset:
    frames = [str(plane.frame) for plane in source.planes if plane.num_frames > 1]
    dataset = identify(made, source.first, kind, job, (*key, *frames))
    refer_frames(dataset, source, code(*derivation))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if not shared.get("PixelMeasuresSequence"):
        shared.pop("PixelMeasuresSequence", None)  # highdicom leaves an empty one, and does not read it
    if dataset.Modality == "SEG":
        dataset.pop("Laterality", None)  # segments have regions of their own
    elif not dataset.get("Laterality") and not dataset.get("BodyPartExamined"):
        dataset.Laterality = ""
    if "PlanePositionSequence" not in dataset.PerFrameFunctionalGroupsSequence[0]:
        dataset.PatientOrientation = source.first.get("PatientOrientation") or ""
    mark(dataset, job, kind.series, kind.what, burned=False)
    return dataset
