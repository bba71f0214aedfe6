# SPDX-License-Identifier: Apache-2.0
"""From a list of cases to batches, without letting one bad file stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from torch.utils.data import Sampler

from medcf.inference.run_folder import Failure, RunFolder
from medcf.runtime.error_report import root_cause
from medcf.runtime.errors import UnreadableImage
from medcf.runtime.ranks import rank, world_size

__all__ = ["CaseDataset", "PendingBatches", "collate_cases"]

logger = logging.getLogger(__name__)


class CaseDataset(Dataset):
    """A dataset whose items are a case, or the reason why there is none.

    Args:
        data: cases as `medcf.data.build_datalist` lists them: dictionaries with ``image`` (path) and ``case`` (id).
        transform: preprocessing, from such a dictionary to one whose ``image`` is a tensor (C, *spatial).
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any]) -> None:
        super().__init__(data, transform=None)
        self.preprocessing = transform

    def _transform(self, index: int) -> dict[str, Any]:
        case = dict(self.data[index])
        try:
            item = self.preprocessing(dict(case))
            if not torch.isfinite(item["image"]).all():
                raise UnreadableImage(case["image"], "holds values that are not finite", "Export it again.")
        except Exception as error:
            return {"case": case["case"], "file": str(case["image"]), "failure": _describe(case, error)}
        return {**item, "case": case["case"], "file": str(case["image"])}


def collate_cases(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batch cases: images on the network's grid are stacked, everything else stays a list.

    Args:
        items: what `CaseDataset` returns.

    Returns:
        ``image`` (B, C, *spatial) of the readable cases (absent when there is none), ``items`` their dictionaries and
        ``failures`` the `Failure` of the others.
    """
    good = [dict(item) for item in items if "failure" not in item]
    batch: dict[str, Any] = {"items": good, "failures": [item["failure"] for item in items if "failure" in item]}
    if good:
        batch["image"] = torch.stack([torch.as_tensor(item["image"]).as_subclass(torch.Tensor) for item in good])
    return batch


class PendingBatches(Sampler[list[int]]):
    """Batches of consecutive cases in which at least one is not done.

    A batch that was interrupted is computed again as a whole: its composition, and so every bit of its results, is the
    same as in a run that was never interrupted. Under torchrun each process takes every n-th of these whole batches, so
    that the same holds for any number of processes.

    Args:
        data: all cases of the run.
        run_folder: knows which of them are done; opened.
        batch_size: cases a batch.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], run_folder: RunFolder, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: use at least 1.")
        done = set(run_folder.finished_before)
        chunks = [range(start, min(start + batch_size, len(data))) for start in range(0, len(data), batch_size)]
        pending = [list(chunk) for chunk in chunks if any(data[index]["case"] not in done for index in chunk)]
        self.batches = pending[rank() :: world_size()]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _describe(case: Mapping[str, Any], error: Exception) -> Failure:
    """Turn what went wrong into a line of ``failures.csv``; MONAI wraps a transform's error in its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnreadableImage):
            other = Path(cause.path).name  # its mask, or another file of its series
            reason = cause.reason if other == Path(case["image"]).name else f"{other} {cause.reason}"
            if cause.path == str(case.get("mask")):
                reason = f"its mask {other} {cause.reason}"
            return Failure(str(case["image"]), "read", reason, cause.remedy)
        cause = cause.__cause__ or cause.__context__
    logger.debug("reading %s failed", case["image"], exc_info=error)
    plain = root_cause(error)
    first_line = (str(plain).splitlines() or [""])[0]
    reason = f"cannot be prepared ({type(plain).__name__}: {first_line[:200]})"
    return Failure(str(case["image"]), "read", reason, "Check the file and the options of the preprocessing.")
