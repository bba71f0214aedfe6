# SPDX-License-Identifier: Apache-2.0
"""Counterfactuals that a bundle's inference made of a training set, found again by the images that they explain."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from medcf.runtime.manifest import read_manifest
from medcf.runtime.subjects import read_subjects

__all__ = ["Counterfactual", "CounterfactualRuns"]

_FILES = ("original.nii.gz", "counterfactual.nii.gz")


@dataclass(frozen=True)
class Counterfactual:
    """One image's counterfactual.

    Attributes:
        folder: the case's folder.
        source: the image that was explained.
        label: class that the image was changed to.
        row: the case's scores.
    """

    folder: Path
    source: PurePath
    label: int
    row: Mapping[str, Any]

    def read(self) -> tuple[Tensor, Tensor]:
        """Read the explained image and its counterfactual, both (1, *spatial) on the image's own pixels or voxels.

        Raises:
            FileNotFoundError: if the run did not write NIfTI.
        """
        original, changed = (self._read(self.folder / name) for name in _FILES)
        return original, changed

    def _read(self, path: Path) -> Tensor:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run the bundle's inference with --output_format nifti.")
        image = nib.nifti1.load(path)
        values = np.asarray(image.dataobj, dtype=np.float32)
        flat = "rows" in self.row  # a picture is stored as a volume of one slice
        while values.ndim > (2 if flat else 3) and values.shape[-1] == 1:
            values = values[..., 0]
        return torch.from_numpy(values)[None]


class CounterfactualRuns:
    """The counterfactuals in the output folders of a bundle's inference, one folder for each target class.

    Args:
        folders: output folders; a run that was killed gives what it has finished.
        flipped: leave out counterfactuals that the explained classifier does not take for the target class.

    Raises:
        FileNotFoundError: if a folder holds no run.
        ValueError: if the runs hold no counterfactual that can be used.
    """

    def __init__(self, folders: str | Path | Sequence[str | Path], *, flipped: bool = True) -> None:
        self.folders = [Path(each) for each in ([folders] if isinstance(folders, str | Path) else folders)]
        self._manifests = [_manifest(folder) for folder in self.folders]
        found = [each for folder in self.folders for each in _cases(folder, flipped)]
        if not found:
            told = ", ".join(map(str, self.folders))
            raise ValueError(f"No counterfactual in {told} reached its class: explain more images, or flipped=False.")
        self._by_name: dict[str, list[Counterfactual]] = {}
        for each in found:
            self._by_name.setdefault(each.source.name, []).append(each)

    def __len__(self) -> int:
        """Number of counterfactuals."""
        return sum(map(len, self._by_name.values()))

    def of(self, source: str | PurePath) -> list[Counterfactual]:
        """Return an image's counterfactuals; none if it was not explained, or is of the target class already.

        Files are compared by as many of their last names as it takes, because a dataset may have moved.

        Args:
            source: path of the image.

        Raises:
            ValueError: if images of several folders fit equally well.
        """
        path = PurePath(source)
        candidates = self._by_name.get(path.name, [])
        best = max((_common(path, each.source) for each in candidates), default=0)
        chosen = [each for each in candidates if _common(path, each.source) == best]
        if len(sources := {each.source for each in chosen}) > 1:
            told = " and ".join(sorted(map(str, sources))[:2])
            raise ValueError(f"{path} may be {told}: give paths with the folders that tell them apart.")
        return chosen

    @property
    def labels(self) -> set[int]:
        """The classes of the counterfactuals."""
        return {each.label for members in self._by_name.values() for each in members}

    @property
    def subjects(self) -> frozenset[str] | None:
        """Hashed names of all subjects that the runs' networks saw; None if one of them does not say.

        An explained image shows its own subject as well: it belongs into the training set, not into the validation.
        """
        weights = [entry["path"] for manifest in self._manifests for entry in manifest.get("weights", {}).values()]
        seen = read_subjects(weights) if weights else None
        return None if seen is None else frozenset(seen)


def _cases(folder: Path, flipped: bool) -> Iterable[Counterfactual]:
    for marker in sorted(folder.glob("*/case.json")):
        row = json.loads(marker.read_text(encoding="utf-8"))
        if not row["unchanged"] and (row["flipped"] or not flipped):
            yield Counterfactual(marker.parent, PurePath(row["file"]), int(row["target"]), row)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest is None:
        raise FileNotFoundError(f"{folder} holds no run of a bundle's inference.")
    return manifest


def _common(first: PurePath, second: PurePath) -> int:
    """Return how many of their last names two paths have in common."""
    count = 0
    for one, other in zip(reversed(first.parts), reversed(second.parts), strict=False):
        if one != other:
            break
        count += 1
    return count
