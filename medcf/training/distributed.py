# SPDX-License-Identifier: Apache-2.0
"""Multi-process training under torchrun, on GPUs or CPUs; for inference see `medcf.runtime.ranks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
from monai.handlers import StatsHandler, TensorBoardImageHandler, TensorBoardStatsHandler
from torch import nn

from medcf.runtime import ranks
from medcf.runtime.ranks import local_device

__all__ = ["close_processes", "distribute", "join_processes", "local_device", "rank_handlers", "rank_writer"]

MAIN_PROCESS_ONLY = (StatsHandler, TensorBoardStatsHandler, TensorBoardImageHandler)  # ours check the rank themselves


def join_processes() -> None:
    """Join the processes started by torchrun, over nccl on GPUs and gloo on CPUs.

    Raises:
        RuntimeError: if not started by torchrun, or the others do not join.
    """
    ranks.join_processes("nccl" if local_device().type == "cuda" else "gloo")


def close_processes() -> None:
    """Leave the process group, after all have arrived."""
    idist.barrier()
    ranks.leave_processes()


def distribute(network: nn.Module) -> nn.parallel.DistributedDataParallel:
    """Wrap a network that is already on its device, so that gradients are averaged over the processes."""
    device = next(network.parameters()).device
    return nn.parallel.DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def rank_handlers(handlers: Sequence[Any]) -> list[Any]:
    """Keep all handlers on the main process, and on others those that do more than report.

    Args:
        handlers: the handlers of a trainer or an evaluator.
    """
    if idist.get_rank() > 0:
        return [handler for handler in handlers if not isinstance(handler, MAIN_PROCESS_ONLY)]
    return list(handlers)


def rank_writer(log_dir: str) -> Any:
    """Create TensorBoard's writer on the main process, and on others one that writes nothing.

    Args:
        log_dir: folder for the event files.
    """
    if idist.get_rank() > 0:
        return _SilentWriter()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(log_dir=log_dir)


class _SilentWriter:
    """Accepts every call of a SummaryWriter; given None, MONAI's handlers would create a real one."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
