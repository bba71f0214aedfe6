# SPDX-License-Identifier: Apache-2.0
"""Reads one frame of a DICOM image: mainly ultrasound, other modalities with a warning."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from medcf.data.dicom.decoder import decode_frame
from medcf.data.dicom.geometry import calibration
from medcf.data.dicom.header import count_dicom_frames, open_dicom, quiet_pydicom, use_functional_groups
from medcf.data.dicom.lut import InvalidHeader, to_display
from medcf.data.image import Pixels
from medcf.runtime.errors import UnreadableImage
from medcf.runtime.synthetic import says_synthetic

__all__ = ["read_dicom"]

logger = logging.getLogger(__name__)


@quiet_pydicom()
def read_dicom(path: Path, frame: int = 0) -> Pixels:
    """Read one frame.

    Args:
        path: the file, with or without a preamble.
        frame: index, from 0.

    Raises:
        UnreadableImage: if the file is damaged, is not an image, is a volume, has no such frame, or needs a decoder
            that is not installed (the message names it).
    """
    dataset = open_dicom(path)
    use_functional_groups(dataset, frame)
    modality = str(dataset.get("Modality", "") or "")
    if modality not in ("US", "IVUS", "CR", "DX", "OT", "SC", ""):
        logger.warning(
            "%s is neither an ultrasound image nor a radiograph (modality %s); reading it anyway", path.name, modality
        )
    with np.errstate(all="ignore"):
        stored = decode_frame(path, dataset, frame)
        try:
            array, value_range = to_display(stored, dataset)
            spacing, region, note = calibration(dataset)
        except InvalidHeader as error:
            raise UnreadableImage(path, f"is damaged DICOM ({error})", "Export it again.") from error
        except Exception as error:
            raise UnreadableImage(path, f"is damaged DICOM ({type(error).__name__})", "Export it again.") from error
    if note:
        logger.warning("%s: %s", path.name, note)
    if region is not None:
        top, left, bottom, right = region
        region = (left, top, right, bottom)
    return Pixels.picture(
        array,
        spacing,
        source_format="dicom",
        value_range=value_range,
        region=region,
        frame=frame,
        num_frames=count_dicom_frames(path, dataset),
        modality=modality,
        synthetic=says_synthetic(dataset),
    )
