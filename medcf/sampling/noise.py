# SPDX-License-Identifier: Apache-2.0
"""The randomness of each sample is its own generator's, so that a result does not depend on batch size or order."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from medcf.schedulers.step import Step

__all__ = ["make_generators", "noised", "standard_noise"]


def make_generators(
    seed: int, sample_ids: Sequence[Hashable], device: torch.device | str = "cpu", stream: Sequence[Hashable] = ()
) -> list[torch.Generator]:
    """Make one generator per sample from (seed, sample id, stream).

    The same three give the same noise on the same kind of device, whatever the batch, its order or the process.

    Args:
        seed: seed of the run.
        sample_ids: one identity per sample: a case name, a hash of its pixels.
        device: where the noise is drawn; the device of the images.
        stream: names an independent stream for the same sample, for example the number of a pass.
    """
    generators = []
    for sample_id in sample_ids:
        digest = hashlib.sha256(repr((int(seed), str(sample_id), *stream)).encode()).digest()
        generators.append(torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1))
    return generators


def noised(
    scheduler: Any, image: torch.Tensor, t: int, generators: Sequence[torch.Generator] | None = None
) -> torch.Tensor:
    """Noise clean images to a timestep: sqrt(A) x + sqrt(1 - A) noise (Diff-ICE, eq. 1)."""
    alpha_bar = scheduler.alpha_bar(t)
    start = Step(alpha_bar**0.5 * image, 1 - alpha_bar, 0.0, image, image, t)
    return start.draw(generators)


def standard_noise(like: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Draw N(0, I) shaped like the images (B, C, *spatial), each image's from its own generator."""
    return Step(torch.zeros_like(like), 1.0, 0.0, like, like, 0).draw(generators)
