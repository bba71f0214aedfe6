# SPDX-License-Identifier: Apache-2.0
"""The processes of one torchrun run, and the few short messages between them, sent over gloo.

Cases are independent: processes communicate only when the run folder is opened and closed, and not at all without
torchrun. A process that dies closes its connections, so those that wait for it notice at once; torchrun ends the others
anyway. `WAIT` covers silent failures: a machine without power, a process that hangs. It counts only while a process
waits, not while it works, so it limits how much longer one share of the cases may take than another, not the total
time.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

__all__ = ["collect", "join_processes", "leave_processes", "local_device", "rank", "run_on_main", "world_size"]

Result = TypeVar("Result")

WAIT = timedelta(days=1)


def world_size() -> int:
    """Return the number of processes started by torchrun; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Return this process's number; 0 is the main process, also without torchrun."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_device() -> torch.device:
    """Return this process's own device: the GPU with number ``LOCAL_RANK``, Apple's GPU (MPS), or the CPU.

    With more processes than GPUs, the processes share the GPUs in turn.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def join_processes(backend: str = "gloo") -> None:
    """Join the processes started by torchrun; messages that all would log are logged by the main process only.

    Args:
        backend: backend of ``torch.distributed``.

    Raises:
        RuntimeError: if not started by torchrun, or the others do not join within the backend's timeout.
    """
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"This process cannot join others ({error}). Start all of them with: "
            "torchrun --standalone --nproc_per_node=2 -m monai.bundle run ..."
        ) from error
    atexit.register(leave_processes)  # a live group aborts the process when the interpreter exits
    if torch.cuda.is_available():  # plain "cuda" in a config then means this process's own GPU
        torch.cuda.set_device(local_device())
    if dist.get_rank() > 0:
        logging.disable(logging.INFO)


def leave_processes() -> None:
    """Leave the other processes without notifying them; does nothing if none were joined."""
    _group.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def run_on_main(name: str, function: Callable[[], Result]) -> Result:
    """Call a function on the main process only and return its result on all processes, which wait for it.

    All processes must make the same calls of this module in the same order.

    Args:
        name: name of the step, for messages.
        function: returns a value that can be pickled.

    Returns:
        The function's result, on every process.

    Raises:
        RuntimeError: if it failed on the main process (where the original error is raised), or a process is gone.
    """
    if world_size() == 1:
        return function()
    group = _group()
    message: list[Any] = [None, None]
    if rank() == 0:
        try:
            message[0] = function()
        except BaseException as error:
            message[1] = f"{type(error).__name__}: {error}"
            with suppress(RuntimeError):
                dist.broadcast_object_list(message, group=group)
            raise
    with _all_alive(name):
        dist.broadcast_object_list(message, group=group)
    if message[1] is not None:
        raise RuntimeError(f"The main process failed ({name}): {message[1]}")
    return message[0]


def collect(name: str, value: Any) -> list[Any]:
    """Gather one value per process on the main process; all wait for the last one.

    Args:
        name: name of the step, for messages.
        value: a value that can be pickled.

    Returns:
        The values in rank order; on the other processes an empty list.

    Raises:
        RuntimeError: if a process is gone; everything it completed is kept.
    """
    if world_size() == 1:
        return [value]
    group = _group()
    values: list[Any] = [None] * world_size() if rank() == 0 else []
    with _all_alive(name):
        dist.monitored_barrier(group, timeout=WAIT)  # its error names the missing process
        dist.gather_object(value, values or None, group=group)
    return values


@cache
def _group() -> dist.ProcessGroup:
    """Return the process group for messages. It waits longer than the groups for joining and for training."""
    if not dist.is_initialized():
        join_processes()
    group = dist.new_group(timeout=WAIT, backend="gloo")
    assert group is not None
    return group


@contextmanager
def _all_alive(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"A process is gone ({name}: {error}); start the same command again; finished work is kept."
        ) from error
