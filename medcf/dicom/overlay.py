# SPDX-License-Identifier: Apache-2.0
"""The difference in color over the gray input, as captures, which every viewer shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medcf.dicom.banner import draw_banner
from medcf.dicom.capture import capture
from medcf.dicom.derived import Kind
from medcf.dicom.job import Job
from medcf.dicom.maps import planes_of
from medcf.dicom.marks import reference
from medcf.dicom.source import Source
from medcf.inference.case_result import CaseResult
from medcf.inference.drawing import colored_difference

__all__ = ["overlay"]

_LIMIT = 0.5  # difference at full color, as in the panel
_GRAYS, _STEPS = 256, 255  # levels of the input, and of a difference to either side


def overlay(
    result: CaseResult,
    source: Source | None,
    kind: Kind,
    job: Job,
    origin: str,
    key: Sequence[str] = (),
    *,
    banner: bool,
) -> list[Dataset]:
    """Make captures in color: red is brighter than the input, blue is darker.

    Args:
        result: the case.
        source: what it was made from; None if that is no DICOM.
        kind: which series.
        job: what made them.
        origin: what they were made from, for their UIDs.
        key: what else the UIDs depend on, such as the target.
        banner: whether to write SYNTHETIC into each.

    Returns:
        One capture per slice.
    """
    low, high = (0.0, 1.0) if result.original.ndim == 2 else result.window
    scale = (_GRAYS - 1) / max(high - low, 1e-12)
    grays, differences = planes_of(result.original), planes_of(result.difference)
    spacing = None if result.spacing is None else (float(result.spacing[1]), float(result.spacing[0]))
    made = []
    for index, (image, difference) in enumerate(zip(grays, differences, strict=True)):
        gray = np.rint(((image - low) * scale).clip(0, _GRAYS - 1)).astype(np.intp)
        step = np.rint((difference / _LIMIT).clip(-1, 1) * _STEPS).astype(np.intp) + _STEPS
        pixels = _colors()[gray, step]
        if banner:
            pixels = _with_banner(pixels)
        plane = None if source is None else source.planes[index]
        place = (*key, str(index)) if plane is None else (*key, str(plane.header.SOPInstanceUID), str(plane.frame))
        dataset = capture(
            pixels,
            kind,
            job,
            origin,
            place,
            source=None if plane is None else plane.header,
            spacing=spacing,
            burned=banner,
        )
        if plane is not None:
            frames = [plane.frame] if plane.num_frames > 1 else []
            dataset.SourceImageSequence = [reference(plane.header, frames)]
        dataset.SeriesInstanceUID = job.uid("series", kind.name, origin, *key)
        dataset.InstanceNumber = index + 1
        made.append(dataset)
    return made


@cache
def _colors() -> NDArray[np.uint8]:
    """Return the colors of each gray and each difference, (grays, differences, 3)."""
    grays, strengths = np.linspace(0, 1, _GRAYS), np.linspace(-_LIMIT, _LIMIT, 2 * _STEPS + 1)
    shown = colored_difference(*np.meshgrid(grays, strengths, indexing="ij"), _LIMIT)
    return np.rint(shown * 255).astype(np.uint8)


def _with_banner(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([draw_banner(pixels[..., channel], 0, 255) for channel in range(3)], axis=-1)
