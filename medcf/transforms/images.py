# SPDX-License-Identifier: Apache-2.0
"""Images as arrays, or as MONAI's loaders return them, converted to (C, *spatial) and checked for their range."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.utils import MetaKeys, TransformBackends, convert_to_tensor
from torch import Tensor

from medcf.data.image import channels_first, geometry, meta_of, picture_affine

__all__ = ["NUMPY", "TORCH", "as_image", "as_picture", "check_range", "tracked"]

# data types a transform computes with: its MONAI attribute ``backend``
NUMPY, TORCH = [TransformBackends.NUMPY], [TransformBackends.TORCH]

# readers that know the pixel spacing: medcf's, and MONAI's ITKReader if DICOM's Pixel Spacing is present
_PLACED = {"source_format", "0028|0030"}


def as_image(image: NdarrayOrTensor) -> Tensor:
    """Return an array as a tensor, with the channel axis moved or added if a loader left it last or omitted it."""
    tensor = image if isinstance(image, Tensor) else convert_to_tensor(image, track_meta=False)
    return channels_first(tensor)


def as_picture(image: NdarrayOrTensor) -> Tensor:
    """Return a picture as (C, X, Y), even if MONAI's ITKReader turned it into a volume of one slice.

    If that reader knows no spacing it reports 1 mm; the spacing is then set to unknown, as with the other readers.
    """
    picture: Any = as_image(image)
    if not isinstance(picture, MetaTensor):
        return picture[..., 0] if picture.ndim == 4 and picture.shape[-1] == 1 else picture
    meta = meta_of(picture)
    # MONAI's SaveImage takes a picture for a line if the file had a channel axis
    meta[str(MetaKeys.ORIGINAL_CHANNEL_DIM)] = float("nan")
    if picture.ndim == 4 and picture.shape[-1] == 1:
        picture = picture[..., 0]
        meta[str(MetaKeys.SPATIAL_SHAPE)] = np.asarray(meta.get(str(MetaKeys.SPATIAL_SHAPE), picture.shape[1:]))[:2]
    affine = picture.affine
    if not _PLACED & meta.keys() and np.array_equal(geometry(picture)[0], picture_affine()):
        affine, meta[str(MetaKeys.SPACE)] = torch.eye(4, dtype=torch.float64), ""
    operations = picture.applied_operations
    return MetaTensor(picture.as_tensor(), affine=affine, meta=meta, applied_operations=operations)


def tracked(values: Tensor, image: Tensor, **entries: object) -> Tensor:
    """Give values the position, metadata and history of an image, unless MONAI's tracking is off.

    Args:
        values: result for the image, on its pixels or voxels.
        image: the image.
        entries: additional metadata.
    """
    if not get_track_meta():
        return values
    operations = getattr(image, "applied_operations", None)
    affine = getattr(image, "affine", None)
    return MetaTensor(values, affine=affine, meta=meta_of(image) | entries, applied_operations=operations)


def check_range(name: str, image: Tensor, low: float = -1.0, high: float = 1.0) -> None:
    """Refuse an image in the wrong units. Up to twice the range beyond each end counts as overshoot.

    Raises:
        ValueError: if values are far outside; names the range and the remedy.
    """
    darkest, brightest = (float(end) for end in image.as_subclass(Tensor).float().aminmax())
    slack = 2 * (high - low)
    if darkest < low - slack or brightest > high + slack:
        raise ValueError(
            f"{name} ranges from {darkest:g} to {brightest:g}, but [{low:g}, {high:g}] is expected: rescale it, for "
            f"example with ScaleIntensityRanged(a_min={darkest:g}, a_max={brightest:g}, b_min={low:g}, b_max={high:g})."
        )
