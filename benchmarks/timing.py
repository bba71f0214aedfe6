# SPDX-License-Identifier: Apache-2.0
"""Clocks for ratios: everything compared runs alternately in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["interleaved", "median_ratio", "stopwatch"]


def stopwatch(device: torch.device | str) -> Callable[[], float]:
    """Return a clock in seconds that waits for the device first.

    On a CPU with one thread it is the processor's own time, which other programs on the machine do not lengthen.

    Args:
        device: where the work runs.
    """
    if torch.device(device).type == "cuda":

        def synchronized() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronized
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def interleaved(
    functions: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device | str
) -> dict[str, list[float]]:
    """Time functions in turn, so that a machine that slows down slows all of them.

    Args:
        functions: name to function without arguments; each is called once unmeasured.
        repeats: measured calls of each.
        device: where the work runs.

    Returns:
        Seconds of each call.
    """
    clock = stopwatch(device)
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """Return the median over repeats of one function's time over another's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
