# SPDX-License-Identifier: Apache-2.0
"""One picture a volume: axial, coronal and sagittal slices through the largest difference, as a radiologist hangs them.

Slices follow the voxel axes nearest to the anatomical ones, so an oblique volume is shown as it was acquired. The
radiological convention holds: the patient's right is on the left of axial and coronal slices, the front on the left of
sagittal ones; letters name the directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.segmentation import find_boundaries
from skimage.transform import resize

from medcf.inference.case_result import CaseResult
from medcf.inference.drawing import (
    DPI,
    GAP,
    HEAD,
    LINE,
    color_bar,
    colored_difference,
    gray,
    new_axes,
    paste,
    stamp,
    title_lines,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Slice", "VolumePanelWriter", "draw_volume_panel", "focus", "slices_through"]

_PIXELS_PER_MM = 1.6
_TALLEST = 300  # pixels of a tile
_LOWEST = 80  # pixels of a row, for its name and letters
_MARGIN = 6.0  # mm around the brain
_BLUR = 3.0  # mm over which a difference must hold to be the largest
_PLANES = {"axial": (2, "R L A P"), "coronal": (1, "R L S I"), "sagittal": (0, "A P S I")}
_OUTLINE = np.array([0.35, 0.85, 0.45])


@dataclass(frozen=True)
class Slice:
    """One plane of a case, as it hangs: rows downward, columns to the right.

    Attributes:
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        image: (H, W) in [0, 1].
        counterfactual: (H, W) in [0, 1].
        difference: (H, W), signed, in fractions of the full intensity range.
        mask: (H, W) bool, the brain; None where nobody knows it.
        letters: directions of the left, right, upper and lower edge.
        size_mm: height and width in mm.
    """

    plane: str
    image: NDArray[np.floating]
    counterfactual: NDArray[np.floating]
    difference: NDArray[np.floating]
    mask: NDArray[np.bool_] | None
    letters: tuple[str, ...]
    size_mm: tuple[float, float]


class VolumePanelWriter:
    """Writes ``panel.png`` of a volume, as a writer of `CounterfactualEvaluator`'s case handler.

    Args:
        class_names: names of the classes, for the title.
        limit: end of the color bar, in fractions of the full intensity range; the same for every case.
    """

    filename = "panel.png"

    def __init__(self, class_names: Sequence[str] = (), limit: float = 0.5) -> None:
        self.class_names = tuple(class_names)
        self.limit = limit

    def __call__(self, result: CaseResult, folder: Path) -> None:
        """Draw the panel of ``result`` into ``folder``."""
        figure = draw_volume_panel(result, class_names=self.class_names, limit=self.limit)
        figure.savefig(folder / self.filename, dpi=DPI, pil_kwargs={"compress_level": 3})


def draw_volume_panel(result: CaseResult, *, class_names: Sequence[str] = (), limit: float = 0.5) -> Figure:
    """Draw one volume: a row a plane; input, counterfactual and signed difference side by side.

    Args:
        result: the case.
        class_names: names of the classes.
        limit: difference at the ends of the color bar.

    Returns:
        A figure that belongs to no window.
    """
    voxel = focus(result)
    planes = slices_through(result, voxel)
    scale = min(_PIXELS_PER_MM, _TALLEST / max(max(plane.size_mm) for plane in planes))
    sizes = [tuple(max(round(scale * mm), 8) for mm in plane.size_mm) for plane in planes]
    width = max(*(size[1] for size in sizes), 230)
    banner = LINE + 6 if result.row.get("out_of_distribution") else 0
    left_of = [GAP + 22 + index * (width + GAP) for index in range(3)]
    top = HEAD + banner + LINE
    heights = [max(size[0], _LOWEST) for size in sizes]
    canvas = np.full((top + sum(heights) + 3 * GAP + 3 * LINE, left_of[-1] + width + GAP, 3), 0.08)
    axes = new_axes(canvas.shape)
    titles = ("input", "counterfactual", "difference (counterfactual - input)")
    for left, title in zip(left_of, titles, strict=True):
        axes.text(left + width / 2, top - 10, title, ha="center", va="center", color="white", fontsize=9)
    for plane, (height, inner), room in zip(planes, sizes, heights, strict=True):
        upper = top + (room - height) // 2
        tiles = (
            gray(plane.image),
            gray(plane.counterfactual),
            colored_difference(plane.image, plane.difference, limit),
        )
        for index, (left, tile) in enumerate(zip(left_of, tiles, strict=True)):
            inset = left + (width - inner) // 2
            paste(canvas, tile, upper, inset, height, inner)
            if index == 2 and plane.mask is not None:
                _outline(canvas[upper : upper + height, inset : inset + inner], plane.mask)
            _letters(axes, plane.letters, top, inset, room, inner)
        stamp(axes, left_of[1] + width / 2, top + 16, 9)
        axes.text(GAP + 8, top + room / 2, plane.plane, rotation=90, ha="center", va="center", color="white",
                  fontsize=9)  # fmt: skip
        top += room + GAP
    color_bar(axes, canvas, top + 4, left_of[2], width, limit)
    _notes(axes, result, voxel, top + 8)
    title_lines(axes, result, class_names, canvas.shape[1])
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    return axes.figure  # type: ignore[return-value]


def focus(result: CaseResult) -> tuple[int, int, int]:
    """Find the voxel where the difference is largest over a few mm, in the brain if that is known.

    Args:
        result: the case; its images are (X, Y, Z).

    Returns:
        The voxel; where nothing differs the middle of the brain, or of the volume.
    """
    sigma = [_BLUR / size for size in _voxel_sizes(result.affine)]
    strength = np.abs(gaussian_filter(result.difference, sigma))
    if result.mask is not None and result.mask.any():
        strength = np.where(result.mask, strength, 0)
    if strength.max() > 0:
        where = np.unravel_index(int(np.argmax(strength)), strength.shape)
        return int(where[0]), int(where[1]), int(where[2])
    if result.mask is not None and result.mask.any():
        x, y, z = (int(np.median(axis)) for axis in np.nonzero(result.mask))
        return x, y, z
    x, y, z = (n // 2 for n in result.difference.shape)
    return x, y, z


def slices_through(result: CaseResult, voxel: Sequence[int]) -> list[Slice]:
    """Cut the three planes through a voxel, cropped to the brain if that is known.

    Args:
        result: the case; its images are (X, Y, Z) in any orientation.
        voxel: indices in that orientation.

    Returns:
        The axial, the coronal and the sagittal slice.
    """
    from nibabel.orientations import apply_orientation, io_orientation

    turn = io_orientation(result.affine)
    sizes = np.empty(3)
    position = np.empty(3, int)
    for axis, (to, flip) in enumerate(turn):
        sizes[int(to)] = _voxel_sizes(result.affine)[axis]
        length = result.difference.shape[axis]
        position[int(to)] = voxel[axis] if flip > 0 else length - 1 - voxel[axis]
    names = ("original", "counterfactual", "difference")
    # a view: nothing is copied until a slice is cut
    images = {name: apply_orientation(getattr(result, name), turn) for name in names}
    mask = None if result.mask is None else apply_orientation(result.mask, turn)
    low, high = result.window
    box = _box(mask, images["difference"].shape, sizes)
    cuts = []
    for plane, (axis, letters) in _PLANES.items():
        window = tuple(position[a] if a == axis else slice(*box[a]) for a in range(3))
        picture = {name: _hang(images[name][window]) for name in names}
        cuts.append(
            Slice(
                plane=plane,
                image=np.clip((picture["original"] - low) / (high - low), 0, 1),
                counterfactual=np.clip((picture["counterfactual"] - low) / (high - low), 0, 1),
                difference=picture["difference"],
                mask=None if mask is None else _hang(mask[window]),
                letters=tuple(letters.split()),
                size_mm=_extent(picture["difference"], np.delete(sizes, axis)[::-1]),
            )
        )
    return cuts


def _hang(cut: NDArray) -> NDArray:
    """Turn a slice of a RAS volume as it hangs: its second axis upward, its first to the left."""
    return np.ascontiguousarray(cut[::-1, ::-1].T)


def _extent(picture: NDArray, sizes: NDArray) -> tuple[float, float]:
    return float(picture.shape[0] * sizes[0]), float(picture.shape[1] * sizes[1])


def _box(mask: NDArray[np.bool_] | None, shape: Sequence[int], sizes: NDArray) -> list[tuple[int, int]]:
    """First and end index along each axis of what is shown."""
    if mask is None or not mask.any():
        return [(0, n) for n in shape]
    box = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(_MARGIN / sizes[axis]))
        box.append((max(int(filled[0]) - margin, 0), min(int(filled[-1]) + 1 + margin, shape[axis])))
    return box


def _outline(tile: NDArray, mask: NDArray[np.bool_]) -> None:
    """Draw the border of the brain onto a tile."""
    inside = resize(mask.astype(np.float32), tile.shape[:2], order=1) > 0.5
    tile[find_boundaries(inside, mode="inner")] = _OUTLINE


def _letters(axes: Axes, letters: Sequence[str], top: int, left: int, height: int, width: int) -> None:
    places = (
        (left + 7, top + height / 2),
        (left + width - 7, top + height / 2),
        (left + width / 2, top + 8),
        (left + width / 2, top + height - 8),
    )
    for letter, (x, y) in zip(letters, places, strict=True):
        axes.text(x, y, letter, ha="center", va="center", color="#9fd3ff", fontsize=8, weight="bold")


def _notes(axes: Axes, result: CaseResult, voxel: Sequence[int], y: float) -> None:
    world = np.asarray(result.affine) @ [*voxel, 1.0]
    where = f"slices through x {world[0]:.0f}, y {world[1]:.0f}, z {world[2]:.0f} mm (RAS)"
    what = "where the difference is largest" if np.any(result.difference) else "(no difference)"
    style: dict[str, Any] = {"color": "#bbbbbb", "fontsize": 8, "va": "center"}
    axes.text(GAP, y, f"{where}, {what}", **style)
    axes.text(GAP, y + LINE - 4, "radiological convention: the patient's right (R) is on the left", **style)
    if result.mask is not None:
        axes.text(GAP, y + 2 * LINE - 8, "green: outline of the brain mask", **style)


def _voxel_sizes(affine: NDArray) -> NDArray:
    return np.sqrt((np.asarray(affine, dtype=float)[:3, :3] ** 2).sum(axis=0))
