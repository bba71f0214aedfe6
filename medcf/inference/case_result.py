# SPDX-License-Identifier: Apache-2.0
"""All results for one case after its counterfactual was made, on the input's own matrix."""

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

#: The case's scores: the file written last; it marks the case as done.
MARKER = "case.json"

Writer = Callable[["CaseResult", Path], object]


@dataclass(frozen=True)
class CaseResult:
    """A case's images and scores; ``*spatial`` is (X, Y) for a picture, columns first, or (X, Y, Z) for a volume.

    Attributes:
        case: case id, also the name of its folder.
        path: the input file, or the first of a series.
        original: (*spatial) float32, the input before resampling to the network's grid: a picture in [0, 1] after
            clean-up, a volume in its own units.
        counterfactual: (*spatial) float32: original plus difference, in the original's units.
        difference: (*spatial) float32, signed, counterfactual minus input as seen by the network, in fractions of the
            full intensity range.
        trajectory: (L + 1, *spatial) float32: the original, then the original plus each iterate's difference, for the L
            passes run for this case; None if the iterates stayed on the network's grid.
        affine: (4, 4) from indices to RAS+ mm.
        source_format: ``"dicom"``, ``"nifti"`` or ``"raster"``.
        spacing: mm between neighbors along each axis; None if the file does not state it.
        segmentation: (2, *spatial) uint8 labels for the input and the counterfactual; None without a segmenter.
        expected: (*spatial) float32, the mean of the counterfactuals over seeds, in the original's units: nearer to
            the truth than one of them, blurred, and not made to flip; None after a single seed.
        expected_difference: (*spatial) float32, ``expected`` minus input, like ``difference``: what to measure with.
        spread: (*spatial) float32, standard deviation of the counterfactual over seeds, in fractions of the full
            intensity range; None after a single seed.
        organ: (*spatial) bool, what the map is limited to; None without a map.
        attribution: (*spatial) float32, the abnormal minus the normal image inside the organ, 0 outside, in fractions
            of the full intensity range; of the expected difference after several seeds. ``row["attribution_sign"]``
            says which of the two images is the input. None without a map.
        region: for a picture, first column and row, end column and row of the part that the network saw; None for all.
        window: the original's values that are black and white for the network, the full intensity range.
        mask: (*spatial) bool, the subject of a volume; None if there is none.
        row: the scores, as in ``scores.csv``.
        files: all files of the input, in slice order; empty if only ``path`` is known.
        on_grid: ``image`` and ``pred`` (1, *grid) in [-1, 1].
        writers: called by ``save``, in this order.
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
    expected: NDArray[np.float32] | None = field(default=None, repr=False)
    expected_difference: NDArray[np.float32] | None = field(default=None, repr=False)
    spread: NDArray[np.float32] | None = field(default=None, repr=False)
    organ: NDArray[np.bool_] | None = field(default=None, repr=False)
    attribution: NDArray[np.float32] | None = field(default=None, repr=False)
    region: tuple[int, int, int, int] | None = None
    window: tuple[float, float] = (0.0, 1.0)
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    row: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    on_grid: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    writers: Sequence[Writer] = field(default=(), repr=False)

    @property
    def synthetic(self) -> bool:
        """Whether anything was generated: an input returned unchanged is not labeled synthetic."""
        return not self.row.get("unchanged", False) and bool(np.any(self.difference))

    def write(self, folder: Path) -> None:
        """Let the writers write to a folder."""
        for writer in self.writers:
            writer(self, folder)

    def save(self, output_dir: str | Path) -> Path:
        """Write the images and ``case.json`` to a folder named after the case.

        Args:
            output_dir: parent of that folder.

        Returns:
            The case's folder. Files that medcf wrote there before are replaced or removed; all others stay.

        Raises:
            FileExistsError: if someone else's file, or the result of another image, is in the way; names it.
        """
        folder = Path(output_dir) / self.case
        if run_of(folder) is not None and (folder / MARKER).is_file():
            image = json.loads((folder / MARKER).read_text(encoding="utf-8")).get("file")
            if image != self.row.get("file"):
                raise FileExistsError(f"{folder} holds the result of another image ({image}): choose another folder.")
        fill_folder(folder, self.write, more=(MARKER,))
        write_json(folder / MARKER, self.row)
        return folder
