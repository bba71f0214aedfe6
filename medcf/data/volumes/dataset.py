# SPDX-License-Identifier: Apache-2.0
"""The user's own volumes as a training dataset, named by a table."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch.utils.data import Dataset

from medcf.data.volumes.discovery import find_volumes
from medcf.data.volumes.grid import resample_volume, to_volume_grid
from medcf.data.volumes.reading import read_mask, read_volume, resolve_mask
from medcf.phantoms.cache import cached_arrays, make_rows
from medcf.runtime.errors import UnreadableImage
from medcf.training.image_dataset import choose_cases

__all__ = ["VolumeDataset"]

_VERSION = 1  # of the preprocessing; a cache of another version is not used
_TARGETS = ("label", "segmentation")


class VolumeDataset(Dataset[dict[str, Any]]):
    """Labelled NIfTI volumes and DICOM series on the network's grid, read once and kept in memory.

    The table is read by `medcf.data.volumes.find_volumes`: the column ``file``, and as far as the training needs them
    ``label`` (class index), ``segmentation`` (volume of class indices on the same voxels), ``mask`` (brain mask),
    beside ``subject`` and ``split``. Where ``split`` is missing, the volumes are split by subject (by file where
    ``subject`` is missing too), see `medcf.training.image_dataset.split_of_subject`.

    An item holds ``image`` float32 (1, *size) in [-1, 1] (-1 outside of the brain; to a precision of 0.0005), ``case``
    and ``subject``, and the targets: ``label`` int64, ``segmentation`` int64 (1, *size).

    Args:
        datalist: CSV or JSON table.
        split: the split to keep.
        dataset_dir: folder that the table's paths are relative to.
        size: voxels of the network's grid along x, y and z.
        spacing: mm between them.
        targets: what every item carries beside ``image``; volumes that lack one of them are left out, and counted in
            the log.
        null_label: label of the volumes without one; None leaves them out where ``label`` is a target.
        label_column: column that holds the class index.
        mask: how the brain is found where the table names no mask, see `medcf.data.volumes.brain_mask`.
        preprocessing: maps a volume as read, (1, X, Y, Z), to one that is ready for the grid.
        transform: applied to every item whenever it is taken, usually augmentation.
        cache_file: .npz file that is read if it holds this very set and written otherwise, which reads every volume at
            once; None reads each when it is first asked for.
        progress: whether to show a progress bar while a cache is made.
        **options: further options of `medcf.data.volumes.to_volume_grid`.

    Raises:
        ValueError: a file cannot be read, or no volume of the split has all targets.
    """

    def __init__(
        self,
        datalist: str | Path,
        split: str = "train",
        *,
        dataset_dir: str | Path | None = None,
        size: Sequence[int] = (40, 48, 40),
        spacing: float | Sequence[float] = 4.0,
        targets: Sequence[str] = ("label",),
        null_label: int | None = None,
        label_column: str = "label",
        mask: str = "auto",
        preprocessing: Callable[[torch.Tensor], torch.Tensor] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        cache_file: str | Path | None = None,
        progress: bool = True,
        **options: Any,
    ) -> None:
        if unknown := sorted(set(targets) - set(_TARGETS)):
            raise ValueError(f"targets: {', '.join(unknown)} is none of {', '.join(_TARGETS)}.")
        self.root = Path(dataset_dir) if dataset_dir is not None else Path(datalist).parent
        self.targets = tuple(targets)
        found = find_volumes(dataset_dir, datalist, label_column=label_column)
        self.cases = choose_cases(*found, datalist, split, self.targets, null_label=null_label, kind="volume")
        self.mask = mask
        self.preprocessing = preprocessing
        self.transform = transform
        self.options: dict[str, Any] = {"size": tuple(int(n) for n in size), "spacing": spacing, **options}
        self._samples: list[dict[str, Any] | None] = [None] * len(self.cases)
        if cache_file is not None:
            self._fill(Path(cache_file), progress)

    def __len__(self) -> int:
        """Number of volumes."""
        return len(self.cases)

    def __getitem__(self, index: int) -> Any:
        """One volume, after the transform if there is one."""
        sample = self._sample(index)
        case = self.cases[index]
        item: dict[str, Any] = {
            "image": sample["image"].float(),
            "case": str(case["case"]),
            "subject": str(case.get("subject", case["case"])),
        }
        if "label" in self.targets:
            item["label"] = torch.tensor(int(case["label"]))
        if "segmentation" in self.targets:
            item["segmentation"] = sample["segmentation"].long()
        return item if self.transform is None else self.transform(item)

    def _sample(self, index: int) -> dict[str, torch.Tensor]:
        sample = self._samples[index]
        if sample is None:
            sample = self._samples[index] = self._read(self.cases[index])
        return sample

    def _read(self, case: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        image = read_volume(case.get("files") or case["image"])
        inside = read_mask(case["mask"], image) if "mask" in case else resolve_mask(image, self.mask)
        ready = image if self.preprocessing is None else self.preprocessing(image)
        grid, record = to_volume_grid(ready, mask=inside, **self.options)
        sample = {"image": grid.as_tensor().half()}
        if "segmentation" in self.targets:
            path = self.root / str(case["segmentation"])
            sample["segmentation"] = _labels_on_grid(path, image, record)
        return sample

    def _fill(self, path: Path, progress: bool) -> None:
        """Take the samples from a cache file, or write one."""
        key = _key(self.root, self.cases, [self.targets, self.mask, self.preprocessing is not None, self.options])
        bar: dict[str, Any] = {"title": "reading volumes", "unit": "volume", "progress": progress}
        arrays = cached_arrays(path, key, lambda: make_rows(self._sample, range(len(self)), **bar))
        for index in range(len(self)):
            self._samples[index] = {name: torch.from_numpy(values[index]) for name, values in arrays.items()}


def _labels_on_grid(path: Path, image: MetaTensor, record: Mapping[str, Any]) -> torch.Tensor:
    """Resample class indices: each voxel of the grid takes the class that fills most of it; uint8 (1, *size)."""
    stored = read_volume(path)
    if stored.shape != image.shape or not np.allclose(stored.affine, image.affine, atol=0.05):
        remedy = "Resample it onto the volume, nearest neighbor."
        raise UnreadableImage(path, "is a segmentation on other voxels than its volume", remedy)
    labels = stored.as_tensor()[0].round().long()
    if int(labels.min()) < 0 or int(labels.max()) > 255:
        raise UnreadableImage(path, "holds labels outside of 0 to 255", "Number the classes 0, 1, 2, ...")
    matrix = np.array(record["matrix"])
    best = torch.zeros(1, *record["grid_size"])
    result = torch.zeros(1, *record["grid_size"], dtype=torch.uint8)
    for label in torch.unique(labels).tolist():
        share = resample_volume((labels == label)[None].float(), matrix, record["grid_size"])
        result[share > best] = label
        best = torch.maximum(best, share)
    return result


def _key(root: Path, cases: Sequence[Mapping[str, Any]], options: Sequence[Any]) -> str:
    """Tell one set from another: its files, their sizes and times, and how they are prepared."""
    files = []
    for case in cases:
        extra = [str(root / str(case[name])) for name in ("mask", "segmentation") if name in case]
        for file in [*(case.get("files") or [case["image"]]), *extra]:
            state = os.stat(file)
            files.append([str(file), state.st_size, state.st_mtime_ns])
    return hashlib.sha256(json.dumps([_VERSION, files, options], default=str).encode()).hexdigest()
