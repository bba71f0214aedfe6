# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a network's weights, resumable."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler as IgniteEMAHandler
from torch import nn

__all__ = ["EMAHandler"]


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
        self._set_momentum(engine, self.momentum)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)

    def update(self, engine: Engine) -> None:
        """Average the weights of this iteration in."""
        iteration = engine.state.iteration
        self._set_momentum(engine, 1.0 - min(self.decay, (1 + iteration) / (self.warmup + iteration)))
        self._update_ema_model(engine, "ema_momentum")

    @staticmethod
    def _set_momentum(engine: Engine, momentum: float) -> None:
        engine.state.ema_momentum = momentum  # type: ignore[attr-defined]  # where Ignite's update looks for it
