# SPDX-License-Identifier: Apache-2.0
"""Synthetic images in a folder, read lazily as a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medcf.data.store_files import (
    is_store,
    marker_file,
    open_images,
    read_header,
    read_judged,
    read_rows,
    shards_of,
    unpack,
)

__all__ = ["SyntheticStore", "is_store"]


class SyntheticStore(Dataset):
    """The images of a store, each read from the disk when it is asked for.

    An item holds ``image`` float32 (C, *spatial) in [-1, 1], ``case`` (string, unique within the store), ``synthetic``
    (True), and the image's row of the manifest: ``index``, ``label`` (where it has one), ``class_name``, ``caption``
    (its prompt), ``seed``, and what else its generator wrote. What is the same for all images is in ``header``.

    A store pickles as its folder's rows without open files, so it goes to the workers of a data loader as it is.

    Args:
        folder: folder of the store.
        transform: applied to every item.
        partial: accept a store whose generation has not ended, with the shards that are complete.
        kept: only the images that `medcf.synthesis.filter_store` kept (True) or rejected (False); None takes all.

    Raises:
        FileNotFoundError: if the folder holds no store.
        ValueError: if shards are missing, and ``partial`` is not set; or the store is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        *,
        partial: bool = False,
        kept: bool | None = None,
    ) -> None:
        self.folder, self.transform = Path(folder), transform
        self.header = read_header(self.folder)
        shards = shards_of(self.header)
        complete = [number for number in range(len(shards)) if marker_file(self.folder, number).is_file()]
        if len(complete) < len(shards) and not partial:
            raise ValueError(
                f"{self.folder} has {len(complete)} of {len(shards)} shards: start the command that makes it again, it "
                "continues; or read what is there with partial=True."
            )
        self.rows: list[dict[str, Any]] = []
        self._places: list[tuple[int, int]] = []
        for number in complete:
            rows = read_rows(self.folder, number, self.header)
            self.rows += rows
            self._places += [(number, place) for place in range(len(rows))]
        if kept is not None:
            chosen = read_judged(self.folder, len(self.rows), kept)
            self.rows = [self.rows[index] for index in chosen]
            self._places = [self._places[index] for index in chosen]
        self._open: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """Read one image with its row."""
        shard, place = self._places[index]
        if shard not in self._open:
            self._open[shard] = open_images(self.folder, shard, self.header)
        row = self.rows[index]
        item = {**row, "image": unpack(self._open[shard][place]), "synthetic": True}
        item["case"] = _case(row)
        if row.get("label") is not None:
            item["label"] = torch.tensor(int(row["label"]))
        return item if self.transform is None else self.transform(item)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files."""
        return {**vars(self), "_open": {}}

    @property
    def cases(self) -> list[str]:
        """The case of every image; no image is read for it."""
        return [_case(row) for row in self.rows]

    @property
    def labels(self) -> list[int | None]:
        """The class index of every image, None where it has none; no image is read for it."""
        return [None if row.get("label") is None else int(row["label"]) for row in self.rows]

    @property
    def members(self) -> dict[int, list[int]]:
        """The indices of the images of each class."""
        found: dict[int, list[int]] = {}
        for index, label in enumerate(self.labels):
            if label is not None:
                found.setdefault(label, []).append(index)
        return found

    @property
    def class_names(self) -> list[str]:
        """The names of the classes."""
        return list(self.header["class_names"])

    @property
    def subjects(self) -> frozenset[str] | None:
        """Hashed names (`medcf.runtime.subjects.subject_key`) of all subjects that the generator saw; None: unknown."""
        known = self.header["subjects"]
        return None if known is None else frozenset(known)


def _case(row: dict[str, Any]) -> str:
    return f"synthetic-{row['index']:07d}"
