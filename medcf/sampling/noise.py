# SPDX-License-Identifier: Apache-2.0
"""Each sample has its own generator, so results do not depend on batch size or order."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import torch

from medcf.schedulers import RespacedScheduler, Step

__all__ = ["make_generators", "noised", "standard_noise"]


def make_generators(
    seed: int | Sequence[int],
    sample_ids: Sequence[Hashable],
    device: torch.device | str = "cpu",
    stream: Sequence[Hashable] = (),
) -> list[torch.Generator]:
    """Create one generator per sample from (seed, sample id, stream).

    The same three values give the same noise on the same kind of device, whatever the batch, its order or the process.

    Args:
        seed: seed of the run, or one per sample.
        sample_ids: one identity per sample: a case name, or a hash of its pixels.
        device: device on which the noise is drawn, that of the images.
        stream: name of an independent stream for the same sample, such as the number of a pass.
    """
    generators = []
    seeds = [seed] * len(sample_ids) if isinstance(seed, int) else seed
    for own, sample_id in zip(seeds, sample_ids, strict=True):
        digest = hashlib.sha256(repr((int(own), str(sample_id), *stream)).encode()).digest()
        generators.append(torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1))
    return generators


def noised(
    scheduler: RespacedScheduler, image: torch.Tensor, t: int, generators: Sequence[torch.Generator] | None = None
) -> torch.Tensor:
    """Noise clean images to a timestep: sqrt(A) x + sqrt(1 - A) noise (Diff-ICE, eq. 1)."""
    alpha_bar = scheduler.alpha_bar(t)
    start = Step(alpha_bar**0.5 * image, 1 - alpha_bar, 0.0, image, image, t)
    return start.draw(generators)


def standard_noise(like: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Draw N(0, I) shaped like the images (B, C, *spatial), each image from its own generator."""
    return Step(torch.zeros_like(like), 1.0, 0.0, like, like, 0).draw(generators)
