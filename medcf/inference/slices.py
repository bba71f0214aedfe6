# SPDX-License-Identifier: Apache-2.0
"""The planes of a case as radiologists view them: three for a volume, one for a picture.

Slices follow the axes closest to the anatomical ones, so an oblique volume is shown as acquired. In radiological
convention, the patient's right is on the left of axial and coronal slices, and anterior is on the left of sagittal
ones; letters mark the directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medcf.data.image import voxel_sizes
from medcf.inference.case_result import CaseResult

__all__ = ["Slice", "cropped", "focus", "slices_through"]

_MARGIN = 6.0  # mm around the subject of a volume
_BLUR = 3.0  # mm over which differences are averaged to find the largest
_WHOLE = 0.9  # fraction of a picture that counts as all of it
_PLANES = {"sagittal": "A P S I", "coronal": "R L S I", "axial": "R L A P"}  # by the axis they are perpendicular to


@dataclass(frozen=True)
class Slice:
    """One plane of a case as viewed: rows run down, columns run right.

    Attributes:
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        image: (H, W) in [0, 1].
        counterfactual: (H, W) in [0, 1].
        difference: (H, W), signed, in fractions of the full intensity range.
        mask: (H, W) bool, the subject; None if unknown.
        letters: directions of the left, right, top and bottom edges.
        size_mm: height and width in mm.
        cut: extracts the same plane from another array (*spatial) of the case.
    """

    plane: str
    image: NDArray[np.floating]
    counterfactual: NDArray[np.floating]
    difference: NDArray[np.floating]
    mask: NDArray[np.bool_] | None
    letters: tuple[str, ...]
    size_mm: tuple[float, float]
    cut: Callable[[NDArray], NDArray] = field(repr=False)


def focus(result: CaseResult) -> tuple[int, int, int]:
    """Find the voxel with the largest difference over a few mm, within the subject if it is known.

    Args:
        result: the case.

    Returns:
        The voxel; without any difference, the center of the subject or of the image.
    """
    difference, mask = _solid(result.difference), None if result.mask is None else _solid(result.mask)
    sigma = [
        _BLUR / size if n > 1 else 0.0 for size, n in zip(voxel_sizes(result.affine), difference.shape, strict=True)
    ]
    strength = gaussian_filter(difference, sigma)
    np.abs(strength, out=strength)
    if mask is not None and mask.any():
        strength[~mask] = 0
    if strength.max() > 0:
        where = np.unravel_index(int(np.argmax(strength)), strength.shape)
        return int(where[0]), int(where[1]), int(where[2])
    if mask is not None and mask.any():
        along = [mask.sum(axis=tuple(a for a in range(3) if a != axis)).cumsum() for axis in range(3)]
        x, y, z = (int(np.searchsorted(counts, counts[-1] / 2)) for counts in along)
        return x, y, z
    x, y, z = (n // 2 for n in difference.shape)
    return x, y, z


def slices_through(result: CaseResult, voxel: Sequence[int]) -> list[Slice]:
    """Cut the planes through a voxel; a volume is cropped to the subject if it is known.

    Args:
        result: the case, with images in any orientation.
        voxel: indices in that orientation.

    Returns:
        The axial, coronal and sagittal slices of a volume; the single plane of a picture.
    """
    turn = io_orientation(result.affine)
    sizes, position = np.empty(3), np.empty(3, int)
    shape = _solid(result.difference).shape
    for axis, (to, flip) in enumerate(turn):
        sizes[int(to)] = voxel_sizes(result.affine)[axis]
        position[int(to)] = voxel[axis] if flip > 0 else shape[axis] - 1 - voxel[axis]
    mask = None if result.mask is None else apply_orientation(_solid(result.mask), turn)
    box = _box(mask, apply_orientation(np.empty(shape, bool), turn).shape, sizes)
    low, high = result.window
    flat = result.difference.ndim == 2
    cuts = []
    for axis in [int(turn[2, 0])] if flat else [2, 1, 0]:
        plane, letters = list(_PLANES.items())[axis]
        window = tuple(position[a] if a == axis else slice(*box[a]) for a in range(3))

        def cut(array: NDArray, window: tuple = window) -> NDArray:
            # a view: nothing is copied until the slice is cut; its second axis runs up, its first runs left
            return np.ascontiguousarray(apply_orientation(_solid(array), turn)[window][::-1, ::-1].T)

        difference = cut(result.difference)
        edges = np.delete(sizes, axis)[::-1]
        cuts.append(
            Slice(
                plane=plane,
                image=np.clip((cut(result.original) - low) / (high - low), 0, 1),
                counterfactual=np.clip((cut(result.counterfactual) - low) / (high - low), 0, 1),
                difference=difference,
                mask=None if result.mask is None else cut(result.mask),
                letters=tuple(letters.split()),
                size_mm=(float(difference.shape[0] * edges[0]), float(difference.shape[1] * edges[1])),
                cut=cut,
            )
        )
    return cuts


def cropped(result: CaseResult) -> CaseResult:
    """Crop a picture to the part that the network saw, if that is smaller."""
    if result.region is None:
        return result
    left, top, right, bottom = result.region
    if (bottom - top) * (right - left) > _WHOLE * result.original.size:
        return replace(result, region=None)
    window = (..., slice(left, right), slice(top, bottom))
    names = ["original", "counterfactual", "difference", "trajectory", "segmentation"]
    names += ["expected", "expected_difference", "spread", "organ", "attribution"]
    images = {name: getattr(result, name) for name in names}
    windows: dict[str, Any] = {name: None if image is None else image[window] for name, image in images.items()}
    return replace(result, **windows)


def _solid(array: NDArray) -> NDArray:
    """Return the array as a volume; a picture is a volume of one slice."""
    return array if array.ndim == 3 else array[..., None]


def _box(mask: NDArray[np.bool_] | None, shape: Sequence[int], sizes: NDArray) -> list[tuple[int, int]]:
    """Return first and end index along each axis of the visible part."""
    if mask is None or not mask.any():
        return [(0, n) for n in shape]
    box = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(_MARGIN / sizes[axis]))
        box.append((max(int(filled[0]) - margin, 0), min(int(filled[-1]) + 1 + margin, shape[axis])))
    return box
