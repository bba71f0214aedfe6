# SPDX-License-Identifier: Apache-2.0
"""Everything that is known about one case once its counterfactual was made, on the input's own matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CaseResult"]


@dataclass(frozen=True)
class CaseResult:
    """A case's images and scores; ``*spatial`` is (H, W) of an image or (X, Y, Z) of a volume.

    Attributes:
        case: case id, also the name of its folder.
        path: the input file, or the first of a series.
        original: (*spatial) float32, the input as it was read: an image (colour as luminance) in [0, 1], before any
            clean-up, a volume in its own units.
        counterfactual: (*spatial) float32: original plus difference, in the units of the original.
        difference: (*spatial) float32, signed, counterfactual minus input as the network sees them, in fractions of
            the full intensity range.
        trajectory: (L + 1, *spatial) float32: the original, then the original plus each iterate's difference.
        affine: (4, 4) from (row, column, slice) indices, or (i, j, k) of a volume, to RAS+ mm.
        source_format: ``"dicom"``, ``"nifti"`` or ``"raster"``.
        spacing: mm between neighbors along each axis; None when the file does not say.
        segmentation: (2, *spatial) uint8 labels of the input and of the counterfactual, None without a segmenter.
        region: first row, first column, end row, end column of what the network saw of an image; None for all.
        window: the original's values that are the network's black and white, the full intensity range.
        mask: (*spatial) bool, the brain of a volume; None where there is none.
        row: the scores, as in ``scores.csv``.
    """

    case: str
    path: Path
    original: NDArray[np.float32]
    counterfactual: NDArray[np.float32]
    difference: NDArray[np.float32]
    trajectory: NDArray[np.float32]
    affine: NDArray[np.float64]
    source_format: str
    spacing: tuple[float, ...] | None = None
    segmentation: NDArray[np.uint8] | None = None
    region: tuple[int, int, int, int] | None = None
    window: tuple[float, float] = (0.0, 1.0)
    mask: NDArray[np.bool_] | None = None
    row: dict[str, Any] = field(default_factory=dict)
