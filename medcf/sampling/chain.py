# SPDX-License-Identifier: Apache-2.0
"""What a pass of a method works on; its hooks are made from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medcf.networks.denoiser import Denoiser
from medcf.sampling.noise import make_generators

__all__ = ["Chain"]

Loss = Callable[[torch.Tensor], Any]  # the bound loss of guidance, which lies above


@dataclass(frozen=True, eq=False)
class Chain:
    """One pass over a stack of N images; what a method's hooks are made from.

    Attributes:
        start: clean images (N, C, *spatial) that are noised: the output of the pass before.
        original: the inputs (N, C, *spatial) that are explained.
        ids: one identity per image.
        number: number of the pass, from 0.
        timesteps: kept steps that run, the noisiest first.
        denoiser: the network with its condition.
        scheduler: the inferer's own.
        seed: seed of the run.
        loss: counterfactual loss of guided methods, bound to the originals; None without guidance.
    """

    start: torch.Tensor
    original: torch.Tensor
    ids: Sequence[Hashable]
    number: int
    timesteps: Sequence[int]
    denoiser: Denoiser
    scheduler: Any
    seed: int
    loss: Loss | None = None

    def generators(self, stream: str) -> list[torch.Generator]:
        """Make one generator an image for an independent stream of noise of this pass."""
        return make_generators(self.seed, self.ids, self.start.device, (stream, self.number))

    def guidance(self) -> Loss:
        """Return the loss of a guided chain."""
        if self.loss is None:
            raise ValueError("This chain is not guided: it has no loss.")
        return self.loss
