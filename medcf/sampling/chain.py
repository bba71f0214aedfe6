# SPDX-License-Identifier: Apache-2.0
"""Chains: one pass over a stack of images, from where it starts, along which steps; and samples without an image."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medcf.runtime.progress import Progress
from medcf.sampling.loop import Hook, Predict, denoise
from medcf.sampling.noise import make_generators, noised, standard_noise
from medcf.schedulers import RespacedScheduler

__all__ = ["Chain", "draw_samples"]

Loss = Callable[[Tensor], Any]  # the bound loss of guidance, a higher layer


@dataclass(frozen=True, eq=False)
class Chain:
    """One pass over a stack of N samples; the basis for a method's hooks.

    Attributes:
        start: clean samples (N, C, *spatial) to be noised, in the method's space: the output of the previous pass.
        original: the inputs to be explained, in the same space.
        ids: one identity per image.
        seeds: one seed per image.
        number: number of the pass, from 0.
        timesteps: kept steps to run, noisiest first.
        level: timestep to which ``start`` is noised; None starts from pure noise.
        denoiser: the network with its condition, ``medcf.networks.Denoiser``.
        scheduler: the inferer's scheduler.
        loss: counterfactual loss for guided methods, bound to the originals; None without guidance.
        mask: where the samples may change (N, 1, *spatial), in [0, 1]; None means everywhere.
        progress: counts the steps.
    """

    start: Tensor
    original: Tensor
    ids: Sequence[Hashable]
    seeds: Sequence[int]
    number: int
    timesteps: Sequence[int]
    level: int | None
    denoiser: Any
    scheduler: RespacedScheduler
    loss: Loss | None = None
    mask: Tensor | None = None
    progress: Progress | None = None

    def generators(self, stream: str) -> list[torch.Generator]:
        """Create one generator per image for an independent noise stream of this pass."""
        return make_generators(self.seeds, self.ids, self.start.device, (stream, self.number))

    def guidance(self) -> Loss:
        """Return the loss of a guided chain."""
        if self.loss is None:
            raise ValueError("This chain is not guided: it has no loss.")
        return self.loss

    def run(self, hooks: Sequence[Hook] = (), sample: Tensor | None = None) -> Tensor:
        """Noise and denoise.

        Args:
            hooks: what the method adds to each step.
            sample: noisy samples to start from; None noises ``start``, or draws pure noise.

        Returns:
            Clean samples (N, C, *spatial).
        """
        generators = self.generators("pass")
        if sample is None and self.level is None:
            sample = standard_noise(self.start, generators)
        elif sample is None:
            sample = noised(self.scheduler, self.start, self.level or 0, generators)
        options: dict[str, Any] = {"generators": generators, "hooks": hooks, "progress": self.progress}
        return denoise(self.denoiser, self.scheduler, sample, self.timesteps, **options)


def draw_samples(
    denoiser: Predict,
    scheduler: RespacedScheduler,
    shape: Sequence[int],
    num_inference_steps: int,
    generators: Sequence[torch.Generator],
    hooks: Sequence[Hook] = (),
) -> Tensor:
    """Denoise one sample per generator from pure noise, over all kept steps.

    Args:
        denoiser: ``medcf.networks.Denoiser`` with the condition of each sample.
        scheduler: the sampler; its timesteps are set.
        shape: shape (C, *spatial) of a sample, in latents if the network works in them.
        num_inference_steps: number of kept steps.
        generators: one per sample, on the device of the network: `medcf.sampling.make_generators`.
        hooks: of the loop, such as guidance.

    Returns:
        Samples (B, C, *spatial), without a graph.
    """
    like = torch.zeros(len(generators), *shape, device=generators[0].device)
    scheduler.set_timesteps(num_inference_steps)
    noise = standard_noise(like, generators)
    return denoise(denoiser, scheduler, noise, scheduler.timesteps_from(1.0), generators=generators, hooks=hooks)
