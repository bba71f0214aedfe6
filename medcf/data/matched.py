# SPDX-License-Identifier: Apache-2.0
"""A synthetic image in the form of a real one: its axes, size, channels, gray values and type."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Resize
from monai.utils import MetaKeys, convert_to_dst_type, convert_to_tensor
from torch import Tensor

from medcf.data.grid import screen_axes
from medcf.data.image import picture_affine, square_affine

__all__ = ["matched"]

#: Directions of the axes of a synthetic volume.
_VOLUME = "RAS"
_UNIT = np.eye(4)


def matched(made: Tensor, img: NdarrayOrTensor, intensity: tuple[float, float] | None = None) -> Any:
    """Give a synthetic image the form of a real one, so that both can go through the same pipeline.

    A synthetic picture has rows and columns, as on a screen. MONAI's loaders put columns first, and a pipeline may have
    flipped them since: a MetaTensor's affine tells, and the synthetic picture is turned alike. An array or a plain
    tensor is taken to have rows and columns.

    Args:
        made: (1, rows, columns), or (1, X, Y, Z) toward right, anterior and superior, in [-1, 1].
        img: the real image (C, *spatial).
        intensity: gray values that black and white become; None takes the real image's darkest and brightest.

    Returns:
        ``made`` with the axes, size, number of channels, gray values, type and metadata of ``img``.

    Raises:
        ValueError: if one is a picture and the other a volume.
    """
    values = img.as_tensor() if isinstance(img, MetaTensor) else convert_to_tensor(img, track_meta=False)
    if values.ndim != made.ndim:
        raise ValueError(f"The image is {tuple(values.shape)}, and the synthetic one {tuple(made.shape)}.")
    if isinstance(img, MetaTensor):
        order, backward = _turn(*_positions(img), img.ndim - 1)
        made = made.permute(0, *order)
        made = made.flip(backward) if backward else made
    low, high = values.aminmax() if intensity is None else intensity
    if made.shape[1:] != values.shape[1:]:
        mode = "bilinear" if made.ndim == 3 else "trilinear"
        made = convert_to_tensor(Resize(values.shape[1:], mode=mode, anti_aliasing=True)(made), track_meta=False)
    scaled = (made.to(values.device) + 1) * ((high - low) / 2) + low
    scaled = (scaled if values.is_floating_point() else scaled.round()).to(values.dtype).expand_as(values).contiguous()
    if isinstance(img, MetaTensor):
        result = MetaTensor(scaled, meta=img.meta, applied_operations=img.applied_operations)
        result.meta = dict(img.meta)  # its own, and not a deep copy
        return result
    return convert_to_dst_type(scaled, img)[0]


def _positions(img: MetaTensor) -> tuple[bytes, bytes]:
    """Return an image's affine now and that of its file, as bytes."""
    first = img.meta.get(str(MetaKeys.ORIGINAL_AFFINE), _UNIT)  # readers of pictures have none
    return square_affine(img.affine).tobytes(), square_affine(first).tobytes()


@lru_cache(maxsize=256)
def _turn(now: bytes, first: bytes, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the order of a synthetic image's axes, counted from 1, and those that run backward after that.

    Args:
        now: affine (4, 4) of the image.
        first: that of its file; a picture's that has none is taken to have been on a screen.
        count: number of spatial axes.
    """
    affine = np.frombuffer(now).reshape(4, 4)
    if count == 2:
        if np.array_equal(np.frombuffer(first).reshape(4, 4), _UNIT):
            affine = picture_affine() @ affine
        turn = screen_axes(affine)
        order = np.abs(turn).argmax(1)
        return tuple(int(axis) + 1 for axis in order), tuple(n + 1 for n in range(2) if turn[n, order[n]] < 0)
    steps = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(_VOLUME), nib.orientations.io_orientation(affine)
    )
    order = np.argsort(steps[:, 0])
    return tuple(int(axis) + 1 for axis in order), tuple(int(place) + 1 for place, sign in steps if sign < 0)
