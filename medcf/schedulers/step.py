# SPDX-License-Identifier: Apache-2.0
"""One reverse step: the distribution of the next sample, to which guidance can be applied before drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

__all__ = ["Step"]


Generators = Sequence[torch.Generator] | torch.Generator | None


def _standard_normal(like: torch.Tensor, generators: Generators) -> torch.Tensor:
    """Draw N(0, I) shaped like ``like``, on each generator's own device, so that results do not depend on the batch."""
    if generators is None:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device)
    if isinstance(generators, torch.Generator):
        return torch.randn(like.shape, dtype=like.dtype, device=generators.device, generator=generators).to(like.device)
    if len(generators) != like.shape[0]:
        raise ValueError(f"{len(generators)} generators for a batch of {like.shape[0]}; give one per sample.")
    noise = [torch.randn(like.shape[1:], dtype=like.dtype, device=g.device, generator=g) for g in generators]
    return torch.stack(noise).to(like.device)


@dataclass(frozen=True, eq=False)
class Step:
    """Distribution N(mean, variance) of the sample at the next timestep of the chain.

    Args:
        mean: (B, C, *spatial), float32 or wider.
        variance: variance of the noise added by :meth:`draw`; 0 for deterministic solvers and at the end of a chain.
        gain: how far a unit gradient of a loss with respect to the clean image or the sample moves the mean. For
            stochastic steps this is the model's variance Σ (Dhariwal & Nichol 2021, arXiv 2105.05233, algorithm 1), for
            deterministic ones c0 (1 - A) / √A, which is equivalent to ε ← ε + √(1 - A) g (algorithm 2). At the end of a
            stochastic chain it can be positive although nothing is drawn.
        pred_original: the predicted clean image that gave the mean, clipped if the scheduler clips.
        sample: the sample at the start of the step, in the caller's dtype.
        timestep: the timestep given to the network.
    """

    mean: torch.Tensor
    variance: float | torch.Tensor
    gain: float | torch.Tensor
    pred_original: torch.Tensor
    sample: torch.Tensor
    timestep: int

    def guide(self, gradient: torch.Tensor) -> Step:
        """Move the mean down the gradient of a loss.

        Args:
            gradient: (B, C, *spatial), gradient of the loss to minimize, including its scale.

        Returns:
            The step with mean - gain * gradient; everything else is unchanged.
        """
        return replace(self, mean=self.mean - self.gain * gradient.to(self.mean.dtype))

    def draw(self, generators: Generators = None) -> torch.Tensor:
        """Draw the next sample.

        Args:
            generators: one generator per sample, so that a result does not depend on its batch; one generator for the
                whole batch; or None for torch's global one. Nothing is drawn if the variance is 0.

        Returns:
            (B, C, *spatial) in the dtype of ``sample``.

        Raises:
            ValueError: if the number of generators differs from the batch size.
        """
        result = self.mean
        if isinstance(self.variance, torch.Tensor):
            result = result + self.variance.sqrt() * _standard_normal(result, generators)
        elif self.variance > 0:
            result = result + math.sqrt(self.variance) * _standard_normal(result, generators)
        return result.to(self.sample.dtype)
