# SPDX-License-Identifier: Apache-2.0
"""The processes of one run under torchrun: who is who, and the few short messages between them, over gloo.

Cases are independent: only the run folder talks, when it is opened and when it is closed, and without torchrun nobody
does. A process that dies closes its connections, so whoever waits for it hears that at once; torchrun ends the others
anyway. `WAIT` is for what dies in silence: a machine without power, a process that hangs. It runs only while a process
waits, never while it works, so it bounds by how much one share of the cases may take longer than another, not how long
both take.
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

__all__ = ["collect", "from_main", "join_processes", "leave_processes", "local_device", "rank", "world_size"]

Result = TypeVar("Result")

WAIT = timedelta(days=1)


def world_size() -> int:
    """Return the number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Return this process's number; 0, the main process, without torchrun."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_device() -> torch.device:
    """Return this process's own device: the GPU with the number ``LOCAL_RANK``, or the CPU.

    With more processes than GPUs, they share them in turn.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def join_processes(backend: str = "gloo") -> None:
    """Join the processes that torchrun started; what all would log alike, the main process alone logs.

    Args:
        backend: of ``torch.distributed``.

    Raises:
        RuntimeError: not started by torchrun, or the others do not come within the backend's own timeout.
    """
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"This process cannot join others ({error}). Start all of them with: "
            "torchrun --standalone --nproc_per_node=2 -m monai.bundle run ..."
        ) from error
    atexit.register(leave_processes)  # a group that is alive when the interpreter goes aborts the process
    if torch.cuda.is_available():  # where a config says plain "cuda", it is to be this process's own
        torch.cuda.set_device(local_device())
    if dist.get_rank() > 0:
        logging.disable(logging.INFO)


def leave_processes() -> None:
    """Leave the other processes, without a word to them; does nothing where none was joined."""
    _group.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def from_main(name: str, function: Callable[[], Result]) -> Result:
    """Call a function on the main process and give its result to all, who wait for it.

    All processes must make the same calls of this module in the same order.

    Args:
        name: what is done, for messages.
        function: returns what can be pickled.

    Returns:
        The function's result on every process.

    Raises:
        RuntimeError: it failed on the main process (whose own error goes through there), or a process is gone.
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
    """Bring a value of every process to the main process; all wait for the last one.

    Args:
        name: what is done, for messages.
        value: what can be pickled.

    Returns:
        The values in the order of ranks; on the other processes an empty list.

    Raises:
        RuntimeError: a process is gone; everything it completed is kept.
    """
    if world_size() == 1:
        return [value]
    group = _group()
    values: list[Any] = [None] * world_size() if rank() == 0 else []
    with _all_alive(name):
        dist.monitored_barrier(group, timeout=WAIT)  # its error names who is missing
        dist.gather_object(value, values or None, group=group)
    return values


@cache
def _group() -> dist.ProcessGroup:
    """Return the group of the messages, which waits longer than the one that the processes join, or training's."""
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
            f"A process is gone ({name}: {error}); start the same command again: what is done stays."
        ) from error
