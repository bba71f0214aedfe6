# SPDX-License-Identifier: Apache-2.0
"""Micro-batches within a memory budget: measure one network call, then stack as many rows as fit."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["MemoryBudget", "budget_bytes", "micro_batches", "peak_bytes"]

#: Gigabytes (10^9 bytes), "auto" for a GPU's free memory, or None for no limit.
MemoryBudget = float | Literal["auto"] | None

SHARE = 0.8  # of a GPU's free memory: kernels need workspace, and memory fragments


def check_budget(budget: object) -> None:
    """Refuse an invalid budget.

    Raises:
        ValueError: if it is not None, "auto" or a positive number.
    """
    if budget is None or budget == "auto":
        return
    if not isinstance(budget, int | float) or not budget > 0:
        raise ValueError(f"memory_budget={budget!r}: give gigabytes above 0, 'auto', or null for no limit.")


def budget_bytes(budget: MemoryBudget, device: torch.device) -> float | None:
    """Return the number of bytes that the activations of a network call may take on a device; None without a limit.

    Args:
        budget: gigabytes; "auto" is 80 % of a GPU's free memory, and no limit elsewhere.
        device: device of the network.
    """
    check_budget(budget)
    if budget is None or (budget == "auto" and device.type != "cuda"):
        return None
    if not isinstance(budget, str):
        return float(budget) * 1e9
    free, _total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE * (free + cached)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Run a function once and return its peak memory above what was already allocated.

    On a GPU this is the allocator's figure, whose peak statistics are reset. Elsewhere it is the sum of the live
    tensors created by the call, without kernel workspaces; compiled code hides its tensors from it.

    Args:
        call: runs the network once.
        device: device on which it runs.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with _LivingTensors() as living:
        call()
    return living.peak


def micro_batches(items: Sequence[int], cost: Callable[[Sequence[int]], float], limit: float | None) -> list[list[int]]:
    """Split items, in order, into the longest runs whose cost does not exceed the limit.

    Args:
        items: items to compute.
        cost: cost of computing some items together; grows with each additional item.
        limit: maximum cost; None keeps all items together. An item that exceeds it alone forms its own run.

    Example:
        >>> micro_batches([4, 5, 6, 7, 8], lambda run: 2 * len(run), 5)
        [[4, 5], [6, 7], [8]]
    """
    if limit is None:
        return [list(items)] if items else []
    runs: list[list[int]] = []
    for item in items:
        if runs and cost([*runs[-1], item]) <= limit:
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


class _LivingTensors(TorchDispatchMode):
    """Adds up the storage allocated by operations until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _is_dense(leaf)}
        for tensor in tree_leaves(result):
            if _is_dense(tensor):
                self._add(tensor.untyped_storage(), given)
        return result

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in given:  # a view or in-place change of an existing storage
            return
        self._seen.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size


def _is_dense(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided
