# SPDX-License-Identifier: Apache-2.0
"""MONAI's autoencoder as a bundle uses it: on coarser pixels, and with the scale of its latents among its weights."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor
from torch.nn import functional

__all__ = ["BundleAutoencoder"]


class BundleAutoencoder(AutoencoderKL):
    """MONAI's `AutoencoderKL` behind a pixel unshuffle, with the mean and the spread of its latents.

    Most of an autoencoder's time goes into its finest level. Here r x r pixels become channels of one pixel first, and
    return at the end (Shi et al. 2016, arXiv 1609.05158), so the finest level has 1 / r² of the pixels. The buffers
    ``latent_shift`` and ``latent_scale``, one number per channel, make the latents of the training images unit normal:
    ``(latent - shift) * scale``. `medcf.training.autoencoder.MeasureLatents` measures them when the training is
    complete, they are stored with the weights, and `medcf.sampling.LatentSpace` finds them here.

    Args:
        spatial_dims: 2; pixels are unshuffled in 2D only. 3 needs ``pixel_unshuffle=1``.
        in_channels: channels of the image.
        out_channels: channels of the reconstruction.
        latent_channels: channels of the latents.
        pixel_unshuffle: r; every side of an image must be divisible by r * 2 ** (levels - 1). 1 is MONAI's network.
        kwargs: all further arguments of `AutoencoderKL`.

    Raises:
        ValueError: if volumes are to be unshuffled.

    Example:
        >>> tiny = BundleAutoencoder(2, channels=(8, 8), attention_levels=(False, False), num_res_blocks=1,
        ...     norm_num_groups=4, latent_channels=4)
        >>> mean, deviation = tiny.encode(torch.zeros(1, 1, 32, 32))
        >>> tuple(mean.shape), tuple(tiny.decode(mean).shape)
        ((1, 4, 8, 8), (1, 1, 32, 32))
    """

    latent_shift: Tensor
    latent_scale: Tensor

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        latent_channels: int = 4,
        pixel_unshuffle: int = 2,
        **kwargs: Any,
    ) -> None:
        if pixel_unshuffle > 1 and spatial_dims != 2:
            raise ValueError(f"pixel_unshuffle={pixel_unshuffle} is for images; give pixel_unshuffle=1 for volumes.")
        factor = pixel_unshuffle**2
        channels: dict[str, Any] = {"in_channels": in_channels * factor, "out_channels": out_channels * factor}
        super().__init__(spatial_dims, **channels, latent_channels=latent_channels, **kwargs)
        self.pixel_unshuffle = pixel_unshuffle
        self.register_buffer("latent_shift", torch.zeros(latent_channels))
        self.register_buffer("latent_scale", torch.ones(latent_channels))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents, neither shifted nor scaled.

        Args:
            x: image (B, C, *spatial) in [-1, 1].
        """
        if self.pixel_unshuffle > 1:
            x = functional.pixel_unshuffle(x, self.pixel_unshuffle)
        return super().encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images (B, C, *spatial) of latents as `encode` returns them."""
        image = super().decode(z)
        return functional.pixel_shuffle(image, self.pixel_unshuffle) if self.pixel_unshuffle > 1 else image
