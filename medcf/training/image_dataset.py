# SPDX-License-Identifier: Apache-2.0
"""The user's own images as a training dataset, named by a table."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from medcf.data.datalist import build_datalist, read_case
from medcf.data.grid import resample_to, to_grid
from medcf.data.readers import read_study

__all__ = ["ImageDataset", "choose_cases", "split_of_subject"]

logger = logging.getLogger(__name__)

#: Where a table has no column ``split``, a subject falls into one of these by the hash of its name.
SHARES = {"train": 0.6, "val": 0.2, "oracle": 0.2}

#: The column of the table that each target comes from.
COLUMNS = {"label": "label", "segmentation": "mask", "quality": "quality", "concepts": "concepts"}


def split_of_subject(subject: str) -> str:
    """Assign a subject to a split, always the same one: 60 % train, 20 % val, 20 % oracle.

    Example:
        >>> split_of_subject("subject 7") == split_of_subject("subject 7")
        True
    """
    position = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") / 2**64
    for name, share in SHARES.items():
        if position < share:
            return name
        position -= share
    return "train"


def choose_cases(
    cases: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, str]],
    datalist: str | Path,
    split: str,
    columns: Sequence[str],
    *,
    null_label: int | None = None,
    kind: str = "image",
) -> list[dict[str, Any]]:
    """Choose the cases of a split that have all columns; how many do and do not is logged.

    Args:
        cases: rows of the table.
        failures: files that cannot be used, with ``file`` and ``reason``.
        datalist: the table, for messages.
        split: the split; a case without one falls into that of its subject, see `split_of_subject`.
        columns: what a training needs of each case.
        null_label: ``label`` of the cases without one.
        kind: what a case is, for messages.

    Raises:
        ValueError: a file cannot be used, or no case is left.
    """
    if failures:
        named = "; ".join(f"{failure['file']} {failure['reason']}" for failure in failures[:3])
        raise ValueError(f"{len(failures)} files of {datalist} cannot be used: {named}. Take them out of the table.")
    labeled = [dict(case) if null_label is None else {"label": null_label, **case} for case in cases]
    subjects = [str(case.get("subject", case["case"])) for case in labeled]
    members = [
        case
        for case, subject in zip(labeled, subjects, strict=True)
        if case.get("split", split_of_subject(subject)) == split
    ]
    if not members:
        raise ValueError(f"{datalist} names no {kind} of the split {split!r}; fill its column 'split'.")
    kept = [case for case in members if all(column in case for column in columns)]
    if not kept:
        raise ValueError(
            f"No {kind} of the split {split!r} in {datalist} has all that this training needs; fill the columns "
            f"{', '.join(columns)}."
        )
    if left_out := len(members) - len(kept):
        logger.warning("%d %ss of %s lack one of %s and are left out", left_out, kind, datalist, ", ".join(columns))
    logger.info("%d %ss of the split %r in %s", len(kept), kind, split, datalist)
    return kept


class ImageDataset(Dataset):
    """Images of any format on the network's grid, read once and kept in memory.

    The table is read by `medcf.data.datalist.build_datalist`: the column ``file``, and as far as the training needs
    them ``label`` (class index), ``mask`` (image of class indices, as in the phantoms), ``quality`` (in [0, 1]) and
    ``concepts`` (numbers in [0, 1] with blanks between), beside ``subject`` and ``split``. Where ``split`` is missing,
    the images are split by subject (by file where ``subject`` is missing too), see `split_of_subject`.

    Args:
        datalist: CSV or JSON table.
        split: the split to keep.
        dataset_dir: folder that the table's paths are relative to.
        size: size (H, W) of the network's grid.
        spacing: pixel spacing of the grid in mm.
        targets: what every sample carries beside ``image`` and ``case``, of ``label``, ``segmentation``, ``quality``
            and ``concepts``; images that lack one of them are left out, and counted in the log.
        null_label: label of the images without one; None leaves them out where ``label`` is a target.
        preprocessing: maps an image as read, (1 or 3, H, W) in [0, 1], to one that is ready for the grid, for example
            `medcf.transforms.RemoveOverlays`.
        transform: applied to every sample whenever it is taken, usually augmentation.

    Raises:
        ValueError: a file cannot be read, or no image of the split has all targets.
    """

    def __init__(
        self,
        datalist: str | Path,
        split: str = "train",
        *,
        dataset_dir: str | Path | None = None,
        size: Sequence[int] = (64, 80),
        spacing: float = 1.75,
        targets: Sequence[str] = ("label",),
        null_label: int | None = None,
        preprocessing: Callable[[torch.Tensor], torch.Tensor] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        if unknown := sorted(set(targets) - set(COLUMNS)):
            raise ValueError(f"targets: {', '.join(unknown)} is none of {', '.join(COLUMNS)}.")
        columns = [COLUMNS[target] for target in targets]
        found = build_datalist(dataset_dir, datalist)
        self.cases = choose_cases(*found, datalist, split, columns, null_label=null_label)
        self.targets = tuple(targets)
        self.size = (int(size[0]), int(size[1]))
        self.spacing = spacing
        self.preprocessing = preprocessing
        self.transform = transform
        self._samples: list[dict[str, Any] | None] = [None] * len(self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Any:
        sample = self._samples[index]
        if sample is None:
            sample = self._samples[index] = self._read(self.cases[index])
        copy = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in sample.items()}
        return copy if self.transform is None else self.transform(copy)

    def _read(self, case: Mapping[str, Any]) -> dict[str, Any]:
        image: torch.Tensor = read_case(case, color=self.preprocessing is not None)
        if self.preprocessing is not None:
            image = self.preprocessing(image)
        grid, record = to_grid(image, self.size, self.spacing)
        sample: dict[str, Any] = {"image": grid.as_tensor(), "case": str(case["case"])}
        for target in self.targets:
            value = case[COLUMNS[target]]
            if target == "segmentation":
                sample[target] = _mask_on_grid(Path(value), record)
            elif target == "concepts":
                sample[target] = torch.tensor([_number(part, case) for part in _parts(value)])
            else:
                sample[target] = torch.tensor(int(value) if target == "label" else _number(value, case))
        return sample


def _parts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else str(value).split()


def _number(value: Any, case: Mapping[str, Any]) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{case['case']}: {value!r} is no score; quality and concepts are numbers in [0, 1].")
    return number


def _mask_on_grid(path: Path, record: Mapping[str, Any]) -> torch.Tensor:
    """Resample a mask of class indices: each grid pixel takes the class that fills most of it."""
    image = read_study(path)
    low, high = (float(value) for value in image.meta["value_range"])
    indices = (image.as_tensor() * (high - low) + low).round().long()[0]
    classes = torch.nn.functional.one_hot(indices, int(indices.max()) + 1).permute(2, 0, 1).float()
    return resample_to(classes, record).argmax(dim=0, keepdim=True)
