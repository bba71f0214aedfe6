# SPDX-License-Identifier: Apache-2.0
"""Removes burned-in text, calipers and colored marks before a network sees the image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform

from medcf.data import to_luminance
from medcf.data.image import display_range, meta_of
from medcf.transforms.images import NUMPY, as_picture, tracked
from medcf.transforms.overlay_detection import fill_in, find_overlays

__all__ = ["RemoveOverlays", "RemoveOverlaysD", "RemoveOverlaysDict", "RemoveOverlaysd"]


class RemoveOverlays(Transform):
    """Find what the scanner drew over an ultrasound image and fill it in from the surroundings.

    Text, calipers, dotted lines and frames are found by their hard edges and exact gray values; colored marks (and
    color Doppler, which hides the echoes below it) by their chroma; and anything next to the picture by its position.
    This serves the network. It is not de-identification: there is no guarantee that a name is found completely. An
    image without any of these is returned unchanged.

    Apply it at full resolution, and in color if the file has it (as :func:`medcf.read` returns it): resampling smears
    the edges by which drawings are found. The result is luminance. Its metadata hold ``overlay_mask`` (1, X, Y), bool,
    and ``overlay_fraction``, the fraction of replaced pixels.

    Args:
        keep: remember what was removed, so that `AddDifference` puts it back onto the written result; the network still
            sees the cleaned image.
    """

    backend = NUMPY

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep

    def __call__(self, image: NdarrayOrTensor) -> torch.Tensor:
        """Clean one image.

        Args:
            image: (1 or 3, X, Y) in [0, 1], [0, 255] or its own range, which is mapped to [0, 1]; the meta entry
                ``region``, if any, bounds the picture.

        Returns:
            (1, X, Y) in [0, 1].

        Raises:
            ValueError: if the shape is wrong or values are not finite.
        """
        image = as_picture(image)
        if image.ndim != 3 or image.shape[0] not in (1, 3) or min(image.shape[1:]) < 1:
            raise ValueError(f"image must be (1 or 3, X, Y), got shape {tuple(image.shape)}")
        if not bool(torch.isfinite(image).all()):
            raise ValueError("image holds values that are not finite: clean it first")
        low, high = display_range(image)
        values = image.as_subclass(torch.Tensor).detach().cpu().float()
        values = values if (low, high) == (0.0, 1.0) else (values - low) / (high - low)
        array = np.ascontiguousarray(values.numpy().swapaxes(1, 2))  # the detection works in rows and columns
        luminance = np.ascontiguousarray(to_luminance(values)[0].numpy().T)
        height, width = luminance.shape
        left, top, right, bottom = (int(n) for n in meta_of(image).get("region", (0, 0, width, height)))
        marks, black = find_overlays(array, luminance, (top, left, bottom, right))
        cleaned = fill_in(np.where(black, np.float32(0), luminance), marks & ~black)
        result = torch.from_numpy(np.ascontiguousarray(cleaned.T))[None].to(image.device)
        mask = torch.from_numpy(np.ascontiguousarray(marks.T))[None]
        entries: dict[str, object] = {"overlay_mask": mask, "overlay_fraction": float(marks.mean())}
        if self.keep:
            entries["overlay_pixels"] = torch.from_numpy(np.ascontiguousarray(luminance.T))[None]
        return tracked(result, image, **entries)


class RemoveOverlaysd(MapTransform):
    """Dictionary version of :class:`RemoveOverlays`.

    Args:
        keys: images to clean.
        keep: see `RemoveOverlays`.
        allow_missing_keys: whether keys may be missing.
    """

    backend = RemoveOverlays.backend

    def __init__(self, keys: KeysCollection, keep: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.remover = RemoveOverlays(keep)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the images of one case; other entries are kept."""
        return {**data, **{key: self.remover(data[key]) for key in self.key_iterator(dict(data))}}


RemoveOverlaysD = RemoveOverlaysDict = RemoveOverlaysd
