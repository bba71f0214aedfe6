# SPDX-License-Identifier: Apache-2.0
"""Writes a store of synthetic images shard by shard, in any order and from any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medcf.data.store_files import (
    FILTERED,
    HEADER,
    MANIFEST,
    NOTICE,
    SHARDS,
    StoredType,
    as_read,
    images_file,
    is_store,
    marker_file,
    open_images,
    pack,
    read_header,
    read_rows,
    shards_of,
)
from medcf.data.synthetic_store import SyntheticStore
from medcf.runtime.atomic import replace_file, write_csv, write_json
from medcf.runtime.choices import check_choice

__all__ = ["StoreWriter"]

logger = logging.getLogger(__name__)


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
        self.rows = as_read([{"index": index, **row} for index, row in enumerate(rows)])
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
        self.header: dict[str, Any] = as_read(header)
        self.overwrite = overwrite

    def open(self) -> None:
        """Begin or continue; call it on one process, before the others write."""
        if is_store(self.folder):
            if self.overwrite:
                self._remove()
            else:
                self._expect_same()
        elif (self.folder / HEADER).is_file() and (self.folder / SHARDS).is_dir():
            if not self.overwrite:
                raise ValueError(f"{self.folder / HEADER} is damaged: start over with --overwrite True.")
            self._remove()
        elif self.folder.is_dir() and any(not file.name.startswith(".lock") for file in self.folder.iterdir()):
            raise ValueError(f"{self.folder} holds files that are no store's: choose another --output_dir.")
        (self.folder / SHARDS).mkdir(parents=True, exist_ok=True)
        write_json(self.folder / HEADER, self.header)

    def shards(self) -> list[range]:
        """Return the images of every shard."""
        return shards_of(self.header)

    def pending(self) -> list[int]:
        """Return the numbers of the shards that are not complete, or damaged."""
        return [number for number in range(len(self.shards())) if not self._complete(number)]

    def discard(self) -> None:
        """Remove the store if it has no complete shard: what could not be begun is not in the way of another."""
        if not any(marker_file(self.folder, number).is_file() for number in range(len(self.shards()))):
            self._remove()
            with suppress(OSError):
                (self.folder / SHARDS).rmdir()

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
        replace_file(
            images_file(self.folder, shard), lambda file: np.save(file, values, allow_pickle=False), binary=True
        )
        write_json(marker_file(self.folder, shard), {"rows": known})

    def close(self) -> SyntheticStore:
        """Write the manifest; call it on one process, when all shards are complete."""
        store = SyntheticStore(self.folder)
        constant = {name: value for name, value in self.header["provenance"].items() if not isinstance(value, dict)}
        write_csv(self.folder / MANIFEST, [{**row, **constant} for row in store.rows])
        return store

    def _complete(self, number: int) -> bool:
        if not marker_file(self.folder, number).is_file():
            return False
        try:
            read_rows(self.folder, number, self.header)
            open_images(self.folder, number, self.header)
        except ValueError as error:
            logger.warning("%s It is made again.", str(error).partition(":")[0] + ".")
            return False
        return True

    def _expect_same(self) -> None:
        before = read_header(self.folder)
        changed = [name for name, value in self.header.items() if before.get(name) != value]
        if "provenance" in changed:
            old, new = before["provenance"], self.header["provenance"]
            changed.remove("provenance")
            changed += [name for name in {**old, **new} if old.get(name) != new.get(name)]
            changed = [name for name in changed if name != "config"] or changed  # it differs with any other option
        done = [] if changed else set(range(len(self.shards()))) - set(self.pending())
        for number in done:
            rows = read_rows(self.folder, number, self.header)
            wanted = [self.rows[index] for index in self.shards()[number]]
            if any(row | mine != row for row, mine in zip(rows, wanted, strict=True)):
                changed.append("rows")
                break
        if changed:
            raise ValueError(
                f"{self.folder} was begun with another {', '.join(dict.fromkeys(changed))}: choose another "
                "--output_dir, or start over with --overwrite True."
            )

    def _remove(self) -> None:
        """Remove the files of an earlier store, and nothing else."""
        for name in (MANIFEST, HEADER, FILTERED):
            (self.folder / name).unlink(missing_ok=True)
        for pattern in ("[0-9]*.json", "[0-9]*.npy"):
            for file in (self.folder / SHARDS).glob(pattern):
                file.unlink()
