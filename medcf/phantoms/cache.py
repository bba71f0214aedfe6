# SPDX-License-Identifier: Apache-2.0
"""Arrays that take long to make: made once, in several processes if wanted, and kept in one file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from medcf.runtime.atomic import replace_file

__all__ = ["Arrays", "cached_arrays", "make_rows"]

logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]
Job = TypeVar("Job")


def cached_arrays(path: str | Path | None, key: str, make: Callable[[], Arrays]) -> Arrays:
    """Read arrays from a file, or make them and write it.

    Args:
        path: .npz file; None keeps nothing.
        key: tells this set from any other: its options, and the version of what makes it.
        make: called where the file is missing, damaged or of another key, which the log says.

    Returns:
        The arrays by name. The file holds them and ``key``; it is the old one or the whole new one, whatever happens.
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
    """Make a row for every job and stack each of their columns.

    Args:
        make: gives the values of a row by name; with processes, a function of a module.
        jobs: what it is called with.
        title: what the progress bar says.
        unit: what a row is called there.
        num_workers: processes; 0 works in this one. The result does not depend on it.
        progress: whether to show the bar.

    Returns:
        By name, the values of all rows, in the order of the jobs.
    """
    bar: dict[str, Any] = {"total": len(jobs), "desc": title, "unit": unit, "disable": not progress}
    if num_workers > 0:
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            rows = list(tqdm(pool.map(make, jobs, chunksize=4), **bar))
    else:
        rows = [make(job) for job in tqdm(jobs, **bar)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _load(path: Path, key: str) -> Arrays | None:
    """Arrays of a file, or None if it is missing, damaged or of another set."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception:  # a damaged byte may raise errors of zipfile, zlib, tokenize or numpy, which share no base
        logger.warning("%s is damaged and is made again", path)
        return None
    if str(arrays.pop("key", "")) != key:
        logger.warning("%s holds another set and is replaced", path)
        return None
    return arrays
