# SPDX-License-Identifier: Apache-2.0
"""From a list of cases to batches, without letting one bad file stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset, decollate_batch
from torch.utils.data import DataLoader, Sampler

from medcf.data import Case
from medcf.data.case import file_name
from medcf.inference.run_folder import RunFolder
from medcf.runtime.error_report import root_cause
from medcf.runtime.errors import Failure, UnreadableImage
from medcf.runtime.progress import progress_bar
from medcf.runtime.ranks import rank, world_size

__all__ = [
    "CaseDataset",
    "PendingBatches",
    "case_bar",
    "case_loader",
    "collate_cases",
    "describe_failure",
    "prepare_case",
    "split_batch",
]

logger = logging.getLogger(__name__)


class CaseDataset(Dataset):
    """A dataset whose items are a case, or the reason why it is missing.

    Args:
        data: cases as `medcf.data.find_cases` lists them.
        transform: preprocessing, from ``{"image": case, ...}`` to a dictionary whose ``image`` is (C, *spatial).
    """

    def __init__(self, data: Sequence[Case], transform: Callable[[Any], Any]) -> None:
        super().__init__(data, transform=None)
        self.preprocessing = transform

    def _transform(self, index: int) -> dict[str, Any] | Failure:
        case: Case = self.data[index]
        return prepare_case(case, case.item(), self.preprocessing)


class PendingBatches(Sampler[list[int]]):
    """Batches of consecutive cases of which at least one is not done.

    An interrupted batch is recomputed as a whole: its composition, and so its results, are bit-identical to those of an
    uninterrupted run. Under torchrun each process takes every n-th of these whole batches, so the same holds for any
    number of processes.

    Args:
        data: all cases of the run.
        run_folder: opened run folder that knows which cases are done.
        batch_size: cases per batch.
    """

    def __init__(self, data: Sequence[Case], run_folder: RunFolder, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: use at least 1.")
        done = set(run_folder.finished_before)
        chunks = [range(start, min(start + batch_size, len(data))) for start in range(0, len(data), batch_size)]
        pending = [list(chunk) for chunk in chunks if any(data[index].id not in done for index in chunk)]
        self.batches = pending[rank() :: world_size()]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def case_loader(
    cases: Sequence[Case],
    preprocessing: Callable[[Any], Any],
    run_folder: RunFolder,
    batch_size: int = 1,
    num_workers: int = 0,
) -> DataLoader:
    """Load the batches of a run that are not done."""
    batches = PendingBatches(cases, run_folder, batch_size)
    dataset = CaseDataset(cases, preprocessing)
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=collate_cases)


def case_bar(loader: DataLoader, *, show: bool = True) -> Any:
    """Create the main process's bar over all unfinished cases of a run; the other processes show none."""
    batches = loader.batch_sampler
    total = sum(map(len, batches)) if isinstance(batches, PendingBatches) else None
    return progress_bar(total, "cases", unit="case", show=show and rank() == 0)


def collate_cases(items: Sequence[dict[str, Any] | Failure]) -> dict[str, list[Any]]:
    """Separate the ``items`` read by `CaseDataset` from the ``failures``, as one list each."""
    return {
        "items": [item for item in items if not isinstance(item, Failure)],
        "failures": [item for item in items if isinstance(item, Failure)],
    }


def split_batch(batch: Mapping[str, Any]) -> list[Any]:
    """List the items of a batch from `collate_cases` or from any MONAI data loader whose items have ``image``."""
    if "items" in batch:
        return [*batch["items"], *batch["failures"]]
    return decollate_batch(dict(batch))


def prepare_case(case: Case, item: Mapping[str, Any], preprocessing: Callable[[Any], Any]) -> dict[str, Any] | Failure:
    """Put an item's image onto the network's grid, or explain why this fails.

    Args:
        case: the source of the image, whether already read or still to be read.
        item: ``image``, as input for the preprocessing; ``case`` and ``file`` if they differ from the case's own.
        preprocessing: to a dictionary whose ``image`` is (C, *grid).

    Returns:
        The result of the preprocessing, with ``case``, ``file`` and ``files``, all files of the case.
    """
    try:
        ready = dict(preprocessing(dict(item)))
        if not torch.isfinite(ready["image"]).all():
            raise UnreadableImage(case.path, "holds values that are not finite", "Export it again.")
    except Exception as error:
        return describe_failure(case, error)
    named = {"case": file_name(str(item.get("case", case.id))), "file": item.get("file", str(case.path))}
    return {**ready, **named, "files": [str(file) for file in case.files]}


def describe_failure(case: Case, error: Exception) -> Failure:
    """Turn an error into a row of ``failures.csv``; MONAI wraps a transform's error in its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnreadableImage):
            other = Path(cause.path).name  # its mask, or another file of its series
            reason = cause.reason if other == case.path.name else f"{other} {cause.reason}"
            if cause.path == str(case.mask):
                reason = f"its mask {other} {cause.reason}"
            return Failure(str(case.path), "read", reason, cause.remedy)
        cause = cause.__cause__ or cause.__context__
    logger.debug("reading %s failed", case.path, exc_info=error)
    plain = root_cause(error)
    first_line = (str(plain).splitlines() or [""])[0]
    reason = f"cannot be prepared ({type(plain).__name__}: {first_line[:200]})"
    return Failure(str(case.path), "read", reason, "Check the file and the options of the preprocessing.")
