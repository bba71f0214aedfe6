# SPDX-License-Identifier: Apache-2.0
"""A training that can be killed at any moment: its checkpoint, its average, its randomness, its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers import EMAHandler as IgniteEMAHandler
from torch import nn

from medcf.networks.denoiser import unwrap
from medcf.runtime.atomic import replace_file

__all__ = ["EMAHandler", "ExportWeights", "ReproducibleRandomness", "ResumableCheckpoint", "save_atomically"]

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"


def save_atomically(content: Any, path: str | Path) -> Path:
    """``torch.save`` that leaves either the old file or the new one, never a part of one.

    Args:
        content: what ``torch.save`` takes.
        path: file to write; its folder is made where it is missing.

    Returns:
        The path.
    """
    return replace_file(path, lambda file: torch.save(content, file), binary=True)


class ResumableCheckpoint(Checkpoint):
    """Ignite's `Checkpoint` that keeps the whole state of a training in one file, and goes on from it.

    The file ``checkpoint.pt`` is replaced atomically at the end of an epoch; when the trainer starts and the file is
    there, everything is restored from it. Together with `ReproducibleRandomness` and `EpochSampler` a
    training that was killed and started again by the same command goes through the same losses as one that was not.
    To be the last handler in the list, so that validation and loss curve of the epoch are part of it.

    Args:
        directory: folder of the checkpoint.
        save_dict: name to object with ``state_dict`` and ``load_state_dict``; the trainer is added by itself.
        every: epochs between two checkpoints.
        resume: False begins anew and overwrites.
    """

    def __init__(
        self, directory: str | Path, save_dict: Mapping[str, Any], every: int = 1, resume: bool = True
    ) -> None:
        # not Ignite's DiskSaver: it removes the old file before it writes the new one, and a kill leaves its temporary
        super().__init__(dict(save_dict), self._write, filename_pattern=CHECKPOINT)
        self.path = Path(directory) / CHECKPOINT
        self.every = every
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        self.to_save = {**self.to_save, "trainer": engine}
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every) | Events.COMPLETED, self)

    def _write(self, content: Mapping[str, Any], *_: Any) -> None:
        if idist.get_rank() == 0:
            save_atomically(content, self.path)

    def restore(self, engine: Engine) -> None:
        """Load the checkpoint, where there is one.

        Raises:
            ValueError: the checkpoint is of another training, or it trained for longer than is asked for now.
        """
        if not (self.resume and self.path.is_file()):
            return
        remedy = "Pass --resume False to begin anew, or another --output_dir."
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # as in medcf.runtime.weights, torch's own text stays out of sight
            raise ValueError(f"{self.path} is not a readable checkpoint; it may be truncated. {remedy}") from None
        max_epochs, epoch_length = engine.state.max_epochs or 0, engine.state.epoch_length or 0
        trainer = content["trainer"]
        if content.keys() != self.to_save.keys() or trainer["epoch_length"] != epoch_length:
            raise ValueError(f"{self.path} is the checkpoint of another training. {remedy}")
        if trainer["iteration"] > max_epochs * epoch_length:
            raise ValueError(
                f"{self.path} is of iteration {trainer['iteration']}, beyond the {max_epochs * epoch_length} asked "
                f"for. {remedy}"
            )
        trainer["max_epochs"] = max_epochs
        try:
            self.load_objects(self.to_save, content)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path} is the checkpoint of another network. {remedy} ({error})") from error
        logger.info("Going on from iteration %d of %s.", engine.state.iteration, self.path)


class EMAHandler(IgniteEMAHandler):
    """Ignite's EMA with a decay that depends on the iteration alone.

    ``ema = d ema + (1 - d) weights`` after every iteration i, with ``d = min(decay, (1 + i) / (warmup + i))``: the
    first, random weights are forgotten at once. Ignite's own warm-up keeps a counter that no checkpoint holds; here
    the average itself, ``ema_model``, is all that a checkpoint must have.

    Args:
        network: the trained network; a `DistributedDataParallel` wrapper is taken off.
        decay: the decay that is reached after the warm-up, below 1.
        warmup: the greater, the sooner the old weights are forgotten at the beginning.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999, warmup: int = 10) -> None:
        super().__init__(network, momentum=1.0 - decay)
        self.decay = decay
        self.warmup = warmup

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Attach to a trainer; the momentum of the moment is ``engine.state.ema_momentum``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)

    def update(self, engine: Engine) -> None:
        """Average the weights of this iteration in."""
        iteration = engine.state.iteration
        momentum = 1.0 - min(self.decay, (1 + iteration) / (self.warmup + iteration))
        engine.state.ema_momentum = momentum  # type: ignore[attr-defined]  # where Ignite's update looks for it
        self._update_ema_model(engine, "ema_momentum")


class ReproducibleRandomness:
    """Make every random number of a training a function of (seed, process, iteration).

    PyTorch's global generators are seeded at the start of every epoch and of every iteration, and the random transforms
    of the dataset at the start of every epoch. So no generator's state has to be in a checkpoint, and noise, time steps
    and augmentation do not depend on whether the run was interrupted.

    Args:
        seed: the seed.
        dataset: dataset whose ``transform`` is random (MONAI's `Randomizable`); None when nothing there is.
    """

    def __init__(self, seed: int = 0, dataset: Any = None) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self.start_iteration)

    def _mix(self, number: int) -> int:
        return (self.seed * 1_000_003 + idist.get_rank()) * 100_000_007 + number

    def start_epoch(self, engine: Engine) -> None:
        """Seed what the loader draws from."""
        torch.manual_seed(self._mix(-engine.state.epoch))
        transform = getattr(self.dataset, "transform", None)
        if transform is not None and hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=self._mix(engine.state.epoch) % 2**32)

    def start_iteration(self, engine: Engine) -> None:
        """Seed what the network and ``prepare_batch`` draw from."""
        torch.manual_seed(self._mix(engine.state.iteration))


class ExportWeights:
    """Write a network's weights as a plain state dict when the training is complete.

    Args:
        network: the network, for example ``ema_model`` of `EMAHandler`.
        path: file to write.
        dtype: floating type of the file, for example ``"float16"`` for half the size; None keeps the network's. It is
            turned back wherever the weights are loaded.
    """

    def __init__(self, network: nn.Module, path: str | Path, dtype: str | None = None) -> None:
        self.network = network
        self.path = Path(path)
        self.dtype: torch.dtype | None = getattr(torch, dtype) if dtype else None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file, on the main process."""
        if idist.get_rank() == 0:
            state = unwrap(self.network).state_dict()
            save_atomically({key: self._stored(value) for key, value in state.items()}, self.path)
            logger.info("Wrote the weights of iteration %d to %s.", engine.state.iteration, self.path)

    def _stored(self, value: torch.Tensor) -> torch.Tensor:
        dtype = self.dtype if value.is_floating_point() else None
        return value.detach().to("cpu", dtype or value.dtype).contiguous().clone()
