# SPDX-License-Identifier: Apache-2.0
"""The processes of one inference run under torchrun: who is who, and the few short messages between them.

Cases are independent, so no tensor is ever exchanged and no process group is formed: a key-value store, which torchrun
keeps, says what was done, and each process of its own beats in it, so that nobody waits for a dead one.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch

__all__ = ["collect", "first_on_main", "from_main", "local_device", "rank", "world_size"]

Result = TypeVar("Result")

PATIENCE = 120.0
"""Seconds without a beat after which a process counts as dead."""

_START = 1200.0  # seconds that a process may take to its first beat: it loads weights from a slow disk, say
_BEAT = 5.0
_POLL = 0.05


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


def from_main(name: str, function: Callable[[], Result]) -> Result:
    """Call a function on the main process and give its result to all.

    All processes must make the same calls of this module in the same order.

    Args:
        name: what is done, for messages.
        function: returns JSON values, and not many: the message must stay below 8 MB.

    Returns:
        The function's result on every process.

    Raises:
        RuntimeError: it failed on the main process (whose own error goes through there), or that process is gone.
    """
    if world_size() == 1:
        return function()
    channel = _channel()
    key = channel.key(name)
    if rank() == 0:
        try:
            result = function()
        except BaseException as error:
            channel.send(key, {"error": f"{type(error).__name__}: {error}"})
            time.sleep(10 * _POLL)  # without torchrun the store dies with this process, and the others are to read it
            raise
        channel.send(key, {"value": result})
        return result
    message = channel.receive(key, 0)
    if "error" in message:
        raise RuntimeError(f"The main process failed ({name}): {message['error']}")
    return message["value"]


def first_on_main(name: str, function: Callable[[], Result]) -> Result:
    """Call a function on the main process and, once it is through there, on the others.

    Args:
        name: what is done, for messages.
        function: leaves something behind, such as files, that the others are to find.

    Returns:
        Each process's own result.

    Raises:
        RuntimeError: as `from_main`.
    """
    results: list[Result] = []
    from_main(name, lambda: results.append(function()))
    return results[0] if results else function()


def collect(name: str, value: Any) -> list[Any]:
    """Bring a value of every process to the main process, which waits for them as long as they live.

    Args:
        name: what is done, for messages.
        value: JSON values.

    Returns:
        The values in the order of ranks; on the other processes, which do not wait, an empty list.

    Raises:
        RuntimeError: a process is gone; everything it completed is kept.
    """
    if world_size() == 1:
        return [value]
    channel = _channel()
    key = channel.key(name)
    if rank() > 0:
        channel.send(f"{key}/{rank()}", value)
        return []
    return [value, *(channel.receive(f"{key}/{other}", other) for other in range(1, world_size()))]


class _Channel:
    """The store that torchrun keeps (or, with another starter, the main process), and this process's beat in it."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank = rank()
        try:
            self.store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=_START)))
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(
                f"Process {self.rank} of {world_size()} cannot reach the others ({error}). "
                "Start them with: torchrun --standalone --nproc_per_node=2 -m monai.bundle run ..."
            ) from error
        self.calls: dict[str, int] = {}
        if torch.cuda.is_available():  # where a config says plain "cuda", it is to be this process's own
            torch.cuda.set_device(local_device())
        if self.rank > 0:  # what all would say alike, the main process says
            logging.disable(logging.INFO)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def key(self, name: str) -> str:
        """Name a message; the same call in a later run of the same process gets another name."""
        self.calls[name] = self.calls.get(name, 0) + 1
        return f"medcf/{name}/{self.calls[name]}"

    def send(self, key: str, value: Any) -> None:
        try:
            self.store.set(key, json.dumps(value))
        except RuntimeError as error:
            raise RuntimeError(
                f"Process {self.rank} has lost the others; start the same command again: what is done stays."
            ) from error

    def receive(self, key: str, sender: int) -> Any:
        """Wait for a message, and give up only when its sender is dead."""
        beats, heard = 0, time.monotonic()
        try:
            while not self.store.check([key]):
                now = self.store.add(f"medcf/beat/{sender}", 0)
                if now != beats:
                    beats, heard = now, time.monotonic()
                elif time.monotonic() - heard > (patience := PATIENCE if beats else _START):
                    raise TimeoutError(f"it gave no sign of life for {patience:.0f} s")
                time.sleep(_POLL)
            return json.loads(self.store.get(key))
        except (RuntimeError, TimeoutError) as error:
            raise RuntimeError(
                f"Process {sender} is gone ({error}); start the same command again: what is done stays."
            ) from error

    def _beat(self) -> None:
        try:
            while True:
                self.store.add(f"medcf/beat/{self.rank}", 1)
                time.sleep(_BEAT)
        except RuntimeError:  # the store is gone: whoever waits or sends next says so
            return


_channels: dict[tuple[str, ...], _Channel] = {}


def _channel() -> _Channel:
    """Return the channel of this process, opened at the first message."""
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
    key = tuple(os.environ.get(name, "") for name in names)
    if key not in _channels:
        _channels[key] = _Channel()
    return _channels[key]
