# SPDX-License-Identifier: Apache-2.0
"""Reads NRRD and MetaImage files with ITK, and converts images of ITK and SimpleITK to tensors and back."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medcf.data.image import Pixels, geometry, inflated_size, to_unit_range
from medcf.runtime.errors import UnreadableImage

if TYPE_CHECKING:
    import itk
    import SimpleITK

__all__ = ["from_itk", "from_sitk", "inspect_itk", "is_itk", "read_itk", "to_itk", "to_sitk"]

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's axes to RAS+ and back
_MOST_DIMENSIONS = 3


def is_itk(head: bytes) -> bool:
    """Recognize NRRD and MetaImage (.mha, .mhd) by the first bytes."""
    return head.startswith((b"NRRD0", b"ObjectType", b"NDims", b"Comment"))


def inspect_itk(path: Path) -> tuple[int, ...]:
    """Return the size stated in the header: two numbers for a picture, three for a volume.

    Raises:
        UnreadableImage: if the header is damaged, or the file holds neither.
    """
    return _size(path, _header(path))


def _size(path: Path, header: Any) -> tuple[int, ...]:
    try:
        size = tuple(int(header.GetDimensions(axis)) for axis in range(header.GetNumberOfDimensions()))
        components = int(header.GetNumberOfComponents())
    except Exception as error:
        raise UnreadableImage(path, f"is damaged ({type(error).__name__})", "Export it again.") from error
    shown = " x ".join(map(str, size))
    if any(n > 1 for n in size[_MOST_DIMENSIONS:]):
        raise UnreadableImage(path, f"is a series of images ({shown})", "Save one of its images as a separate file.")
    size = size[:_MOST_DIMENSIONS]
    long = tuple(n for n in size if n > 1)
    if len(long) < 2 or 0 in size:
        raise UnreadableImage(path, f"holds no image (its size is {shown})", "Export it again.")
    if components > 1 and (len(long) > 2 or components not in (3, 4)):
        raise UnreadableImage(path, f"holds {components} numbers per voxel", "Save gray values.")
    return long if len(long) == 2 else size


def read_itk(path: Path) -> Pixels:
    """Read a picture, gray or RGB, or a volume in its own units.

    Raises:
        UnreadableImage: like `inspect_itk`, or if the pixels are damaged.
    """
    header = _header(path)
    size = _size(path, header)
    try:
        _check_compressed(path, header)
        image, array = _imread(path, header, len(size) == 2)
        values = _columns_first(array, image.GetNumberOfComponentsPerPixel() > 1)
        affine = _affine(np.asarray(image.GetDirection()), list(image.GetSpacing()), list(image.GetOrigin()))
    except Exception as error:
        raise UnreadableImage(path, f"cannot be decoded ({type(error).__name__})", "Export it again.") from error
    if len(size) == 2:
        axes = [axis for axis, n in enumerate(values.shape[1:4]) if n > 1][:2]
        third = 3 - sum(axes)
        flat = values.reshape(values.shape[0], *size)
        shown, ends = to_unit_range(flat[:3])
        return Pixels(shown, affine[:, [*axes, third, 3]], "itk", ends)
    values = np.nan_to_num(values.reshape(1, *size).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return Pixels(values, affine, "itk", (float(values.min()), float(values.max())))


def _imread(path: Path, header: Any, as_stored: bool) -> tuple[Any, NDArray[Any]]:
    """Read a file as 32-bit numbers; a picture in the type it is stored in, whose range tells what is white."""
    import itk

    components = int(header.GetNumberOfComponents())
    pixel = itk.F if components == 1 else itk.Vector[itk.F, components]
    image = itk.imread(str(path), pixel)
    array = itk.array_from_image(image)
    kind = header.GetComponentTypeAsString(header.GetComponentType())
    if as_stored and kind in ("unsigned_char", "unsigned_short", "unsigned_int"):
        array = array.astype({"char": np.uint8, "short": np.uint16, "int": np.uint32}[kind.removeprefix("unsigned_")])
    return image, array


def _header(path: Path) -> Any:
    """Read the header.

    Raises:
        UnreadableImage: it is damaged; so is a MetaImage with an impossible number of dimensions, on which ITK never
            ends.
    """
    import itk

    try:
        with path.open("rb") as stream:
            stated = re.findall(rb"^\s*NDims\s*=\s*(\S+)", stream.read(4096), flags=re.MULTILINE)
        if stated and (len(stated) > 1 or stated[0] not in (b"2", b"3", b"4")):
            raise ValueError("NDims")
        header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
        header.SetFileName(str(path))
        header.ReadImageInformation()
    except Exception as error:
        raise UnreadableImage(path, f"is damaged ({type(error).__name__})", "Export it again.") from error
    return header


def _check_compressed(path: Path, header: Any) -> None:
    """Inflate a compressed MetaImage once: ITK takes a damaged one for whole and leaves the rest as memory was.

    Raises:
        ValueError: the pixels are damaged.
    """
    with path.open("rb") as stream:
        head = stream.read(4096)
        if not re.search(rb"^\s*CompressedData\s*=\s*True", head, flags=re.MULTILINE):
            return
        source = re.search(rb"^\s*ElementDataFile\s*=\s*([^\r\n]+)\r?\n?", head, flags=re.MULTILINE)
        if source is None:
            raise ValueError("ElementDataFile")
        local = source.group(1).strip() == b"LOCAL"
        stream.seek(source.end())
        with stream if local else (path.parent / os.fsdecode(source.group(1).strip())).open("rb") as pixels:
            expected = int(header.GetImageSizeInBytes())
            measured = inflated_size(pixels, expected)
    if measured != (expected, True):
        raise ValueError("damaged pixels")


def to_itk(image: torch.Tensor) -> itk.Image:
    """Convert a picture (1, X, Y) or a volume (1, X, Y, Z) to an ITK image, keeping its position in the patient."""
    import itk

    array, affine = _for_itk(image)
    made = itk.image_from_array(array)
    spacing, direction, origin = _parts(affine, array.ndim)
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    made.SetDirection(itk.matrix_from_array(direction))
    return made


def from_itk(image: itk.Image) -> MetaTensor:
    """Convert an ITK image with one value per pixel to a MetaTensor (1, X, Y[, Z]) in its own units."""
    import itk

    array = _columns_first(itk.array_from_image(image), False)
    direction = np.asarray(image.GetDirection())
    return _tensor(array, _affine(direction, list(image.GetSpacing()), list(image.GetOrigin())))


def to_sitk(image: torch.Tensor) -> SimpleITK.Image:
    """Convert a picture (1, X, Y) or a volume (1, X, Y, Z) to a SimpleITK image."""
    import SimpleITK

    array, affine = _for_itk(image)
    made = SimpleITK.GetImageFromArray(array)
    spacing, direction, origin = _parts(affine, array.ndim)
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    made.SetDirection(direction.ravel().tolist())
    return made


def from_sitk(image: SimpleITK.Image) -> MetaTensor:
    """Convert a SimpleITK image with one value per pixel to a MetaTensor (1, X, Y[, Z]) in its own units."""
    import SimpleITK

    array = _columns_first(SimpleITK.GetArrayFromImage(image), False)
    direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)
    return _tensor(array, _affine(direction, image.GetSpacing(), image.GetOrigin()))


def _columns_first(array: NDArray[Any], colored: bool) -> NDArray[Any]:
    """Reorder ITK's (Z, Y, X[, C]) to (C, X, Y, Z)."""
    return array.T if colored else array.T[None]


