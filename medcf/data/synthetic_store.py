# SPDX-License-Identifier: Apache-2.0
"""Synthetic images in a folder: written shard by shard by any number of processes, read lazily as a dataset.

Layout::

    store/
      store.json          what made the images, and the subjects that their generator saw; written first
      shards/00000.npy    images (n, C, *spatial) of one shard
      shards/00000.json   their rows; written after the images: the shard is complete
      manifest.csv        all rows; written when every shard is complete
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medcf.runtime.atomic import replace_file, write_csv, write_json
from medcf.runtime.choices import check_choice

__all__ = ["StoreWriter", "SyntheticStore", "is_store"]

HEADER, MANIFEST, SHARDS = "store.json", "manifest.csv", "shards"
NOTICE = "SYNTHETIC images made by medcf. No patient; not for diagnosis."
#: How gray values in [-1, 1] are stored: in 255 steps, or in half precision for volumes and radiographs.
StoredType = Literal["uint8", "float16"]


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

    Raises:
        FileNotFoundError: if the folder holds no store.
        ValueError: if shards are missing, and ``partial`` is not set; or the store is damaged.
    """

    def __init__(
        self, folder: str | Path, transform: Callable[[dict[str, Any]], Any] | None = None, *, partial: bool = False
    ) -> None:
        self.folder, self.transform = Path(folder), transform
        self.header = read_header(self.folder)
        starts = range(0, self.header["count"], self.header["shard_size"])
        complete = [number for number in range(len(starts)) if _marker(self.folder, number).is_file()]
        if len(complete) < len(starts) and not partial:
            raise ValueError(
                f"{self.folder} has {len(complete)} of {len(starts)} shards: start the command that makes it again, it "
                "continues; or read what is there with partial=True."
            )
        self.rows: list[dict[str, Any]] = []
        self._places: list[tuple[int, int]] = []
        for number in complete:
            rows = _read_json(_marker(self.folder, number))["rows"]
            self.rows += rows
            self._places += [(number, place) for place in range(len(rows))]
        self._open: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """Read one image with its row."""
        shard, place = self._places[index]
        if shard not in self._open:
            self._open[shard] = np.load(_images(self.folder, shard), mmap_mode="r", allow_pickle=False)
        row = self.rows[index]
        item = {**row, "image": unpack(self._open[shard][place]), "synthetic": True}
        item["case"] = f"synthetic-{row['index']:07d}"
        if row.get("label") is not None:
            item["label"] = torch.tensor(int(row["label"]))
        return item if self.transform is None else self.transform(item)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files."""
        return {**vars(self), "_open": {}}

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


class StoreWriter:
    """Writes a store, shard by shard, in any order and from any number of processes; a killed run continues.

    Args:
        folder: folder of the store, new or begun by the same command.
        rows: one row per image, JSON values; ``index`` is added.
        shape: shape (C, *spatial) of an image.
        class_names: names of the classes.
        provenance: what made the images, JSON values: hashes of weights, solver, steps, guidance. A store that was
            begun with another provenance or other rows is not continued.
        subjects: hashed names of the subjects that the generator saw; None if that is not known.
        shard_size: images per file. Part of what is made: noise does not depend on it, but rounding does.
        dtype: "uint8" stores 255 steps of gray, "float16" more.
        overwrite: remove the shards of an earlier run.

    Raises:
        ValueError: if the folder holds another store, or files that are no store's.
    """

    def __init__(
        self,
        folder: str | Path,
        rows: Sequence[Mapping[str, Any]],
        *,
        shape: Sequence[int],
        class_names: Sequence[str] = (),
        provenance: Mapping[str, Any] | None = None,
        subjects: Iterable[str] | None = None,
        shard_size: int = 64,
        dtype: StoredType = "uint8",
        overwrite: bool = False,
    ) -> None:
        check_choice("dtype", dtype, StoredType)
        if shard_size < 1 or not rows:
            raise ValueError(f"A store needs at least one image and a shard_size of at least 1, not {shard_size}.")
        self.folder = Path(folder)
        self.rows = _as_read([{"index": index, **row} for index, row in enumerate(rows)])
        header = {
            "notice": NOTICE,
            "count": len(self.rows),
            "shape": list(map(int, shape)),
            "dtype": dtype,
            "shard_size": int(shard_size),
            "class_names": list(class_names),
            "provenance": dict(provenance or {}),
            "subjects": None if subjects is None else sorted(set(subjects)),
        }
        self.header: dict[str, Any] = _as_read(header)
        self.overwrite = overwrite

    def open(self) -> None:
        """Begin or continue; call it on one process, before the others write."""
        if is_store(self.folder):
            if self.overwrite:
                self._remove()
            else:
                self._expect_same()
        elif self.folder.is_dir() and any(file.name != ".lock" for file in self.folder.iterdir()):
            raise ValueError(f"{self.folder} holds files that are no store's: choose another --output_dir.")
        (self.folder / SHARDS).mkdir(parents=True, exist_ok=True)
        write_json(self.folder / HEADER, self.header)

    def shards(self) -> list[range]:
        """Return the images of every shard."""
        count, size = len(self.rows), self.header["shard_size"]
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def pending(self) -> list[int]:
        """Return the numbers of the shards that are not complete."""
        return [number for number in range(len(self.shards())) if not _marker(self.folder, number).is_file()]

    def write(self, shard: int, images: Tensor, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write a shard: its images first, then the rows that mark it as complete.

        Args:
            shard: number of the shard.
            images: (n, C, *spatial) in [-1, 1].
            rows: what is known of each image only now, such as a filter's score.

        Raises:
            ValueError: if the images do not fit the store.
        """
        members, shape = self.shards()[shard], tuple(self.header["shape"])
        if tuple(images.shape) != (len(members), *shape):
            raise ValueError(f"Shard {shard} takes {(len(members), *shape)}, but the images are {tuple(images.shape)}.")
        known = [self.rows[index] | dict(row) for index, row in zip(members, rows or [{}] * len(members), strict=True)]
        values = pack(images, self.header["dtype"])
        replace_file(_images(self.folder, shard), lambda file: np.save(file, values, allow_pickle=False), binary=True)
        write_json(_marker(self.folder, shard), {"rows": known})

    def close(self) -> SyntheticStore:
        """Write the manifest; call it on one process, when all shards are complete."""
        store = SyntheticStore(self.folder)
        constant = {name: value for name, value in self.header["provenance"].items() if not isinstance(value, dict)}
        write_csv(self.folder / MANIFEST, [{**row, **constant} for row in store.rows])
        return store

    def _expect_same(self) -> None:
        before = read_header(self.folder)
        changed = [name for name, value in self.header.items() if before.get(name) != value]
        if "provenance" in changed:
            old, new = before["provenance"], self.header["provenance"]
            changed += [name for name in {**old, **new} if old.get(name) != new.get(name)]
        for number in set(range(len(self.shards()))) - set(self.pending()):
            rows = _read_json(_marker(self.folder, number))["rows"]
            wanted = [self.rows[index] for index in self.shards()[number]]
            if any(row | mine != row for row, mine in zip(rows, wanted, strict=False)):
                changed.append("rows")
                break
        if changed:
            raise ValueError(
                f"{self.folder} was begun with another {', '.join(dict.fromkeys(changed))}: choose another "
                "--output_dir, or start over with --overwrite True."
            )

    def _remove(self) -> None:
        """Remove the files of an earlier store, and nothing else."""
        for name in (MANIFEST, HEADER):
            (self.folder / name).unlink(missing_ok=True)
        for pattern in ("[0-9]*.json", "[0-9]*.npy"):
            for file in (self.folder / SHARDS).glob(pattern):
                file.unlink()


