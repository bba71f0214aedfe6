# SPDX-License-Identifier: Apache-2.0
"""Reads the image of a case, as the first transform of a bundle's preprocessing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Transform

from medcf.data import read_case

__all__ = ["LoadCased"]


class LoadCased(Transform):
    """Replaces a case's path by its image, and keeps the image as it was read.

    Args:
        image_key: holds the path; then the image (1 or 3, H, W) in [0, 1], a MetaTensor.
        original_key: the same image, which later transforms leave alone.
        color: keep three channels of colored files, so that colored marks can be found.
    """

    def __init__(self, image_key: str = "image", original_key: str = "original", color: bool = True) -> None:
        self.image_key = image_key
        self.original_key = original_key
        self.color = color

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the image.

        Raises:
            UnreadableImage: the file is damaged, or no 2D image.
        """
        image = read_case({str(k): v for k, v in data.items()} | {"image": data[self.image_key]}, color=self.color)
        return {**data, self.image_key: image, self.original_key: image.clone()}
