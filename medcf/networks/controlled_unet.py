# SPDX-License-Identifier: Apache-2.0
"""A denoiser that follows a mask of each image through MONAI's ControlNet (Zhang et al. 2023, arXiv 2302.05543)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ControlNet
from torch import Tensor, nn

from medcf.runtime.weights import load_weights

__all__ = ["ControlledUNet", "StructureMask", "with_control"]


class ControlledUNet(nn.Module):
    """A U-Net and the ControlNet that adds to its skip connections what it reads from a mask.

    The ControlNet starts as a copy of the U-Net's encoder behind convolutions of 0, so nothing changes until it is
    trained. Without ``control`` the U-Net runs alone. It fits into `PromptUNet`, which passes ``control`` on.

    Args:
        unet: MONAI's `DiffusionModelUNet`, or one that calls and names its parts alike.
        controlnet: MONAI's `ControlNet` of the same shape. Its ``conditioning_embedding_num_channels`` halve the mask
            once for each number beyond the first: one number for pixels, three for latents of a quarter of the side.
        scale: factor of what the ControlNet adds.
        train_unet: whether the U-Net is trained, too; by default only the ControlNet is, as in the paper.

    Raises:
        ValueError: if the ControlNet has another shape than the U-Net.
    """

    def __init__(self, unet: nn.Module, controlnet: ControlNet, scale: float = 1.0, train_unet: bool = False) -> None:
        super().__init__()
        own, known = controlnet.state_dict(), unet.state_dict()
        shared = {name: value for name, value in known.items() if name in own}
        other = [name for name, value in shared.items() if own[name].shape != value.shape]
        if not shared or other:
            first = f"{other[0]} differs" if other else "no parameter has the same name"
            raise ValueError(
                f"The ControlNet has another shape than the U-Net ({first}): give both the same channels, "
                "num_res_blocks, attention_levels, num_head_channels and conditioning."
            )
        controlnet.load_state_dict(shared, strict=False)
        self.unet = unet.requires_grad_(train_unet)
        self.controlnet = controlnet
        self.scale = scale
        self.in_channels = getattr(unet, "in_channels", None)
        self.num_class_embeds = getattr(unet, "num_class_embeds", None)
        self.with_conditioning = getattr(unet, "with_conditioning", False)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        control: Tensor | None = None,
    ) -> Tensor:
        """Predict whatever the scheduler's ``prediction_type`` specifies.

        Args:
            x: noisy samples (B, C, *spatial).
            timesteps: (B,); None means 0.
            context: (B, tokens, features), for a network with cross-attention.
            class_labels: (B,) integers, for a network with classes.
            control: what the ControlNet follows (B, channels, *spatial of the image), such as a mask in [0, 1].

        Returns:
            Prediction (B, out_channels, *spatial).
        """
        if timesteps is None:
            timesteps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        given = {"context": context, "class_labels": class_labels}
        if control is not None:
            down, middle = self.controlnet(x, timesteps, control.to(x.dtype), self.scale, **given)
            given |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        prediction: Tensor = self.unet(x, timesteps=timesteps, **given)
        return prediction


class StructureMask(nn.Module):
    """The mask of structures that a segmenter sees in an image, to be followed by a ControlNet.

    Args:
        segmenter: images (B, C, *spatial) to logits of structures (B, K, *spatial), background first.
        structures: indices of those that make up the mask; None means all but the background.
    """

    def __init__(self, segmenter: Callable[[Tensor], Tensor], structures: Sequence[int] | None = None) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.structures = structures

    def forward(self, image: Tensor) -> Tensor:
        """Return the mask (B, 1, *spatial), 0 or 1."""
        found = self.segmenter(image).argmax(1, keepdim=True)
        if self.structures is None:
            return (found > 0).to(image.dtype)
        return torch.isin(found, torch.tensor(self.structures, device=image.device)).to(image.dtype)


def with_control(network: Any, controlnet: ControlNet, weights: str | Path | None = None, scale: float = 1.0) -> Any:
    """Let the U-Net of a `PromptUNet` follow a mask.

    Args:
        network: with its trained weights, which stay as they are.
        controlnet: of the same shape as its U-Net.
        weights: what a training of the ControlNet exported; None for a new training, which alone it can be used for.
        scale: factor of what the ControlNet adds.

    Returns:
        The same network.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file or the ControlNet does not fit.
    """
    network.requires_grad_(False)
    network.unet = ControlledUNet(network.unet, controlnet, scale)
    if weights is not None:
        remedy = "Train it with train_control.json over train.json."
        load_weights(network.unet.controlnet, weights, remedy=remedy)
    return network
