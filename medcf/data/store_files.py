# SPDX-License-Identifier: Apache-2.0
"""The files of a store of synthetic images, and what may be wrong with them.

Layout::

    store/
      store.json          what made the images, and the subjects that their generator saw; written first
      shards/00000.npy    images (n, C, *spatial) of one shard
      shards/00000.json   their rows; written after the images: the shard is complete
      manifest.csv        all rows; written when every shard is complete
      filtered.csv        which images a filter keeps (`medcf.synthesis.filter_store`), if one was asked
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "FILTERED",
    "HEADER",
    "MANIFEST",
    "NOTICE",
    "SHARDS",
    "StoredType",
    "as_read",
    "images_file",
    "is_store",
    "marker_file",
    "open_images",
    "pack",
    "read_header",
    "read_judged",
    "read_rows",
    "shards_of",
    "unpack",
]

HEADER, MANIFEST, SHARDS, FILTERED = "store.json", "manifest.csv", "shards", "filtered.csv"
KEYS = {"notice", "count", "shape", "dtype", "shard_size", "class_names", "provenance", "subjects"}
NOTICE = "SYNTHETIC images made by medcf. No patient; not for diagnosis."
_AGAIN = "start the command that makes the store again."
#: How gray values in [-1, 1] are stored: in 255 steps, or in half precision for volumes and radiographs.
StoredType = Literal["uint8", "float16"]


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
        header = json.loads((Path(folder) / HEADER).read_text(encoding="utf-8"))
        return header["notice"] == NOTICE and header.keys() >= KEYS
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def shards_of(header: Mapping[str, Any]) -> list[range]:
    """Return the images of every shard of a store."""
    count, size = header["count"], header["shard_size"]
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def shard_length(header: Mapping[str, Any], shard: int) -> int:
    """Return the number of images of one shard."""
    return min(header["shard_size"], header["count"] - shard * header["shard_size"])


def read_header(folder: Path) -> dict[str, Any]:
    """Read what a store says of itself.

    Raises:
        FileNotFoundError: if the folder holds no store.
    """
    if not is_store(folder):
        raise FileNotFoundError(f"{folder} is not a store of synthetic images: it has no {HEADER} of medcf.")
    return read_json(folder / HEADER)


def as_read(content: Any) -> Any:
    """Return JSON values as they come back from a file: a tuple is a list there."""
    return json.loads(json.dumps(content, default=str))


def read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {_AGAIN}") from error


def read_rows(folder: Path, shard: int, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the rows of a shard, one for each of its images."""
    path = marker_file(folder, shard)
    rows = read_json(path).get("rows")
    if not isinstance(rows, list) or len(rows) != shard_length(header, shard):
        raise ValueError(f"{path} is damaged: {_AGAIN}")
    return rows


def read_judged(folder: Path, count: int, kept: bool) -> list[int]:
    """Return the indices of the images that a filter kept, or of those that it rejected.

    Raises:
        FileNotFoundError: if no filter was asked.
        ValueError: if it judged other images.
    """
    path = folder / FILTERED
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: call medcf.synthesis.filter_store first, or read all images.")
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if [row.get("index") for row in rows] != [str(index) for index in range(count)]:
        raise ValueError(f"{path} judges other images than {folder} holds: call medcf.synthesis.filter_store again.")
    return [index for index, row in enumerate(rows) if (row["kept"] == "True") is kept]


def open_images(folder: Path, shard: int, header: Mapping[str, Any]) -> NDArray[Any]:
    """Open the images of a shard without reading them."""
    path = images_file(folder, shard)
    try:
        images: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or damaged: {_AGAIN}") from error
    if images.shape != (shard_length(header, shard), *header["shape"]):
        raise ValueError(f"{path} is damaged: {_AGAIN}")
    return images


def marker_file(folder: Path, shard: int) -> Path:
    """Return the file with a shard's rows, which marks it as complete."""
    return folder / SHARDS / f"{shard:05d}.json"


def images_file(folder: Path, shard: int) -> Path:
    """Return the file with a shard's images."""
    return folder / SHARDS / f"{shard:05d}.npy"
