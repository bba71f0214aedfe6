# SPDX-License-Identifier: Apache-2.0
"""The denoising U-Net as exposed by a bundle: callable with only an image."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor

__all__ = ["BundleUNet"]


class BundleUNet(DiffusionModelUNet):
    """MONAI's `DiffusionModelUNet` with optional timesteps and class labels; its state dict is MONAI's own.

    MONAI's bundle tools (``verify_net_in_out``, ``ckpt_export --use_trace true``) call a network with one tensor, but
    MONAI's network requires timesteps. Here they default to 0, and the class defaults to the last embedding, by
    convention the null class in this project.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        out_channels: channels of the prediction.
        kwargs: all further arguments of `DiffusionModelUNet`.
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        **residuals: Any,
    ) -> Tensor:
        """Predict whatever the scheduler's ``prediction_type`` specifies.

        Args:
            x: image (B, C, *spatial), each side divisible by 2 ** (levels - 1).
            timesteps: (B,); None means 0.
            context: (B, tokens, features), for networks with cross-attention.
            class_labels: (B,) integers; None means the null class, ``num_class_embeds - 1``.
            **residuals: residuals of ControlNets, as in MONAI.

        Returns:
            Prediction (B, out_channels, *spatial).
        """
        if timesteps is None:
            timesteps = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        if class_labels is None and self.num_class_embeds is not None:
            class_labels = torch.full_like(timesteps, self.num_class_embeds - 1, dtype=torch.long)
        return super().forward(x, timesteps, context, class_labels, **residuals)
