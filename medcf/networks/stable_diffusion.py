# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion's U-Net and autoencoder, from diffusers, called like MONAI's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["StableDiffusionAutoencoder", "StableDiffusionUNet"]


class StableDiffusionUNet(nn.Module):
    """diffusers' ``UNet2DConditionModel``, called as ``network(x, timesteps=, context=)`` and returning a tensor.

    Args:
        unet: the U-Net, whose input has as many channels as the latents.

    Raises:
        ValueError: if it takes more than noisy latents, such as the U-Net of an inpainting model.
    """

    with_conditioning = True

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        config: Any = unet.config
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"The U-Net takes {config.in_channels} channels and predicts {config.out_channels}: it needs more than "
                "noisy latents, as for inpainting. Give a text-to-image checkpoint."
            )
        self.unet = unet
        self.in_channels, self.out_channels = int(config.in_channels), int(config.out_channels)
        self.cross_attention_dim = int(config.cross_attention_dim)
        self.num_class_embeds: int | None = config.num_class_embeds

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        **residuals: Any,
    ) -> Tensor:
        """Predict what the scheduler's ``prediction_type`` specifies, ε for Stable Diffusion 1.

        Args:
            x: noisy latents (B, C, H, W).
            timesteps: (B,); None means 0.
            context: embedded prompts (B, tokens, cross_attention_dim).
            class_labels: (B,) integers, for a U-Net that also knows classes.
            **residuals: residuals of ControlNets, by the names that MONAI and diffusers share.

        Returns:
            Prediction (B, C, H, W).
        """
        if timesteps is None:
            timesteps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        options = {"class_labels": class_labels, "return_dict": False, **residuals}
        prediction: Tensor = self.unet(x, timesteps, context, **options)[0]
        return prediction


class StableDiffusionAutoencoder(nn.Module):
    """diffusers' ``AutoencoderKL`` with MONAI's ``encode`` and ``decode``; in eval mode, without gradients of weights.

    The buffers ``latent_shift`` and ``latent_scale`` make its latents unit normal: ``(latent - shift) * scale``.

    Args:
        vae: the autoencoder.
        image_channels: channels of the images to decode to. One channel is given to the autoencoder as three equal ones
            and is the mean of its three; both are differentiable.

    Raises:
        ValueError: if the autoencoder has neither that number of channels, nor are they one.
    """

    def __init__(self, vae: nn.Module, image_channels: int = 1) -> None:
        super().__init__()
        self.in_channels = int(vae.config.in_channels)  # type: ignore[union-attr, arg-type]
        if image_channels not in (1, self.in_channels):
            raise ValueError(f"image_channels={image_channels}: the autoencoder takes 1 or {self.in_channels}.")
        self.vae = vae.eval().requires_grad_(False)
        self.image_channels = image_channels
        self.register_buffer("latent_shift", torch.tensor(vae.config.shift_factor or 0.0))  # type: ignore[union-attr]
        self.register_buffer("latent_scale", torch.tensor(vae.config.scaling_factor))  # type: ignore[union-attr]

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents of images (B, 1 or 3, H, W) in [-1, 1]."""
        if image.shape[1] == 1:
            image = image.expand(-1, self.in_channels, *image.shape[2:])
        posterior: Any = self.vae.encode(image).latent_dist  # type: ignore[operator]
        return posterior.mean, posterior.std

    def decode(self, latent: Tensor) -> Tensor:
        """Return the images (B, image_channels, H, W) of latents."""
        image: Tensor = self.vae.decode(latent, return_dict=False)[0]  # type: ignore[operator]
        return image if self.image_channels > 1 else image.mean(1, keepdim=True)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction of images, and mean and standard deviation of their latents, like MONAI's."""
        mean, deviation = self.encode(image)
        return self.decode(mean), mean, deviation
