# SPDX-License-Identifier: Apache-2.0
"""Classifier guidance: a classifier of noisy images pulls a diffusion model's samples toward a class."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from medcf.sampling import Hook
from medcf.schedulers import Step

__all__ = ["NoisyClassifierGradient"]


class NoisyClassifierGradient(Hook):
    """Moves each step up the gradient of log p(class | noisy image), times a scale.

    The classifier has seen images at every noise level, so it needs no estimate of the clean image, and the denoiser is
    not differentiated. With scale 1 and exact networks the samples are those of the class; more is sharper than that.
    Source: Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", NeurIPS 2021, algorithms 1 and 2.

    Args:
        classifier: noisy images (B, C, *spatial) and timesteps (B,) to logits (B, K), such as MONAI's
            ``DiffusionModelEncoder`` (a half U-Net).
        labels: class of each image (B,).
        scale: 0 or more.

    Raises:
        ValueError: if the scale is negative or no number.
    """

    def __init__(self, classifier: Callable[[Tensor, Tensor], Tensor], labels: Tensor, scale: float = 1.0) -> None:
        if not 0 <= scale < math.inf:
            raise ValueError(f"classifier_scale={scale:g}: use 0 or more.")
        self.classifier, self.labels, self.scale = classifier, labels, scale

    def on_step(self, step: Step) -> Step:
        """Return the step with its mean moved toward the class."""
        if self.scale == 0:
            return step
        with torch.enable_grad():
            noisy = step.sample.detach().requires_grad_()
            timesteps = torch.full((len(noisy),), step.timestep, device=noisy.device, dtype=torch.long)
            logits = self.classifier(noisy, timesteps).float()
            chosen = log_softmax(logits, dim=1).gather(1, self.labels[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, noisy)
        return step.guide(-self.scale * gradient)
