# SPDX-License-Identifier: Apache-2.0
"""Rendered images as files: what the 2D phantoms share of PNG, NIfTI and DICOM, and of their tables."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

__all__ = [
    "SUFFIXES",
    "Spaced",
    "check_formats",
    "phantom_instance",
    "ultrasound_region",
    "write_nifti",
    "write_picture",
    "write_png",
    "write_table",
]

#: Formats of pictures and the suffixes of their files.
SUFFIXES = {"dicom": ".dcm", "png": ".png", "nifti": ".nii.gz"}


class Spaced(Protocol):
    """A rendered sample: all that a picture's file needs of it is its spacing."""

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Distances between rows and between columns in mm."""


def check_formats(formats: Sequence[str], known: Collection[str] = tuple(SUFFIXES)) -> None:
    """Refuse an unknown format, or none.

    Raises:
        ValueError: if a format is unknown, or there is none.
    """
    unknown = sorted(set(formats) - set(known))
    if unknown or not formats:
        raise ValueError(f"formats {unknown} are unknown; choose from {', '.join(known)}")


def write_picture(path: Path, pixels: NDArray[np.uint8], sample: Any, write_dicom: Callable[..., None]) -> None:
    """Write pixels in the format that the file's suffix names; what is in a phantom's DICOM is its own matter.

    Args:
        path: file with suffix .png (spacing in the pHYs chunk), .dcm or .nii.gz (first axis across, second axis down).
        pixels: (H, W) uint8.
        sample: the rendered sample.
        write_dicom: called with the three.
    """
    if path.name.endswith(".dcm"):
        write_dicom(path, pixels, sample)
    else:
        (write_nifti if path.name.endswith(".nii.gz") else write_png)(path, pixels, sample)


def write_png(path: Path, pixels: NDArray[Any], sample: Spaced) -> None:
    """Write a PNG; its pHYs chunk holds the spacing."""
    row, col = sample.spacing_mm
    Image.fromarray(pixels).save(path, dpi=(25.4 / col, 25.4 / row))


def write_nifti(path: Path, pixels: NDArray[Any], sample: Spaced) -> None:
    """Write a NIfTI with shape (W, H, 1): first axis across, second axis down the image, affine in mm (RAS+)."""
    row, col = sample.spacing_mm
    image = nib.Nifti1Image(np.ascontiguousarray(pixels.T[..., None]), np.diag([-col, -row, 1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def phantom_instance(pixels: NDArray[np.uint8], key: str, state: str, name: str, number: int) -> Dataset:
    """Return an instance of a phantom whose UIDs depend only on it; its SOP class, modality and geometry are missing.

    Args:
        pixels: (H, W) or (H, W, 3) uint8 image.
        key: the subject, for its study and series.
        state: what distinguishes images of the subject beside their pixels.
        name: name of the patient, after PHANTOM.
        number: number of the subject, for the patient's ID.
    """
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SyntheticData = "YES"
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[key, *([state] if state else []), pixels.tobytes().hex()])
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[key, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[key, "series"])
    ds.StudyDate, ds.StudyTime = "20000101", "120000"
    ds.AccessionNumber = ds.ReferringPhysicianName = ds.PatientBirthDate = ds.Laterality = ""
    ds.LossyImageCompression = "00"
    ds.Manufacturer = "medcf phantom"
    ds.PatientName = f"PHANTOM^{name}"
    ds.PatientID = f"PHANTOM-{number:07d}"
    ds.PatientSex = "O"
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 1, 1
    _set_pixels(ds, pixels)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def ultrasound_region(box: tuple[int, int, int, int], spacing: tuple[float, float]) -> Dataset:
    """Return a calibrated region of 2D tissue in centimeters (PS3.3 C.8.5.5).

    Args:
        box: first row, first column, last row and last column of the region.
        spacing: distances between rows and between columns in mm.
    """
    region = Dataset()
    region.RegionSpatialFormat = 1  # 2D
    region.RegionDataType = 1  # tissue
    region.RegionFlags = 0
    region.RegionLocationMinY0, region.RegionLocationMinX0, region.RegionLocationMaxY1, region.RegionLocationMaxX1 = box
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX, region.PhysicalDeltaY = spacing[1] / 10.0, spacing[0] / 10.0
    return region


def _set_pixels(ds: Dataset, pixels: NDArray[np.uint8]) -> None:
    color = pixels.ndim == 3
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if color else 1
    ds.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    data = pixels.tobytes()
    ds.PixelData = data + b"\x00" * (len(data) % 2)
    ds["PixelData"].VR = "OB"


def write_table(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as CSV, except the location of their files (``path``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [key for key in records[0] if key != "path"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
