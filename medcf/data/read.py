# SPDX-License-Identifier: Apache-2.0
"""Reads an image of any supported format, detected by content: DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, BMP, TIFF."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor
from numpy.typing import NDArray

from medcf.data.case import Case, as_case
from medcf.data.dicom.picture import read_dicom
from medcf.data.dicom.series import list_dicom_files, read_dicom_volume
from medcf.data.file_info import choose_frame, inspect_file, sniff
from medcf.data.image import Limits, Pixels, check_extent, digest, picture_affine
from medcf.data.itk_image import read_itk
from medcf.data.nifti import header_of_pair, read_nifti
from medcf.data.raster import read_raster
from medcf.runtime.errors import UnreadableImage

__all__ = ["StudyReader", "read", "read_labels"]

logger = logging.getLogger(__name__)

_LIMITS = Limits()

Source = Case | str | PathLike[str] | Sequence[str | PathLike[str]]


def read(source: Source, frame: int | str | None = None, *, limits: Limits = _LIMITS) -> MetaTensor:
    """Read an image: a picture, a frame of a loop, or a volume.

    The array's axes are those of the file (NIfTI), or column, row and slice. Metadata: ``affine`` and
    ``original_affine`` (indices to RAS+ mm; the unit matrix if the file does not state its position, see
    :mod:`medcf.data.image`), ``region`` (first column and row, end column and row of the actual picture, if DICOM names
    an ultrasound region), ``value_range`` (the stored values that map to 0 and 1, or a volume's smallest and largest
    values), ``source_format``, ``modality``, ``frame``, ``num_frames``, ``sha256`` (of the array; it seeds the noise),
    ``filename_or_obj`` (the file; for a series, its first slice), ``synthetic`` (whether the file says that it
    is) and, if the case names one, ``mask`` (bool, on the image's voxels).

    Args:
        source: a case; a file with any name; a folder with one DICOM series; or the series' files.
        frame: for a loop: ``"first"``, ``"middle"``, ``"last"`` or an index (negative indices count from the end); None
            takes the case's frame, or the middle one.
        limits: maximum size of the image.

    Returns:
        float32: a picture (C, X, Y) in [0, 1], where 0 is black and 1 is white whatever the format's convention, with
        C = 3 if it is in color; or a volume (1, X, Y, Z) in its own units, for DICOM after rescaling to HU or other
        units.

    Raises:
        UnreadableImage: if a file is missing, damaged, not an image, or has no such frame, or slices form no volume.
        ValueError: if ``frame`` is invalid.
    """
    array, meta = _load(as_case(source), frame, limits)
    affine = torch.from_numpy(np.asarray(meta.pop("affine"), dtype=np.float64))
    return MetaTensor(torch.from_numpy(array), affine=affine, meta=meta)


def read_labels(source: Source, *, limits: Limits = _LIMITS) -> MetaTensor:
    """Read a label map of any format that :func:`read` takes.

    Args:
        source: see :func:`read`.
        limits: maximum size of the image.

    Returns:
        int64 (1, *spatial), with the metadata of :func:`read`: the stored integers.

    Raises:
        UnreadableImage: if the file cannot be read, or holds labels outside 0 to 255.
    """
    stored = read(source, limits=limits)
    labels: Any = stored[:1]
    if stored.ndim == 3:  # gray values in [0, 1]
        low, high = (float(value) for value in stored.meta["value_range"])
        labels = labels * (high - low) + low
    labels = labels.round().long()
    if int(labels.min()) < 0 or int(labels.max()) > 255:
        path = str(stored.meta["filename_or_obj"])
        raise UnreadableImage(path, "holds labels outside 0 to 255", "Number the classes 0, 1, 2, ...")
    found: MetaTensor = labels
    return found


class StudyReader(ImageReader):
    """A reader for MONAI's loaders that reads whatever :func:`read` does: ``LoadImaged("image", reader=StudyReader)``.

    Pass ``expanduser=False`` to the loader if the items hold a :class:`medcf.data.Case`, and leave its
    ``ensure_channel_first`` off, because the channel is already first.

    Args:
        frame: see :func:`read`.
        max_pixels: size limit for a picture.
        max_voxels: size limit for a volume.
        allow_synthetic: whether to read images that say that they are synthetic, or were made by medcf; by default they
            are refused, so that no counterfactual is explained or trained on as if it showed a patient.
    """

    def __init__(
        self,
        frame: int | str | None = None,
        max_pixels: float = _LIMITS.pixels,
        max_voxels: float = _LIMITS.voxels,
        allow_synthetic: bool = False,
    ) -> None:
        self.frame = frame
        self.allow_synthetic = allow_synthetic
        self.limits = Limits(max_pixels, max_voxels)
        # MONAI's loader registers every reader it knows, and warns about the one whose GPU decoder is not installed
        logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")

    def verify_suffix(self, filename: Any) -> bool:
        """Accept any file: its content determines the format."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Case:
        """Only name what to read, because MONAI would take a reading error for a missing reader."""
        if isinstance(data, Sequence) and not isinstance(data, str) and len(data) == 1:
            data = data[0]
        return as_case(data)

    def get_data(self, img: Case) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Read the array and its metadata.

        Raises:
            UnreadableImage: see :func:`read`; also if it is synthetic and not asked for by ``allow_synthetic``, here
                or in the case's columns.
        """
        array, meta = _load(img, self.frame, self.limits)
        if meta["synthetic"] and not (self.allow_synthetic or img.columns.get("allow_synthetic")):
            remedy = "Give the patient's own images, or allow these with --allow_synthetic True."
            raise UnreadableImage(meta["filename_or_obj"], "is synthetic, as it says itself", remedy)
        return array, meta


def _load(case: Case, frame: int | str | None, limits: Limits) -> tuple[NDArray[np.float32], dict[str, Any]]:
    files = list(case.files)
    if len(files) == 1 and files[0].is_dir():
        files = list_dicom_files(files[0])
    files = [header_of_pair(file) or file for file in files]
    first, pixels = _decode(files, case.frame if frame is None else frame, limits)
    if pixels.affine is not None:
        check_extent(first, pixels.affine, pixels.array.shape[1:])
    meta = pixels.describe() | {"filename_or_obj": str(first)}
    if "spacing_mm" in case.columns and pixels.array.ndim == 3:
        row, column = (float(mm) for mm in case.columns["spacing_mm"])
        meta |= {name: picture_affine((column, row)) for name in ("affine", "original_affine")} | {"space": "RAS"}
    array = np.ascontiguousarray(pixels.array, dtype=np.float32)
    meta["sha256"] = digest(array)
    if case.mask is not None:
        meta["mask"] = _read_mask(case.mask, array.shape, meta["affine"], limits)
    return array, meta


def _decode(files: Sequence[Path], frame: int | str | None, limits: Limits) -> tuple[Path, Pixels]:
    """Read the one file, or the series; also return the file that names it."""
    if len(files) > 1:
        if odd := next((file for file in files if sniff(file) != "dicom"), None):
            reason = "is one of several files that are not a DICOM series"
            raise UnreadableImage(odd, reason, "Give a NIfTI file, or a folder with one DICOM series.")
        return read_dicom_volume(files, limits)
    info = inspect_file(files[0], limits)
    if info.source_format in ("nifti", "itk"):
        return files[0], (read_nifti if info.source_format == "nifti" else read_itk)(files[0])
    if info.spatial_dims == 3 and frame is None:
        return read_dicom_volume(files, limits)
    index = choose_frame(info, frame)
    return files[0], read_dicom(files[0], index) if info.source_format == "dicom" else read_raster(files[0], index)


def _read_mask(path: Path, shape: tuple[int, ...], affine: NDArray[np.float64], limits: Limits) -> NDArray[np.bool_]:
    """Read a mask on the voxels of its image: everything above 0 belongs to it."""
    array, meta = _load(as_case(path), None, limits)
    if array.shape[1:] != shape[1:] or not np.allclose(meta["affine"], affine, atol=0.05):
        remedy = "Resample it onto the volume with nearest-neighbor interpolation."
        raise UnreadableImage(path, "is a mask whose voxels do not match its volume", remedy)
    inside = array[:1] > 0
    if not inside.any():
        raise UnreadableImage(path, "is an empty mask", "Give one in which the brain is 1.")
    if (labels := len(np.unique(array[:1][inside]))) > 1:
        logger.warning("%s holds %d labels; all of them count as brain", path.name, labels)
    return inside
