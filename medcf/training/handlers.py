# SPDX-License-Identifier: Apache-2.0
"""Small Ignite handlers for training: clipping, progress, loss curve, samples, metrics."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import IterationEvents
from monai.handlers import ValidationHandler
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import Scheduler
from monai.utils import AdversarialKeys, CommonKeys
from torch import nn

from medcf.runtime.atomic import replace_file, write_json
from medcf.sampling import Space

__all__ = [
    "GradientClipping",
    "LossCurve",
    "MetricsFile",
    "SampleGrid",
    "TrainingProgress",
    "Validation",
    "loss_of",
    "shared_handler",
]

logger = logging.getLogger(__name__)

Handler = TypeVar("Handler")


def loss_of(output: Any) -> float:
    """Read the loss from a trainer's output, decollated or not."""
    first = output[0] if isinstance(output, list) else output
    loss = first.get(CommonKeys.LOSS)
    if loss is None:  # MONAI's AdversarialTrainer sums its losses without naming the sum
        loss = first[AdversarialKeys.RECONSTRUCTION_LOSS] + first[AdversarialKeys.GENERATOR_LOSS]
    return float(torch.as_tensor(loss).detach())


@dataclass(eq=False)
class GradientClipping:
    """Clip the gradient norm between backward pass and optimizer step, and stop if it is not finite.

    Args:
        network: the trained network.
        max_norm: maximum norm of all gradients together.
        event: when; that of the generator for MONAI's `AdversarialTrainer`.
    """

    network: nn.Module
    max_norm: float = 1.0
    event: Any = IterationEvents.BACKWARD_COMPLETED

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer."""
        engine.add_event_handler(self.event, self)

    def __call__(self, engine: Engine) -> None:
        """Clip.

        Raises:
            FloatingPointError: if the gradient is not finite.
        """
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        if not np.isfinite(float(norm)):
            raise FloatingPointError(
                f"The gradient is not finite at iteration {engine.state.iteration}; lower the learning rate and start "
                "the same command again: it resumes from the last checkpoint."
            )


def shared_handler(handler: Handler) -> Handler:
    """Return ``handler``, for one that other parts of a config also refer to.

    MONAI requires dictionaries with a ``_target_`` in a config's list of handlers; "@id" would be plain text there.
    """
    return handler


class TrainingProgress(ProgressBar):
    """Ignite's progress bar over all iterations instead of per epoch; a resumed run continues it.

    Args:
        description: text before the bar.
    """

    def __init__(self, description: str = "training") -> None:
        rank = idist.get_rank()
        super().__init__(persist=True, desc=description, disable=rank > 0, mininterval=1.0, dynamic_ncols=True)
        self.loss: float | None = None

    def attach(self, engine: Engine) -> None:  # type: ignore[override]
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def advance(self, engine: Engine) -> None:
        """Advance by one iteration and show the smoothed loss."""
        state = engine.state
        bar: Any = self.pbar
        if bar is None:
            self._reset((state.max_epochs or 0) * (state.epoch_length or 0))
            bar = self.pbar
            bar.initial = bar.n = state.iteration - 1
        loss = loss_of(state.output)
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        bar.set_postfix_str(f"loss {self.loss:.4f}", refresh=False)
        bar.update()


@dataclass(eq=False)
class LossCurve:
    """Record the loss of every iteration, as CSV and for the checkpoint.

    Args:
        path: CSV file with columns iteration, loss, learning_rate; rewritten after each epoch.
        optimizer: optimizer whose first learning rate is recorded.
    """

    path: str | Path
    optimizer: torch.optim.Optimizer
    rows: list[list[float]] = field(default_factory=list, init=False)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def __call__(self, engine: Engine) -> None:
        """Record an iteration."""
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.rows.append([engine.state.iteration, loss_of(engine.state.output), learning_rate])

    def write(self, engine: Engine) -> None:
        """Write the CSV file, on the main process."""
        if idist.get_rank() == 0:
            replace_file(
                self.path, lambda file: csv.writer(file).writerows([("iteration", "loss", "learning_rate"), *self.rows])
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the curve so far."""
        return {"rows": [list(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a curve."""
        self.rows = [list(row) for row in state["rows"]]


class Validation(ValidationHandler):
    """MONAI's `ValidationHandler` that also validates at the end, however short the training is.

    Args:
        validator: MONAI's evaluator.
        interval: epochs between two validations.
    """

    def __init__(self, validator: Any, interval: int) -> None:
        super().__init__(interval, validator)
        self._validated: int | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def __call__(self, engine: Engine) -> None:
        """Validate."""
        super().__call__(engine)
        self._validated = engine.state.iteration

    def finish(self, engine: Engine) -> None:
        """Validate, unless the last epoch was validated."""
        if self._validated != engine.state.iteration:
            self(engine)


@dataclass(eq=False)
class SampleGrid:
    """Sample images from pure noise, always the same, as PNG files and to TensorBoard; one row per class or prompt.

    A failing preview is logged, and training continues. Place it after the checkpoint.

    Args:
        network: the network to sample from, usually ``ema_model`` of `EMAHandler`.
        scheduler: a scheduler with MONAI's ``step``, such as DDIM.
        directory: folder for the PNG files, ``samples_<iteration>.png``.
        shape: shape (C, *spatial) of a sample; for a volume (X, Y, Z) the middle axial slice is shown, anterior up.
        class_labels: one row of images per label.
        prompts: one row of images per prompt, in place of the labels, for `medcf.networks.PromptUNet`; not guided.
        space: space of the network, to which ``shape`` belongs; None is the pixels.
        columns: images per row.
        num_inference_steps: steps of the sampler.
        every: epochs between two grids; the last epoch is always sampled.
        writer: TensorBoard's SummaryWriter, or None.
        seed: seed for the noise.
    """

    network: nn.Module
    scheduler: Scheduler
    directory: str | Path
    shape: Sequence[int]
    class_labels: Sequence[int] = (0, 1, 2)
    prompts: Sequence[str] = ()
    space: Space | None = None
    columns: int = 4
    num_inference_steps: int = 20
    every: int = 5
    writer: Any = None
    seed: int = 0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Sample, on the main process, if the epoch is due."""
        epoch = engine.state.epoch
        if idist.get_rank() == 0 and (epoch % self.every == 0 or epoch == engine.state.max_epochs):
            try:
                self._draw(engine.state.iteration)
            except Exception:
                logger.exception("No preview for iteration %d; training continues.", engine.state.iteration)

    def _draw(self, iteration: int) -> None:
        from PIL import Image

        grid = self.sample()
        folder = Path(self.directory)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(folder / f"samples_{iteration:07d}.png")
        if self.writer is not None:
            self.writer.add_image("samples", grid, iteration, dataformats="HW")

    @torch.no_grad()
    def sample(self) -> np.ndarray:
        """Sample a grid; uint8 of shape (rows * H, columns * W)."""
        device = next(self.network.parameters()).device
        count = len(self.prompts or self.class_labels)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((self.columns, *self.shape), generator=generator).repeat(count, *[1] * len(self.shape))
        network: Any = self.network
        context = None
        if self.prompts:
            context = network.text_encoder.tokenize(self.prompts).repeat_interleave(self.columns, dim=0)
        else:
            labels = torch.tensor(self.class_labels, device=device).repeat_interleave(self.columns)
            network = partial(network, class_labels=labels)
        self.scheduler.set_timesteps(self.num_inference_steps)  # type: ignore[operator]
        options: dict[str, Any] = {"conditioning": context, "verbose": False}
        images: Any = DiffusionInferer(self.scheduler).sample(noise.to(device), network, self.scheduler, **options)
        if self.space is not None:
            images = self.space.decode(images)
        gray = (torch.as_tensor(images).float().clamp(-1, 1) + 1) * 127.5
        pixels = gray.round().to(torch.uint8).cpu().numpy()[:, 0]
        if pixels.ndim == 4:
            pixels = np.flip(pixels[..., pixels.shape[-1] // 2].swapaxes(1, 2), axis=1)
        height, width = pixels.shape[1:]
        rows = pixels.reshape(-1, self.columns, height, width).swapaxes(1, 2)
        return rows.reshape(-1, self.columns * width)


@dataclass(eq=False)
class MetricsFile:
    """Write the validation metrics of a finished training to a JSON file and to the log.

    Args:
        evaluator: the evaluator used for validation; the metrics of its last run are written.
        path: file to write.
    """

    evaluator: Engine
    path: str | Path
    _begin: float = field(default_factory=time.monotonic, init=False)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file, on the main process."""
        if idist.get_rank() > 0:
            return
        metrics = {name: float(value) for name, value in self.evaluator.state.metrics.items()}
        if not metrics and Path(self.path).is_file():
            return  # the training was already complete when restarted
        record = {
            "iterations": engine.state.iteration,
            "seconds_of_this_session": round(time.monotonic() - self._begin, 1),
            "metrics": {name: value if np.isfinite(value) else None for name, value in metrics.items()},
        }
        write_json(Path(self.path), record)
        logger.info("Validation: %s", ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
