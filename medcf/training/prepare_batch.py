# SPDX-License-Identifier: Apache-2.0
"""Turns a loader's batch into inputs for a network and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.engines import DiffusionPrepareBatch, PrepareBatch
from monai.utils import CommonKeys

from medcf.schedulers import RespacedScheduler, kept_timesteps
from medcf.training.losses import learns_variance

__all__ = [
    "ClassConditionalPrepareBatch",
    "NoisePrepareBatch",
    "NoisyLabelPrepareBatch",
    "PairPrepareBatch",
    "TargetPrepareBatch",
]

Batch = dict[str, torch.Tensor]
Device = str | torch.device | None


class NoisePrepareBatch(DiffusionPrepareBatch):
    """Noise, timesteps and the target that the scheduler's ``prediction_type`` asks for.

    Args:
        scheduler: noise scheduler with MONAI's ``get_velocity``; timesteps are drawn from its ``num_train_timesteps``.
            Its ``prediction_type`` determines the target: the noise ("epsilon"), the image ("sample"), or
            "v_prediction" (Salimans and Ho 2022, v = sqrt(A) noise - sqrt(1 - A) x). If its ``variance_type`` is
            "learned_range", the target is a dictionary for `medcf.training.losses.HybridLoss`.
        timestep_power: timesteps are ``floor(T u ** power)`` for uniform u. 1 is the uniform distribution of the
            papers; above 1, small timesteps occur more often, those that a partially noised image passes through.
        matched_steps: train only on the timesteps that a chain with this number of steps visits, and sample with that
            number (Fast-DDPM, Jiang et al. 2024, arXiv 2405.14802); None trains on all of them.
    """

    def __init__(
        self, scheduler: RespacedScheduler, timestep_power: float = 1.0, matched_steps: int | None = None
    ) -> None:
        super().__init__(num_train_timesteps=scheduler.num_train_timesteps)
        self.scheduler = scheduler
        self.timestep_power = timestep_power
        total = scheduler.num_train_timesteps
        self.trained_steps = torch.tensor(kept_timesteps(total, matched_steps or total, scheduler.spacing))

    def get_timesteps(self, images: torch.Tensor) -> torch.Tensor:
        """Draw one timestep per image, stratified: one from each of B equal parts of the range."""
        count = images.shape[0]
        uniform = (torch.rand(count, dtype=torch.float64) + torch.randperm(count)) / count
        index = (len(self.trained_steps) * uniform**self.timestep_power).long()
        return self.trained_steps[index].to(images.device)

    def get_target(self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the network's target, made with the same noise as its input."""
        kind = str(self.scheduler.prediction_type)
        if kind == "v_prediction":
            return self.scheduler.get_velocity(images, noise, timesteps)
        return images if kind == "sample" else noise

    def __call__(
        self, batchdata: Batch, device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, Any, tuple, dict]:
        """Prepare a batch.

        Returns:
            Images, the target, no positional arguments, and ``noise`` and ``timesteps``. With a learned variance the
            target is a dictionary of ``output``, what the first half of the network's channels should be, ``original``,
            the images, and ``timesteps``.
        """
        target: Any
        images, target, args, arguments = super().__call__(batchdata, device, non_blocking, **kwargs)
        if learns_variance(self.scheduler):
            target = {"output": target, "original": images, "timesteps": arguments["timesteps"]}
        return images, target, args, arguments


class ClassConditionalPrepareBatch(NoisePrepareBatch):
    """Noise, timesteps, class labels and target.

    Part of the labels is replaced by the null class (classifier-free guidance): that branch is the unconditional model,
    the other the class-conditional model, in one network. For inferers that accept ``noise``, ``timesteps`` and
    ``class_labels``, such as `medcf.training.inferer.DiffusionTrainingInferer`.

    Args:
        scheduler: see `NoisePrepareBatch`.
        null_class: index of the null class, ``num_class_embeds - 1``.
        dropout: probability of the null class.
        timestep_power: see `NoisePrepareBatch`.
        matched_steps: see `NoisePrepareBatch`.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        scheduler: RespacedScheduler,
        null_class: int = 2,
        dropout: float = 0.5,
        timestep_power: float = 1.0,
        matched_steps: int | None = None,
    ) -> None:
        super().__init__(scheduler, timestep_power, matched_steps)
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout is {dropout}; it must be a probability.")
        self.null_class = null_class
        self.dropout = dropout

    def get_class_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Replace a random part of ``labels`` (B,) by the null class."""
        dropped = torch.rand(labels.shape, device=labels.device) < self.dropout
        return labels.masked_fill(dropped, self.null_class)

    def __call__(
        self, batchdata: Batch, device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, Any, tuple, dict]:
        """Prepare a batch.

        Returns:
            What `NoisePrepareBatch` returns, and ``class_labels`` (B,), integers.
        """
        images, target, args, arguments = super().__call__(batchdata, device, non_blocking, **kwargs)
        labels = batchdata[CommonKeys.LABEL].to(device=images.device, non_blocking=non_blocking).long()
        return images, target, args, {**arguments, "class_labels": self.get_class_labels(labels)}


class NoisyLabelPrepareBatch(NoisePrepareBatch):
    """Noisy images, their timesteps and labels: how a classifier that is to guide a diffusion model is trained.

    Args:
        scheduler, timestep_power, matched_steps: see `NoisePrepareBatch`.
    """

    def __call__(
        self, batchdata: Batch, device: Device = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, Any, tuple, dict]:
        """Prepare a batch.

        Returns:
            Noisy images (B, C, *spatial), labels (B,), and ``timesteps`` (B,).
        """
        images, _, args, arguments = super().__call__(batchdata, device, non_blocking, **kwargs)
        timesteps = arguments["timesteps"]
        noisy = self.scheduler.add_noise(images, arguments["noise"], timesteps)
        labels = batchdata[CommonKeys.LABEL].to(device=images.device, non_blocking=non_blocking).long()
        return noisy, labels, args, {"timesteps": timesteps}


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
        """Prepare images (2B, C, *spatial) and parameters (2B, P) on ``device``; without parameters P is 0."""
        images = torch.cat([batchdata[key] for key in (CommonKeys.IMAGE, self.pair_key)])
        target = batchdata.get("parameters", images.new_empty(len(images) // 2, 0)).repeat(2, 1)
        options: dict[str, Any] = {"device": device, "non_blocking": non_blocking, **kwargs}
        return images.to(**options), target.to(**options)
