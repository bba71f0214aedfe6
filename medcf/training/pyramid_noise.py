# SPDX-License-Identifier: Apache-2.0
"""Noise with more power at low frequencies for training a denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import interpolate

from medcf.schedulers import RespacedScheduler
from medcf.training.losses import learns_variance
from medcf.training.prepare_batch import Batch, ClassConditionalPrepareBatch, Device

__all__ = ["PyramidNoisePrepareBatch", "pyramid_noise"]

_MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}


class PyramidNoisePrepareBatch(ClassConditionalPrepareBatch):
    """`ClassConditionalPrepareBatch` with pyramid noise (ControlCG) and, on request, pairs of views.

    The noised image and the target use the same noise.

    Args:
        scheduler: see `ClassConditionalPrepareBatch`.
        discount: weight of each coarser noise level relative to the previous one; 0 is white noise.
        white_fraction: fraction of the images trained with white noise, from which sampling starts.
        reference_pairs: also train attention injection: every image occurs twice with the same timestep and separate
            noise. The first copy reads the second by injection; the second reads only itself, like the reference later.
            So half of the batch teaches the use of a reference, which a short training would not learn otherwise. The
            second copy has the first one's class or, in half of the cases, none (``reference_condition``).
        options: see `ClassConditionalPrepareBatch`.

    Raises:
        ValueError: if an option is out of range, or the scheduler learns its variance.
    """

    def __init__(
        self,
        scheduler: RespacedScheduler,
        *,
        discount: float = 0.9,
        white_fraction: float = 0.0,
        reference_pairs: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(scheduler, **options)
        if not 0.0 <= discount <= 1.0 or not 0.0 <= white_fraction <= 1.0:
            raise ValueError(f"discount={discount} and white_fraction={white_fraction} must be in [0, 1].")
        if learns_variance(scheduler):
            raise ValueError("A learned variance is that of white noise: use ClassConditionalPrepareBatch.")
        self.discount = discount
        self.white_fraction = white_fraction
        self.reference_pairs = reference_pairs

    def __call__(
        self, batchdata: Batch, device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict]:
        """Prepare a batch.

        Returns:
            Images, the target, no positional arguments, and ``noise``, ``timesteps``, ``class_labels``; with
            ``reference_pairs`` all of them doubled, and ``reference``, the row that each row reads.
        """
        prepared = super().__call__(batchdata, device, non_blocking, **kwargs)
        if not self.reference_pairs:
            return prepared
        images, target, args, first = prepared
        count = len(images)
        noise = self.get_noise(images)
        labels = first["class_labels"]
        nameless = torch.rand(labels.shape, device=labels.device) < 0.5
        arguments = {
            "noise": torch.cat([first["noise"], noise]),
            "timesteps": first["timesteps"].repeat(2),
            "class_labels": torch.cat([labels, labels.masked_fill(nameless, self.null_class)]),
            "reference": [*range(count, 2 * count), *range(count, 2 * count)],
        }
        target = torch.cat([target, self.get_target(images, noise, first["timesteps"])])
        return images.repeat(2, *(1,) * (images.ndim - 1)), target, args, arguments

    def get_noise(self, images: torch.Tensor) -> torch.Tensor:
        """Draw the noise of a batch (B, C, *spatial)."""
        noise = pyramid_noise(images, discount=self.discount)
        if self.white_fraction:
            white = torch.rand(len(images), device=images.device) < self.white_fraction
            noise = torch.where(white.view(-1, *(1,) * (images.ndim - 1)), torch.randn_like(images), noise)
        return noise


def pyramid_noise(
    images: torch.Tensor, *, discount: float = 0.9, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw noise summed over resolutions, with standard deviation 1 in every sample.

    Level 0 is white noise at full size; level i is white noise at size / r^i with r ~ U[2, 4) drawn separately for each
    level, resized to full size by (bi-, tri-)linear interpolation and weighted by ``discount ** i``, until a side is 1.

    Args:
        images: (B, C, *spatial); the noise has their shape, device and dtype.
        discount: weight of a level relative to the previous one; 0 is white noise.
        generator: source of randomness; None uses torch's own.

    Returns:
        Noise (B, C, *spatial); every sample is divided by its own standard deviation.
    """
    spatial = images.shape[2:]
    draw: dict[str, Any] = {"generator": generator, "device": images.device, "dtype": torch.float32}
    noise = torch.randn(images.shape, **draw)
    level = 0
    while discount > 0:
        level += 1
        ratio = 2.0 + 2.0 * float(torch.rand(1, generator=generator, device=images.device))
        size = [max(1, int(n / ratio**level)) for n in spatial]
        coarse = torch.randn((*images.shape[:2], *size), **draw)
        noise += discount**level * interpolate(coarse, size=spatial, mode=_MODES[images.ndim], align_corners=False)
        if min(size) == 1:
            break
    deviation = noise.flatten(1).std(1).view(-1, *(1,) * (images.ndim - 1))
    return (noise / deviation).to(images.dtype)
