# SPDX-License-Identifier: Apache-2.0
"""A denoiser together with the text encoder that was trained with it: one network, one file of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medcf.networks.text_encoder import TextEncoder

__all__ = ["PromptUNet"]


class PromptUNet(nn.Module):
    """A U-Net with cross-attention that reads prompts, because it holds their text encoder.

    Average, checkpoint, export and distributed training treat both as one network. In training the context is token
    ids, so that the gradient reaches the text encoder; in inference it is the embedding, computed once per prompt by
    ``text_encoder.embed``.

    Args:
        unet: MONAI's `DiffusionModelUNet` or any network called as ``unet(x, timesteps=, context=)``, whose
            ``cross_attention_dim`` is the text encoder's ``num_features``.
        text_encoder: the text encoder.
    """

    with_conditioning = True

    def __init__(self, unet: nn.Module, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    @property
    def num_class_embeds(self) -> int | None:
        """Number of classes that the U-Net knows beside its prompts; None if it knows none."""
        return getattr(self.unet, "num_class_embeds", None)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        **residuals: Any,
    ) -> Tensor:
        """Predict whatever the scheduler's ``prediction_type`` specifies.

        Args:
            x: noisy samples (B, C, *spatial).
            timesteps: (B,); None means 0.
            context: token ids (B, tokens), integers, or embedded prompts (B, tokens, features); None means the null
                prompt "".
            class_labels: (B,) integers, for a U-Net that also knows classes.
            **residuals: further arguments of the U-Net, such as residuals of ControlNets.

        Returns:
            Prediction (B, out_channels, *spatial).
        """
        if timesteps is None:
            timesteps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if context is None:
            context = self.text_encoder.tokenize([""] * len(x))
        if not context.is_floating_point():
            context = self.text_encoder(context)
        classes = {} if class_labels is None else {"class_labels": class_labels}
        prediction: Tensor = self.unet(x, timesteps=timesteps, context=context, **classes, **residuals)
        return prediction
