# SPDX-License-Identifier: Apache-2.0
"""Everything that is known about one case once its counterfactual was made, on the input's own matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medcf.runtime.atomic import write_json
from medcf.runtime.owned import fill_folder, run_of

__all__ = ["MARKER", "CaseResult", "Writer"]

#: The case's scores: the last file that is written, it marks the case as done.
MARKER = "case.json"

Writer = Callable[["CaseResult", Path], object]


@dataclass(frozen=True)
class CaseResult:
    """A case's images and scores; ``*spatial`` is (X, Y) of a picture, columns first, or (X, Y, Z) of a volume.

    Attributes:
        case: case id, also the name of its folder.
        path: the input file, or the first of a series.
        original: (*spatial) float32, the input as the network's grid was made of it: a picture in [0, 1] after its
            clean-up, a volume in its own units.
        counterfactual: (*spatial) float32: original plus difference, in the units of the original.
        difference: (*spatial) float32, signed, counterfactual minus input as the network sees them, in fractions of
            the full intensity range.
        trajectory: (L + 1, *spatial) float32: the original, then the original plus each iterate's difference, of the
            L passes that ran for this case; None where the iterates stayed on the network's grid.
        affine: (4, 4) from indices to RAS+ mm.
        source_format: ``"dicom"``, ``"nifti"`` or ``"raster"``.
        spacing: mm between neighbors along each axis; None when the file does not say.
        segmentation: (2, *spatial) uint8 labels of the input and of the counterfactual, None without a segmenter.
        spread: (*spatial) float32, standard deviation of the counterfactual over seeds, in fractions of the full
            intensity range; None after a single seed.
        region: of a picture, first column and row, end column and row of what the network saw; None for all.
        window: the original's values that are the network's black and white, the full intensity range.
        mask: (*spatial) bool, the subject of a volume; None where there is none.
        row: the scores, as in ``scores.csv``.
        on_grid: ``image`` and ``pred`` (1, *grid) in [-1, 1].
        writers: what ``save`` calls, in this order.
    """

    case: str
    path: Path
    original: NDArray[np.float32] = field(repr=False)
    counterfactual: NDArray[np.float32] = field(repr=False)
    difference: NDArray[np.float32] = field(repr=False)
    trajectory: NDArray[np.float32] | None = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    source_format: str
    spacing: tuple[float, ...] | None = None
    segmentation: NDArray[np.uint8] | None = field(default=None, repr=False)
    spread: NDArray[np.float32] | None = field(default=None, repr=False)
    region: tuple[int, int, int, int] | None = None
    window: tuple[float, float] = (0.0, 1.0)
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    row: dict[str, Any] = field(default_factory=dict)
    on_grid: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    writers: Sequence[Writer] = field(default=(), repr=False)

    @property
    def synthetic(self) -> bool:
        """Whether anything was made: an input that came back as it was is not stamped as synthetic."""
        return not self.row.get("unchanged", False) and bool(np.any(self.difference))

    def write(self, folder: Path) -> None:
        """Let the writers write into a folder."""
        for writer in self.writers:
            writer(self, folder)

    def save(self, output_dir: str | Path) -> Path:
        """Write the images and ``case.json`` into a folder called after the case.

        Args:
            output_dir: folder of that folder.

        Returns:
            The case's folder. What medcf wrote there before is replaced or removed, what anybody else did stays.

        Raises:
            FileExistsError: a file of somebody else, or the result of another image, is in the way; names it.
        """
        folder = Path(output_dir) / self.case
        if run_of(folder) is not None and (folder / MARKER).is_file():
            image = json.loads((folder / MARKER).read_text(encoding="utf-8")).get("file")
            if image != self.row.get("file"):
                raise FileExistsError(f"{folder} holds the result of another image ({image}): choose another folder.")
        fill_folder(folder, self.write, more=(MARKER,))
        write_json(folder / MARKER, self.row)
        return folder
