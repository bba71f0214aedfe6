# SPDX-License-Identifier: Apache-2.0
"""Samples from pure noise: no input image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medcf.sampling.loop import Predict, denoise
from medcf.sampling.noise import standard_noise
from medcf.schedulers import RespacedScheduler

__all__ = ["draw_samples"]


def draw_samples(
    denoiser: Predict,
    scheduler: RespacedScheduler,
    shape: Sequence[int],
    num_inference_steps: int,
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """Denoise one sample per generator from pure noise, over all kept steps.

    Args:
        denoiser: ``medcf.networks.Denoiser`` with the condition of each sample.
        scheduler: the sampler; its timesteps are set.
        shape: shape (C, *spatial) of a sample, in latents if the network works in them.
        num_inference_steps: number of kept steps.
        generators: one per sample, on the device of the network: `medcf.sampling.make_generators`.

    Returns:
        Samples (B, C, *spatial), without a graph.
    """
    like = torch.zeros(len(generators), *shape, device=generators[0].device)
    scheduler.set_timesteps(num_inference_steps)
    noise = standard_noise(like, generators)
    return denoise(denoiser, scheduler, noise, scheduler.timesteps_from(1.0), generators=generators)
