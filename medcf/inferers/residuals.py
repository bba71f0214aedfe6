# SPDX-License-Identifier: Apache-2.0
"""Exact inversion: what a chain must add at each step to arrive at the input, kept while the class changes.

A path x_T .. x_0 that ends at the input is fixed; at each step the source condition predicts the mean of the next
sample, and what remains to the path is its residual. A chain toward the target adds the same residuals. Under the
source condition itself it walks the path: nothing asked, nothing changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from medcf.guidance.regions import composite
from medcf.inferers.ddim_inversion import SourceCondition
from medcf.inferers.options import EditOptions, StrengthOptions
from medcf.inferers.passes import Pass
from medcf.networks.denoiser import Denoiser
from medcf.sampling import Chain, Hook
from medcf.schedulers import Step

__all__ = ["ResidualOptions", "Residuals", "follow"]


@dataclass(frozen=True, kw_only=True)
class ResidualOptions(EditOptions, StrengthOptions):
    """Options of the exact inversions.

    Attributes:
        strength: fraction of the kept steps to walk back and forth, or one per pass.
        source_condition: condition of the path: the image's own class, "predicted" by the classifier (see
            ``own_class``), or the "null" class.
        source_guidance_scale: guidance scale along the path.
    """

    strength: float | Sequence[float] = 0.7
    source_condition: SourceCondition = "predicted"
    source_guidance_scale: float = 1.0


def follow(
    path: Sequence[Tensor], chain: Chain, source: Denoiser, run: Pass, index: Tensor
) -> tuple[Tensor, list[Hook]]:
    """Return the start of a path, and the hooks by which a chain toward the target follows it.

    Args:
        path: see `Residuals`.
        chain: the pass toward the target.
        source: the network with the source condition.
        run: the pass of the batch.
        index: its images.
    """
    hooks: list[Hook] = [Residuals(path, chain, source), KnownPath(path, chain)]
    run.state.count(index, source.num_function_evaluations)
    return path[0], hooks


class KnownPath(Hook):
    """Put the path back wherever the mask forbids changes, so that its residuals stay valid; it ends at the input."""

    def __init__(self, path: Sequence[Tensor], chain: Chain) -> None:
        self.chain, self.after = chain, dict(zip(chain.timesteps, path[1:], strict=True))

    def after_step(self, sample: Tensor, step: Step) -> Tensor:
        """Return the drawn samples with the known part put back."""
        mask, known = self.chain.mask, self.after[step.timestep].to(sample.dtype)
        return sample if mask is None else composite(mask, sample, known)


class Residuals(Hook):
    """Add the residual of a path to the mean of each step, instead of noise.

    Args:
        path: samples from the first step's noise level to the input, in the order of the chain's steps.
        chain: the pass.
        denoiser: the network with the source condition.
    """

    def __init__(self, path: Sequence[Tensor], chain: Chain, denoiser: Any) -> None:
        self.residuals: dict[int, Tensor] = {}
        scheduler = chain.scheduler.for_chain(chain.timesteps)
        for t, sample, after in zip(chain.timesteps, path[:-1], path[1:], strict=True):
            step = scheduler.posterior(denoiser(sample, t), t, sample)
            self.residuals[t] = after.to(step.mean.dtype) - step.mean
            self.on_step(step).draw()  # a solver that remembers its steps must remember these
            if chain.progress is not None:
                chain.progress.update(1)

    def on_step(self, step: Step) -> Step:
        """Return the step without chance: its mean and the residual."""
        return replace(step, mean=step.mean + self.residuals[step.timestep], variance=0.0)
