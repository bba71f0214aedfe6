# SPDX-License-Identifier: Apache-2.0
"""Arrays that are expensive to compute: computed once, optionally in several processes, and cached in one file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from medcf.runtime.atomic import replace_file

__all__ = ["Arrays", "RenderedDataset", "cached_arrays", "make_rows"]

logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]
Job = TypeVar("Job")


def cached_arrays(path: str | Path | None, key: str, make: Callable[[], Arrays]) -> Arrays:
    """Read arrays from a file, or compute them and write it.

    Args:
        path: .npz file; None disables caching.
        key: identifies this set: its options, and the version of the code that computes it.
        make: called if the file is missing, damaged or has another key, which is logged.

    Returns:
        The arrays by name. The file holds them and ``key``; it is always either the old or the complete new one.
    """
    path = None if path is None else Path(path)
    arrays = None if path is None else _load(path, key)
    if arrays is None:
        arrays = make()
        if path is not None:
            content: Any = {"key": np.array(key), **arrays}
            replace_file(path, lambda file: np.savez_compressed(file, **content), binary=True)
    return arrays


def make_rows(
    make: Callable[[Job], Mapping[str, Any]],
    jobs: Sequence[Job],
    *,
    title: str,
    unit: str,
    num_workers: int = 0,
    progress: bool = True,
) -> Arrays:
    """Compute one row per job and stack each of their columns.

    Args:
        make: returns a row's values by name; with processes, it must be a module-level function.
        jobs: arguments for the calls.
        title: text of the progress bar.
        unit: name of a row in the progress bar.
        num_workers: number of processes; 0 works in this one. The result does not depend on it.
        progress: whether to show the progress bar.

    Returns:
        The values of all rows by name, in job order.
    """
    bar: dict[str, Any] = {"total": len(jobs), "desc": title, "unit": unit, "disable": not progress}
    if num_workers > 0:
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            rows = list(tqdm(pool.map(make, jobs, chunksize=4), **bar))
    else:
        rows = [make(job) for job in tqdm(jobs, **bar)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class RenderedDataset(Dataset[dict[str, Any]]):
    """Rows of arrays as a dataset; a phantom's dataset sets the attributes and makes items of rows.

    Attributes:
        split: name of the split.
        transform: applied to every item; None leaves it as it is.
    """

    split: str
    transform: Callable[[dict[str, Any]], Any] | None
    _arrays: Arrays

    def __len__(self) -> int:
        """Number of cases."""
        return len(self._arrays["label"])

    def __getitem__(self, index: int) -> Any:
        """Return one case, after the transform if there is one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"case {index} is outside a set of {len(self)}")
        item = self._item(index)
        return item if self.transform is None else self.transform(item)

    def _item(self, index: int) -> dict[str, Any]:
        """Return one case, before the transform."""
        raise NotImplementedError

    def _row(self, index: int) -> dict[str, Any]:
        """Return what the arrays hold of one case."""
        return {name: values[index] for name, values in self._arrays.items()}

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of all cases, for weighted sampling."""
        return self._arrays["label"].astype(np.int64)


def _load(path: Path, key: str) -> Arrays | None:
    """Return a file's arrays, or None if it is missing, damaged or holds another set."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception:  # damaged bytes raise unrelated errors in zipfile, zlib, tokenize or numpy
        logger.warning("%s is damaged and will be recreated", path)
        return None
    if str(arrays.pop("key", "")) != key:
        logger.warning("%s holds another set and will be replaced", path)
        return None
    return arrays
