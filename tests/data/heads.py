# SPDX-License-Identifier: Apache-2.0
"""Small heads with known geometry, written as NIfTI files and DICOM series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.spatial.transform import Rotation

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def geometry(
    codes: str = "RAS",
    voxel: Sequence[float] = (3.0, 3.0, 3.0),
    angles: Sequence[float] = (0, 0, 0),
    extent: float = 96,
) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and RAS+ affine of a cube of ``extent`` mm around (5, -20, 30)."""
    shape = np.round(extent / np.array(voxel)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.array(voxel)
    affine[:3, 3] = np.array([5.0, -20.0, 30.0]) - affine[:3, :3] @ ((shape - 1) / 2)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    turned = affine @ inv_ornt_aff(turn, tuple(shape))
    return tuple(int(n) for n in shape[np.argsort(turn[:, 0])]), turned


def head(shape: Sequence[int], affine: NDArray[np.float64]) -> NDArray[np.int16]:
    """An ellipsoid with a smooth texture, 0 outside, that has no plane of symmetry; (X, Y, Z) in 0 to 1000."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3] - np.array([5.0, -20.0, 30.0]), -1, 0)
    inside = (x / 36) ** 2 + (y / 42) ** 2 + (z / 33) ** 2 < 1
    texture = 500 + 150 * np.sin(x / 9 + 0.3) + 120 * np.cos(y / 11 - z / 13) + 2.0 * x - y
    return np.where(inside, np.clip(texture, 50, 1000), 0).astype(np.int16)


def save_nifti(path: Path, values: NDArray, affine: NDArray[np.float64]) -> Path:
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def make_slice(
    values: NDArray[np.int16], affine: NDArray[np.float64], k: int, *, series: str, modality: str = "MR"
) -> FileDataset:
    """Slice k of a volume (columns, rows, slices) whose first two axes are orthogonal."""
    uid = generate_uid()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3.1", series, "1.2.3.9"
    ds.PatientName, ds.PatientID, ds.Modality, ds.ImageType = "Doe^Jane", "secret", modality, ["ORIGINAL", "PRIMARY"]
    lps = FLIP @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    ds.ImageOrientationPatient = _ds([*(lps[:3, 0] / sizes[0]), *(lps[:3, 1] / sizes[1])])
    ds.ImagePositionPatient = _ds(lps[:3, 3] + k * lps[:3, 2])
    ds.PixelSpacing = _ds([sizes[1], sizes[0]])
    ds.SliceThickness = "1"  # wrong on purpose: spacing comes from positions
    ds.SeriesNumber, ds.InstanceNumber = 3, 1000 - k
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = values.shape[1], values.shape[0]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    if modality == "CT":
        ds.RescaleSlope, ds.RescaleIntercept = "2", "-1024"
    ds.PixelData = np.ascontiguousarray(values[:, :, k].T).tobytes()
    return ds


def _ds(values: Sequence[float]) -> list[str]:
    return [pydicom.valuerep.format_number_as_ds(float(value)) for value in values]


def save_series(
    folder: Path,
    values: NDArray[np.int16],
    affine: NDArray[np.float64],
    *,
    series: str = "1.2.3.4",
    modality: str = "MR",
    change: Callable[[int, FileDataset], FileDataset | None] = lambda k, ds: ds,
) -> Path:
    """Write the slices under names whose order says nothing; ``change`` may alter or drop one."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(values.shape[2]):
        ds = change(k, make_slice(values, affine, k, series=series, modality=modality))
        if ds is not None:
            ds.save_as(folder / f"slice_{(k * 7919) % 1009:04d}_{k:03d}.dcm", enforce_file_format=True)
    return folder


def save_enhanced(path: Path, values: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
    """Write an Enhanced MR object with one frame per slice, in reverse order, and a rescaling of slope 3."""
    first = make_slice(values, affine, 0, series="1.2.3.5")
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness"):
        delattr(first, name)
    first.SOPClassUID = first.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    order = range(values.shape[2])[::-1]
    frames, shared = [], Dataset()
    for k in order:
        single = make_slice(values, affine, k, series="1.2.3.6")
        plane = Dataset()
        plane.ImagePositionPatient = single.ImagePositionPatient
        frame = Dataset()
        frame.PlanePositionSequence = DicomSequence([plane])
        frames.append(frame)
    turn, measures, rescale = Dataset(), Dataset(), Dataset()
    turn.ImageOrientationPatient = single.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = single.PixelSpacing, "1"
    rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = "0", "3", "US"
    shared.PlaneOrientationSequence = DicomSequence([turn])
    shared.PixelMeasuresSequence = DicomSequence([measures])
    shared.PixelValueTransformationSequence = DicomSequence([rescale])
    first.SharedFunctionalGroupsSequence = DicomSequence([shared])
    first.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    first.NumberOfFrames = len(frames)
    first.PixelData = b"".join(np.ascontiguousarray(values[:, :, k].T).tobytes() for k in order)
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save_as(path, enforce_file_format=True)
    return path
