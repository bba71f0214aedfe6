# SPDX-License-Identifier: Apache-2.0
"""The network's grid: its position in an image, the way onto it, and the way back to the image's pixels or voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys
from numpy.typing import NDArray
from torch.utils.data._utils.collate import default_collate_fn_map

from medcf.data.image import display_range, geometry, meta_of, to_luminance
from medcf.data.resample import resample
from medcf.data.subject import SUBJECTS, find_subject, middle_of, picture_box

__all__ = ["Grid", "GridRecord", "grid_record", "screen_axes"]

_ROUNDING = 1e-4  # so that half a voxel still counts as half after float32 rounding


@dataclass(frozen=True, eq=False)
class GridRecord:
    """The position of a grid in an image: everything needed to map back.

    Attributes:
        matrix: (4, 4), grid index to image index; for a picture the third index is 0.
        native: size of the image.
        grid: size of the grid.
        intensity: image values that become -1 and 1 on the grid.
        mask: the subject, bool (1, *native); None means everywhere.
        image: the image that was put onto the grid, (1, *native) in its own values.
    """

    matrix: NDArray[np.float64]
    native: tuple[int, ...]
    grid: tuple[int, ...]
    intensity: tuple[float, float]
    mask: torch.Tensor | None = field(default=None, repr=False)
    image: MetaTensor | None = field(default=None, repr=False)

    ndim: ClassVar[int] = 0  # MONAI's decollate_batch passes it on whole

    def item(self) -> GridRecord:
        """Return the record itself, as ``item`` of a scalar tensor returns its number."""
        return self

    def back(self, values: torch.Tensor) -> torch.Tensor:
        """Resample a difference linearly from the grid to the image's own pixels or voxels; zero outside.

        Args:
            values: (C, *grid), such as counterfactual minus input.

        Returns:
            float32 (C, *native), a plain tensor in the units of ``values``.

        Raises:
            ValueError: if the shape does not match the grid.
        """
        if tuple(values.shape[1:]) != self.grid:
            shown = ", ".join(map(str, self.grid))
            raise ValueError(f"values must have the shape (C, {shown}), got {tuple(values.shape)}")
        return resample(values, np.linalg.inv(self.matrix), self.native)


# collate several records to a list: they describe images of different sizes
default_collate_fn_map[GridRecord] = lambda batch, *, collate_fn_map=None: list(batch)


def grid_record(image: torch.Tensor) -> GridRecord:
    """Return the record that :class:`medcf.transforms.ToGrid` stored in the metadata of an image on the grid.

    Raises:
        ValueError: if the image has no record.
    """
    record = getattr(image, "meta", {}).get("grid_record")
    if record is None:
        raise ValueError("image carries no grid_record: apply medcf.transforms.ToGrid to it first")
    return record[0] if isinstance(record, list) and len(record) == 1 else record


@dataclass(frozen=True)
class Grid:
    """The specification of the network's grid, shared by all images.

    If the spacing of a picture is known, the grid has ``spacing`` in mm. It is centered on the image if the whole image
    fits, otherwise on its visible part (the part of its ultrasound region that is not black). If the spacing is
    unknown, the visible part is fitted into the grid with its aspect ratio kept. On a volume the grid is centered on
    the subject; voxels that belong to it by less than half are exactly -1, the others take the mean over the part that
    does.

    Attributes:
        size: size of the grid: rows and columns, or voxels along ``axes``.
        spacing: mm between grid points: one number, or one per axis. None fits every picture into the grid, as if its
            spacing were unknown: for radiographs, whose field is collimated to the patient.
        axes: ``"screen"``: rows run down and columns run right, as viewers show the picture; or the directions of a
            volume's axes, such as ``"RAS"``.
        subject: how to find the subject if no mask is given: ``"picture"``; for a volume ``"auto"``, ``"nonzero"``,
            ``"estimate"`` or ``"all"`` (see :func:`medcf.data.subject.find_subject`); or a function from the image to a
            bool tensor of the same shape.
        center: ``"subject"``, the middle of its bounding box, or ``"image"``.
        percentile: percentile of a volume's subject that becomes 1. Zero becomes -1, or the opposite percentile if that
            is negative.
        intensity: values that become -1 and 1, such as 0 and 80 HU for CT; None derives them from the image.

    Raises:
        ValueError: if an attribute is invalid; the message names it.
    """

    size: Sequence[int] = (64, 80)
    spacing: float | Sequence[float] | None = 1.75
    axes: str = "screen"
    subject: str | Callable[[torch.Tensor], torch.Tensor] = "picture"
    center: str = "subject"
    percentile: float = 99.5
    intensity: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        count = 2 if self.axes == "screen" else 3
        fitted = count == 2 and self.spacing is None
        sizes, steps = np.asarray(self.size), np.asarray(1.0 if fitted else self.spacing)
        if sizes.shape != (count,) or sizes.dtype.kind != "i" or sizes.min() < 1:
            raise ValueError(f"size must be {('two', 'three')[count - 2]} positive numbers, got {self.size!r}")
        right = steps.shape in ((), (count,)) and steps.dtype.kind in "if"
        if not right or not (np.isfinite(steps) & (steps > 0)).all():
            raise ValueError(f"spacing must be positive millimeters, one number or {count}, got {self.spacing!r}")
        if count == 3 and sorted("RAS"["RLAPSI".index(c) // 2] if c in "RLAPSI" else "" for c in self.axes) != [*"ARS"]:
            raise ValueError(f"axes={self.axes!r} is neither 'screen' nor three directions such as 'RAS'.")
        if isinstance(self.subject, str) and self.subject not in SUBJECTS:
            raise ValueError(f"subject={self.subject!r} is not one of {', '.join(SUBJECTS)}; pass masks as they are.")
        if self.center not in ("subject", "image"):
            raise ValueError(f"center={self.center!r} is neither 'subject' nor 'image'.")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile={self.percentile}: choose one above 50, up to 100.")

    def fit(
        self, image: torch.Tensor, mask: torch.Tensor | None = None, registered: tuple[Any, Any] | None = None
    ) -> GridRecord:
        """Determine where the grid lies in an image.

        Args:
            image: (C, X, Y) or (1, X, Y, Z) in any units.
            mask: the subject, (1, *spatial); None searches for it.
            registered: for a volume registered to a template: the center of the template's subject, and the matrix (4,
                4) from mm in the template to mm in the volume.

        Returns:
            The record, including ``image`` (as luminance).

        Raises:
            ValueError: if the image or mask is invalid, or the intensities have no range.
        """
        if image.ndim != len(self.size) + 1 or min(image.shape[1:]) < 1:
            wanted = "(1 or 3, X, Y)" if len(self.size) == 2 else "(1, X, Y, Z)"
            raise ValueError(f"image must be {wanted}, got shape {tuple(image.shape)}")
        source = to_luminance(image)
        native = tuple(int(n) for n in source.shape[1:])
        sizes = tuple(int(n) for n in self.size)
        if len(native) == 2:
            intensity = self.intensity or display_range(source)
            return GridRecord(self._place_picture(source, intensity), native, sizes, intensity, None, _kept(source))
        inside = _checked(mask, source) if mask is not None else find_subject(source, self.subject)
        matrix = self._place_volume(source, inside, registered)
        intensity = self.intensity or self._intensity(source, inside)
        if not intensity[1] > intensity[0]:
            raise ValueError("the intensities have no range: check the volume and its mask")
        return GridRecord(matrix, native, sizes, intensity, inside, _kept(source))

    def to(self, image: torch.Tensor, record: GridRecord) -> MetaTensor:
        """Resample an image onto the grid of a record, using the record's intensities.

        Args:
            image: (C, *native), the record's image or another image on the same voxels.
            record: from ``fit``.

        Returns:
            float32 (1, *size) in [-1, 1], with the grid's affine and the image's metadata.
        """
        source = to_luminance(image)
        if tuple(source.shape[1:]) != record.native:
            raise ValueError(f"image must have the size {record.native} of the record, got {tuple(source.shape[1:])}")
        low, high = record.intensity
        values = source.as_subclass(torch.Tensor).detach().float()
        if record.mask is None:
            shift = values if low == 0 else values - low
            grid = resample(shift, record.matrix, record.grid, hold_edges=True) * (2 / (high - low)) - 1
        else:
            inside = record.mask.to(values.device)
            share = resample(inside.float(), record.matrix, record.grid)
            # shift black to zero before resampling, so that the area outside adds nothing
            black = torch.where(inside, values, torch.tensor(low, dtype=values.dtype)).sub_(low)
            brain = resample(black, record.matrix, record.grid)
            scaled = (2 * (brain / share.clamp(min=1e-3)) / (high - low) - 1).clamp(-1, 1)
            grid = torch.where(share >= 0.5 - _ROUNDING, scaled, torch.tensor(-1.0))
        affine, known = geometry(image)
        meta = meta_of(image, *_OF_THE_PIXELS) | ({} if known else {str(MetaKeys.SPACE): ""})
        return MetaTensor(grid, affine=torch.from_numpy(affine @ record.matrix), meta=meta)

    def back(self, values: torch.Tensor, record: GridRecord) -> torch.Tensor:
        """Resample a difference from the grid to the image's own pixels or voxels, see `GridRecord.back`."""
        return record.back(values)

    def _place_picture(self, source: torch.Tensor, intensity: tuple[float, float]) -> NDArray[np.float64]:
        """Decide which part of a picture the grid covers."""
        affine, known = geometry(source)
        turn, edges = screen_axes(affine), np.linalg.norm(affine[:3, :2], axis=0)
        along = [int(np.abs(turn[:2, axis]).argmax()) for axis in range(2)]  # image axis for each grid axis
        lengths = np.array([source.shape[1 + axis] for axis in along], dtype=float)
        size = np.array(self.size, dtype=float)
        # pixel edges run from 0 to n, so the center of pixel 0 is at 0.5
        center = lengths / 2
        wanted = self.spacing if known else None
        steps = None if wanted is None else np.broadcast_to(np.asarray(wanted, dtype=float), 2) / edges[along]
        if steps is None or (lengths > size * steps + 1).any():
            low, high = picture_box(source, intensity)
            box = np.array([[low[axis], high[axis]] for axis in along], dtype=float)
            center = box.mean(axis=1)
            if steps is None:
                steps = np.full(2, ((box[:, 1] - box[:, 0]) / size).max())
        matrix = np.eye(4)
        matrix[:2, :2] = 0
        for axis, (to, sign) in enumerate(zip(along, turn[along, [0, 1]], strict=True)):
            matrix[to, axis] = sign * steps[axis]
            matrix[to, 3] = center[axis] - 0.5 + sign * steps[axis] * (0.5 - size[axis] / 2)
        return matrix

    def _place_volume(
        self, source: torch.Tensor, inside: torch.Tensor, registered: tuple[Any, Any] | None
    ) -> NDArray[np.float64]:
        affine = geometry(source)[0]
        steps = np.broadcast_to(np.asarray(self.spacing, dtype=np.float64), 3)
        whole = np.ones(source.shape[1:], bool)
        middle, moved = registered or (None, np.eye(4))
        if middle is None:
            middle = middle_of(inside[0].numpy() if self.center == "subject" else whole, affine)
        directions = np.zeros((3, 3))
        for axis, code in enumerate(self.axes):
            directions["RLAPSI".index(code) // 2, axis] = 1.0 if code in "RAS" else -1.0
        frame = np.eye(4)
        frame[:3, :3] = directions * steps
        frame[:3, 3] = middle - frame[:3, :3] @ ((np.array(self.size) - 1) / 2)
        return np.linalg.inv(affine) @ moved @ frame

    def _intensity(self, source: torch.Tensor, inside: torch.Tensor) -> tuple[float, float]:
        """Return the values of a volume that become black and white."""
        brain = source.as_subclass(torch.Tensor).detach().cpu().float().numpy()[inside.numpy()]
        darkest, high = (float(value) for value in np.percentile(brain, [100 - self.percentile, self.percentile]))
        return min(darkest, 0.0), high


_OF_THE_PIXELS = (
    "mask",
    "overlay_mask",
    "overlay_pixels",
    "region",
)  # metadata that refer to the image's own pixels


def _kept(source: torch.Tensor) -> MetaTensor:
    plain = source.as_subclass(torch.Tensor).detach().float()
    affine, known = geometry(source)
    # the unit matrix keeps an unknown spacing unknown
    return MetaTensor(plain, affine=torch.from_numpy(affine if known else np.eye(4)), meta=meta_of(source, "mask"))


def screen_axes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the signed permutation (2, 2) from grid axes (rows down, columns right) to picture axes.

    Radiological view: patient left is on the right, anterior is up, and in sagittal and coronal planes the head is up.
    """
    import nibabel as nib

    world = nib.orientations.io_orientation(affine)
    # the screen's horizontal axis is x, or y in a sagittal plane: the smaller of the two world axes
    horizontal = 0 if world[0, 0] <= world[1, 0] else 1
    turn = np.zeros((2, 2))
    for axis, source in ((0, 1 - horizontal), (1, horizontal)):
        turn[source, axis] = -world[source, 1]  # left, posterior and inferior are the negative directions of RAS+
    return turn


def _checked(mask: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    if tuple(mask.shape) != tuple(image.shape):
        raise ValueError(f"mask must be on the image's voxels {tuple(image.shape)}, got shape {tuple(mask.shape)}")
    inside = mask.as_subclass(torch.Tensor).detach().cpu() > 0
    if not inside.any():
        raise ValueError("mask is empty: give one in which the subject is 1")
    return inside
