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
    """A case's images and scores.

    Attributes:
        case: case id, also the name of its folder.
        path: the input file.
        original: (H, W) float32 in [0, 1], the input as it was read (colour as luminance), before any clean-up.
        counterfactual: (H, W) float32 in [0, 1]: original plus difference, clipped.
        difference: (H, W) float32, signed, counterfactual minus input as the network sees them, in fractions of the
            full intensity range.
        trajectory: (L + 1, H, W) float32 in [0, 1]: the original, then the original plus each iterate's difference.
        affine: (4, 4) from (row, column, slice) indices to RAS+ mm.
        source_format: ``"dicom"``, ``"nifti"`` or ``"raster"``.
        spacing: mm between rows and between columns; None when the file does not say.
        segmentation: (2, H, W) uint8 labels of the input and of the counterfactual, None without a segmenter.
        region: first row, first column, end row, end column of what the network saw; None for all.
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
    spacing: tuple[float, float] | None = None
    segmentation: NDArray[np.uint8] | None = None
    region: tuple[int, int, int, int] | None = None
    row: dict[str, Any] = field(default_factory=dict)