def _affine(direction: NDArray[np.float64], spacing: Any, origin: Any) -> NDArray[np.float64]:
    """Return the affine (4, 4) from indices to RAS+ mm."""
    size = min(len(spacing), _MOST_DIMENSIONS)
    affine = np.eye(4)
    affine[:size, :size] = direction[:size, :size] * np.asarray(spacing)[:size]
    affine[:size, 3] = np.asarray(origin)[:size]
    return _LPS @ affine


def _tensor(array: NDArray[Any], affine: NDArray[np.float64]) -> MetaTensor:
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return MetaTensor(values, affine=torch.from_numpy(affine), meta={"space": "RAS"})


def _for_itk(image: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    if image.shape[0] != 1:
        raise ValueError(f"image must have one channel, got shape {tuple(image.shape)}")
    array = image.as_subclass(torch.Tensor).detach().cpu().float().numpy()[0].T
    return np.ascontiguousarray(array), _LPS @ geometry(image)[0]


def _parts(affine: NDArray[np.float64], dimensions: int) -> tuple[list[float], NDArray[np.float64], list[float]]:
    """Return the spacing, direction and origin of an affine in LPS."""
    matrix = affine[:dimensions, :dimensions]
    spacing = np.linalg.norm(matrix, axis=0)
    return spacing.tolist(), matrix / spacing, affine[:dimensions, 3].tolist()
