# SPDX-License-Identifier: Apache-2.0
"""Micro-batches by a memory budget: measure one forward, then stack as many rows as fit."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["MemoryBudget", "budget_bytes", "micro_batches", "peak_bytes"]

#: Gigabytes (10^9 bytes), "auto" for what a GPU has free, or None for no limit.
MemoryBudget = float | Literal["auto"] | None

SHARE = 0.8  # of a GPU's free memory: kernels need workspaces, and memory fragments


def check_budget(budget: object) -> None:
    """Refuse what is no budget.

    Raises:
        ValueError: neither None, "auto" nor a positive number.
    """
    if budget is None or budget == "auto":
        return
    if not isinstance(budget, int | float) or not budget > 0:
        raise ValueError(f"memory_budget={budget!r}: give gigabytes above 0, 'auto', or null for no limit.")


def budget_bytes(budget: MemoryBudget, device: torch.device) -> float | None:
    """Return how many bytes the activations of a forward may take on a device; None without a limit.

    Args:
        budget: gigabytes; "auto" is 80 % of what a GPU has free, and no limit elsewhere.
        device: where the network runs.
    """
    check_budget(budget)
    if budget is None or (budget == "auto" and device.type != "cuda"):
        return None
    if not isinstance(budget, str):
        return float(budget) * 1e9
    free, _total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE * (free + cached)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Run a function once and return its peak of memory above what was there before.

    On a GPU that is the allocator's figure, whose peak statistics this resets. Elsewhere it is the sum of the living
    tensors that the call made, without the workspaces of kernels; compiled code hides its tensors from it.

    Args:
        call: runs a forward.
        device: where it runs.
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
    """Split items, in their order, into the longest runs that cost no more than the limit.

    Args:
        items: what is to be computed.
        cost: cost of computing some of the items together; grows with each further item.
        limit: largest cost; None keeps all together. An item that exceeds it alone is a run of its own.

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
    """Adds up the storages that operations make, until they are freed."""

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
        if key in self._seen or key in given:  # a view, or a change in place, of what was there
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