def pack(images: Tensor, dtype: str) -> NDArray[Any]:
    """Return gray values in [-1, 1] as they are stored."""
    values = images.detach().float().cpu().clamp(-1, 1)
    return ((values + 1) * 127.5).round().byte().numpy() if dtype == "uint8" else values.half().numpy()


def unpack(stored: NDArray[Any]) -> Tensor:
    """Return stored gray values as float32 in [-1, 1]."""
    values = torch.from_numpy(np.array(stored)).float()  # a copy: the file is read-only
    return values / 127.5 - 1 if stored.dtype == np.uint8 else values


def is_store(folder: str | Path) -> bool:
    """Tell whether a folder holds a store, complete or not."""
    try:
        return json.loads((Path(folder) / HEADER).read_text(encoding="utf-8"))["notice"] == NOTICE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_header(folder: Path) -> dict[str, Any]:
    """Read what a store says of itself.

    Raises:
        FileNotFoundError: if the folder holds no store.
    """
    if not is_store(folder):
        raise FileNotFoundError(f"{folder} is not a store of synthetic images: it has no {HEADER} of medcf.")
    return _read_json(folder / HEADER)


def _as_read(content: Any) -> Any:
    """Return JSON values as they come back from a file: a tuple is a list there."""
    return json.loads(json.dumps(content, default=str))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: delete it and start the command that makes the store again.") from error


def _marker(folder: Path, shard: int) -> Path:
    return folder / SHARDS / f"{shard:05d}.json"


def _images(folder: Path, shard: int) -> Path:
    return folder / SHARDS / f"{shard:05d}.npy"
