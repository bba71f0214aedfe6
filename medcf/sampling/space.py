# SPDX-License-Identifier: Apache-2.0
"""Where a chain runs: on the pixels, or in the latents of an autoencoder. No method knows which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, adaptive_max_pool3d

from medcf.schedulers.step import Step

__all__ = ["LatentSpace", "PixelSpace", "Space"]


class Space(Protocol):
    """What a method needs to know about the space of the diffusion model.

    Attributes:
        range: bounds to which predicted clean samples are clipped; None does not clip them.
        networks: networks that must be in eval mode and without parameter gradients while a method runs.
    """

    range: tuple[float, float] | None
    networks: tuple[Any, ...]

    def encode(self, image: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return images (B, C, *spatial) in [-1, 1] as samples of the space."""

    def decode(self, sample: Tensor) -> Tensor:
        """Return samples as images (B, C, *spatial); differentiable."""

    def mask(self, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Return a mask of the images (B, 1, *spatial), in [0, 1], on the samples' grid ``size``."""


class PixelSpace:
    """The images themselves."""

    networks: tuple[Any, ...] = ()

    def __init__(self, range: tuple[float, float] | None = (-1.0, 1.0)) -> None:
        self.range = range

    def encode(self, image: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return the images."""
        return image

    def decode(self, sample: Tensor) -> Tensor:
        """Return the samples."""
        return sample

    def mask(self, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Return the mask."""
        return mask


class LatentSpace:
    """The latents of an autoencoder (Rombach et al. 2022, arXiv 2112.10752): z = (mean - shift) * scale_factor.

    Args:
        autoencoder: a network with MONAI's ``encode``, to a mean and a standard deviation (`AutoencoderKL`) or to
            latents alone (`VQVAE`), and ``decode``.
        scale_factor: makes the latents of the training images unit normal; a number or one per channel.
        shift: mean of the latents, a number or one per channel.
        range: bounds for predicted clean latents; None does not clip them.
        sampled: draw latents from the posterior, with a sample's generator, instead of taking its mean.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        scale_factor: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
        range: tuple[float, float] | None = None,
        *,
        sampled: bool = False,
    ) -> None:
        self.autoencoder = autoencoder
        self.networks: tuple[Any, ...] = (autoencoder,)
        self.scale_factor = torch.as_tensor(scale_factor)
        self.shift = torch.as_tensor(shift)
        self.range = range
        self.sampled = sampled
        if not bool((self.scale_factor > 0).all()):
            raise ValueError(f"scale_factor={scale_factor}: use numbers above 0.")

    def encode(self, image: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return the latents of images (B, C, *spatial) in [-1, 1]."""
        found: Any = self.autoencoder.encode(image)  # type: ignore[operator]
        mean, deviation = map(_full, found) if isinstance(found, tuple) else (_full(found), None)
        if self.sampled and deviation is not None:
            mean = Step(mean, deviation**2, 0.0, mean, mean, 0).draw(generators)
        return (mean - self._channels(self.shift, mean)) * self._channels(self.scale_factor, mean)

    def decode(self, sample: Tensor) -> Tensor:
        """Return the images of latents."""
        latent = sample / self._channels(self.scale_factor, sample) + self._channels(self.shift, sample)
        return _full(self.autoencoder.decode(latent))  # type: ignore[operator]

    def mask(self, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Return the mask on the latents' grid: a latent may change if any of its pixels may."""
        pool = adaptive_max_pool2d if mask.ndim == 4 else adaptive_max_pool3d
        return pool(mask.float(), tuple(size))

    @staticmethod
    def _channels(values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.device, like.dtype).reshape(1, -1, *[1] * (like.ndim - 2))


def _full(tensor: Tensor) -> Tensor:
    """Return a tensor in at least 32 bits, also under autocast: samples and masks are never rounded."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
