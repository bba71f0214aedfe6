# SPDX-License-Identifier: Apache-2.0
"""The DICOM objects that a case came from, with the values as stored and as they were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from medcf.data.dicom.decoder import decode_frame
from medcf.data.dicom.geometry import arrange
from medcf.data.dicom.header import open_dicom, quiet_pydicom, use_functional_groups
from medcf.data.dicom.lut import to_display
from medcf.data.dicom.series import functional_group, list_dicom_files, open_slices
from medcf.data.image import LUMINANCE_WEIGHTS
from medcf.dicom.stored import EIGHT_BITS, Scale, picture_scale, volume_scale
from medcf.inference.case_result import CaseResult

__all__ = ["Plane", "Source", "open_source"]


@dataclass(frozen=True, eq=False)
class Plane:
    """A picture, or one slice of a volume.

    Attributes:
        path: its file.
        header: of that file, as it is written there.
        frame: index of the frame within the file.
        num_frames: number of frames in the file.
        stored: (rows, columns) stored values; gray values in eight bits for what is in color.
        shown: (rows, columns) the same as read: 0 to 1 for a picture, a volume's own units.
        scale: what stored values stand for.
        recoded: whether the file itself holds colors.
    """

    path: Path
    header: Dataset
    frame: int
    num_frames: int
    stored: NDArray[np.generic] = field(repr=False)
    shown: NDArray[np.float32] = field(repr=False)
    scale: Scale = field(repr=False)
    recoded: bool = False

    def encode(self, values: NDArray[np.floating]) -> NDArray[np.generic]:
        """Return the stored values for new ones; what did not change stays as it was stored, to the last bit.

        Args:
            values: (rows, columns) in the units of ``shown``.
        """
        new = self.scale.nearest(values)
        changed = values != self.shown
        result = np.where(changed, new, self.stored)
        return result.astype(self.stored.dtype)


@dataclass(frozen=True, eq=False)
class Source:
    """What a case came from.

    Attributes:
        planes: the picture, or the slices of a volume in the order of its third axis.
    """

    planes: Sequence[Plane]

    @property
    def first(self) -> Dataset:
        """Header of the first plane."""
        return self.planes[0].header

    @property
    def headers(self) -> list[Dataset]:
        """The headers of the files, each once, in the order of the planes."""
        return list({plane.path: plane.header for plane in self.planes}.values())


@quiet_pydicom()
def open_source(result: CaseResult) -> Source | None:
    """Open the files of a case again; None if they are not DICOM.

    Raises:
        UnreadableImage: if a file is gone or has changed.
    """
    if result.source_format != "dicom":
        return None
    files = list(result.files or (result.path,))
    if len(files) == 1 and files[0].is_dir():
        files = list_dicom_files(files[0])
    if result.original.ndim == 2:
        return Source([_picture(files[0], int(result.row.get("frame", 0)))])
    headers = {path: open_dicom(path) for path in files}
    slices, _ = arrange([one for path, header in headers.items() for one in open_slices(path, header)])
    raw = {path: dcmread(path, force=True, defer_size=1024) for path in headers}
    planes = []
    for index, one in enumerate(slices):
        header = headers[one.path]
        stored = decode_frame(one.path, header, one.frame)
        group = functional_group(header, one.frame, "PixelValueTransformationSequence")
        shown = result.original[:, :, index].T  # with what reading put where there was no measurement
        scale = volume_scale(header, group, stored)
        planes.append(Plane(one.path, raw[one.path], one.frame, _frames(header), stored, shown, scale))
    return Source(planes)


def _picture(path: Path, frame: int) -> Plane:
    raw, header = dcmread(path, force=True, defer_size=1024), open_dicom(path)
    use_functional_groups(header, frame)
    stored = decode_frame(path, header, frame)
    shown, _ = to_display(stored, header)
    if stored.ndim == 2 and header.PhotometricInterpretation != "PALETTE COLOR":
        return Plane(path, raw, frame, _frames(header), stored, shown, picture_scale(header, stored))
    if shown.ndim == 3:
        shown = shown @ np.array(LUMINANCE_WEIGHTS, np.float32)
    gray = EIGHT_BITS.nearest(shown)
    return Plane(path, raw, frame, _frames(header), gray, (gray / 255).astype(np.float32), EIGHT_BITS, True)


def _frames(header: Dataset) -> int:
    return int(header.get("NumberOfFrames", None) or 1)
