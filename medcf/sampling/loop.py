# SPDX-License-Identifier: Apache-2.0
"""The denoising loop: every method is a start, a model call and hooks around ``denoise``.

The loop never waits for the device: timesteps are Python integers, coefficients are floats, and no tensor is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from medcf.runtime.progress import Progress
from medcf.sampling.noise import make_generators
from medcf.schedulers import Prediction, RespacedScheduler, Step

__all__ = ["Chain", "Hook", "Predict", "denoise"]

#: A denoiser: noisy images (B, C, *spatial) and their timestep to what the network predicts.
Predict = Callable[[torch.Tensor, int], Prediction]
Loss = Callable[[torch.Tensor], Any]  # the bound loss of guidance, a higher layer


@dataclass(frozen=True, eq=False)
class Chain:
    """One pass over a stack of N images; the basis for a method's hooks.

    Attributes:
        start: clean images (N, C, *spatial) to be noised: the output of the previous pass.
        original: the inputs (N, C, *spatial) to be explained.
        ids: one identity per image.
        number: number of the pass, from 0.
        timesteps: kept steps to run, noisiest first.
        denoiser: the network with its condition.
        scheduler: the inferer's scheduler.
        seed: seed of the run.
        loss: counterfactual loss for guided methods, bound to the originals; None without guidance.
    """

    start: torch.Tensor
    original: torch.Tensor
    ids: Sequence[Hashable]
    number: int
    timesteps: Sequence[int]
    denoiser: Predict
    scheduler: RespacedScheduler
    seed: int
    loss: Loss | None = None

    def generators(self, stream: str) -> list[torch.Generator]:
        """Create one generator per image for an independent noise stream of this pass."""
        return make_generators(self.seed, self.ids, self.start.device, (stream, self.number))

    def guidance(self) -> Loss:
        """Return the loss of a guided chain."""
        if self.loss is None:
            raise ValueError("This chain is not guided: it has no loss.")
        return self.loss


class Hook(Protocol):
    """What a method adds to a step of the loop; subclass it and override the methods you need."""

    def before_model(self, sample: torch.Tensor, t: int) -> torch.Tensor:
        """Return the model's input; a leaf that requires grad makes the loop record the network call."""
        return sample

    def on_step(self, step: Step) -> Step:
        """Return the ``Step`` to draw from: with a moved mean (guidance), a mask, a low-pass filter."""
        return step

    def after_step(self, sample: torch.Tensor, step: Step) -> torch.Tensor:
        """Return the drawn images, which are the next step's noisy images."""
        return sample


def denoise(
    denoiser: Predict,
    scheduler: RespacedScheduler,
    sample: torch.Tensor,
    timesteps: Sequence[int],
    *,
    generators: Sequence[torch.Generator] | None = None,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
) -> torch.Tensor:
    """Run the chain over the given timesteps.

    Args:
        denoiser: maps (sample, t) to the scheduler's ``Prediction``; ``medcf.networks.Denoiser``.
        scheduler: provides ``posterior(prediction, t, sample)``, a ``Step`` with ``draw(generators)``.
        sample: noisy images (B, C, *spatial) at ``timesteps[0]``.
        timesteps: kept steps as Python integers, in running order: ``scheduler.timesteps_from``.
        generators: one per sample; None draws from torch's global state.
        hooks: called in order before the model, on the step, and after the draw.
        progress: any object with ``update(n)``, such as a tqdm bar; counts steps.

    Returns:
        Images (B, C, *spatial) after the last step, without a graph.
    """
    scheduler = scheduler.for_chain(timesteps)
    for t in timesteps:
        for hook in hooks:
            sample = hook.before_model(sample, t)
        with torch.set_grad_enabled(sample.requires_grad):
            step = scheduler.posterior(denoiser(sample, t), t, sample)
        with torch.no_grad():
            for hook in hooks:
                step = hook.on_step(step)
            sample = step.draw(generators).detach()
            for hook in hooks:
                sample = hook.after_step(sample, step)
        if progress is not None:
            progress.update(1)
    return sample
