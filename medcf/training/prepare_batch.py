# SPDX-License-Identifier: Apache-2.0
"""Turns a loader's batch into inputs for a network and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.engines import DiffusionPrepareBatch, PrepareBatch
from monai.utils import CommonKeys

__all__ = ["ClassConditionalPrepareBatch", "PairPrepareBatch", "TargetPrepareBatch"]

Batch = dict[str, torch.Tensor]
Device = str | torch.device | None


class ClassConditionalPrepareBatch(DiffusionPrepareBatch):
    """Noise, timesteps and class labels for training a denoiser.

    Part of the labels is replaced by the null class (classifier-free guidance): that branch is the unconditional model,
    the other the class-conditional model, in one network. For inferers that accept ``noise``, ``timesteps`` and
    ``class_labels``, such as `medcf.training.inferer.DiffusionTrainingInferer`.

    Args:
        num_train_timesteps: timesteps are drawn from 0 .. T - 1 with this T.
        null_class: index of the null class, ``num_class_embeds - 1``.
        dropout: probability of the null class.
        timestep_power: timesteps are ``floor(T u ** power)`` for uniform u. 1 is the uniform distribution of the
            papers; above 1, small timesteps occur more often, those that a partially noised image passes through.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        null_class: int = 2,
        dropout: float = 0.5,
        timestep_power: float = 1.0,
    ) -> None:
        super().__init__(num_train_timesteps=num_train_timesteps)
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout is {dropout}; it must be a probability.")
        self.null_class = null_class
        self.dropout = dropout
        self.timestep_power = timestep_power

    def get_timesteps(self, images: torch.Tensor) -> torch.Tensor:
        """Draw one timestep per image."""
        uniform = torch.rand(images.shape[0], device=images.device, dtype=torch.float64)
        return (self.num_train_timesteps * uniform**self.timestep_power).long()

    def get_class_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Replace a random part of ``labels`` (B,) by the null class."""
        dropped = torch.rand(labels.shape, device=labels.device) < self.dropout
        return labels.masked_fill(dropped, self.null_class)

    def __call__(
        self, batchdata: Batch, device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict]:
        """Prepare a batch.

        Returns:
            Images, the target (the noise), no positional arguments, and ``noise``, ``timesteps``, and ``class_labels``
            (B,), integers.
        """
        images, target, args, arguments = super().__call__(batchdata, device, non_blocking, **kwargs)
        labels = batchdata[CommonKeys.LABEL].to(device=images.device, non_blocking=non_blocking).long()
        return images, target, args, {**arguments, "class_labels": self.get_class_labels(labels)}


@dataclass(eq=False)
class TargetPrepareBatch(PrepareBatch):
    """Image and target for supervised training, by key.

    Args:
        target: key of the target; several keys give a dictionary of targets.
    """

    target: str | Sequence[str] = CommonKeys.LABEL

    def __call__(
        self, batchdata: Batch, device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        """Prepare a batch: the image and the target(s) on ``device``."""

        def moved(key: str) -> torch.Tensor:
            return batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)

        if isinstance(self.target, str):
            return moved(CommonKeys.IMAGE), moved(self.target)
        return moved(CommonKeys.IMAGE), {key: moved(key) for key in self.target}


@dataclass(eq=False)
class PairPrepareBatch(PrepareBatch):
    """The two images of every pair as one batch, all first images before all second ones, and their ``parameters``.

    Args:
        pair_key: key of the second image.
    """

    pair_key: str = "image_pair"

    def __call__(
        self, batchdata: Batch, device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prepare images (2B, C, *spatial) and parameters (2B, P) on ``device``."""
        images = torch.cat([batchdata[key] for key in (CommonKeys.IMAGE, self.pair_key)])
        target = batchdata["parameters"].repeat(2, 1)
        options: dict[str, Any] = {"device": device, "non_blocking": non_blocking, **kwargs}
        return images.to(**options), target.to(**options)
