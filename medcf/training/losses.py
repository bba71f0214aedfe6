# SPDX-License-Identifier: Apache-2.0
"""Losses for denoisers with a learned variance, for the oracle, and for the network that recognizes subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from monai.utils import unsqueeze_right
from torch import nn
from torch.nn import functional

from medcf.schedulers import RespacedDDPMScheduler, RespacedScheduler

__all__ = ["ConceptBottleneckLoss", "HybridLoss", "IdentityLoss", "learns_variance"]


def learns_variance(scheduler: RespacedScheduler) -> bool:
    """Return whether the scheduler reads the variance from the network, as a position between two bounds."""
    return isinstance(scheduler, RespacedDDPMScheduler) and str(scheduler.variance_type) == "learned_range"


class HybridLoss(nn.Module):
    """The squared error plus a part of the variational bound, which trains the variance of ``learned_range``.

    Loss of Nichol & Dhariwal 2021 (arXiv 2102.09672, eq. 16), with T timesteps drawn uniformly::

        mean (output - target)² + vlb_weight T L_t

    L_t is the KL divergence from the true posterior q(x_{t-1} | x_t, x0) to the model's step (ibid., eq. 6), and, at
    timestep 0, minus the log-likelihood of the image; both are in bits per pixel. L_t trains the variance only: the
    model's mean is detached in it. The network has 2C outputs, whose second half is the position v of log Σ between
    log σ² (-1) and log β̃ (1), as ``RespacedDDPMScheduler`` reads it.

    Args:
        scheduler: the training's scheduler, with ``variance_type`` "learned_range" and all timesteps kept.
        vlb_weight: weight of the bound; 0.001 in the paper.
        bin_width: width of the bins into which gray values are rounded, for the likelihood at timestep 0: 2 / 255 for
            images of 8 bits in [-1, 1], where the first and last bins are open (Ho et al. 2020, arXiv 2006.11239, eq.
            13). None uses the density, for latents and other data that are not rounded.

    Raises:
        ValueError: if the scheduler learns no variance range or lacks timesteps.
    """

    def __init__(
        self, scheduler: RespacedDDPMScheduler, vlb_weight: float = 0.001, bin_width: float | None = 2 / 255
    ) -> None:
        super().__init__()
        if not learns_variance(scheduler):
            raise ValueError('HybridLoss trains a variance: give its scheduler `variance_type` "learned_range".')
        if len(scheduler.kept) < scheduler.num_train_timesteps:
            raise ValueError(
                f"HybridLoss needs every timestep, but {len(scheduler.kept)} of {scheduler.num_train_timesteps} are "
                f"kept: call set_timesteps({scheduler.num_train_timesteps})."
            )
        self.scale = vlb_weight * scheduler.num_train_timesteps
        self.bin_width = bin_width
        rows = [(*scheduler.variance_range(t), self._reach(scheduler, t)) for t in scheduler.kept]
        low, high, reach = torch.tensor(rows, dtype=torch.float64).unbind(1)
        self.table = torch.stack([low.log(), high.log(), reach])

    @staticmethod
    def _reach(scheduler: RespacedDDPMScheduler, timestep: int) -> float:
        """Return how far an error of 1 in the network's output moves the model's mean from the true posterior's."""
        a, p = scheduler.alpha_bar(timestep), scheduler.alpha_bar_prev(timestep)
        of_clean_image = math.sqrt(p) * (1 - a / p) / (1 - a)
        kind = str(scheduler.prediction_type)
        if kind == "sample":
            return of_clean_image
        return -math.sqrt(1 - a) * of_clean_image / (math.sqrt(a) if kind == "epsilon" else 1.0)

    def variational_bound(self, prediction: torch.Tensor, target: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute L_t with the model's mean detached.

        Args:
            prediction: (B, 2C, *spatial), the network's output.
            target: see :meth:`forward`.

        Returns:
            (B,) bits per pixel.
        """
        output, position = prediction.chunk(2, dim=1)
        t = target["timesteps"].to(prediction.device)
        table = self.table.to(prediction.device, prediction.dtype)
        low, high, reach = (unsqueeze_right(row[t], prediction.ndim) for row in table)
        fraction = (position + 1) / 2
        log_variance = fraction * high + (1 - fraction) * low
        error = (reach * (output - target["output"])).detach()
        # Both halves of `where` are finite everywhere: at timestep 0 `low` is a substitute, and its divergence unused.
        divergence = 0.5 * (log_variance - low - 1 + (low - log_variance).exp() + error**2 * (-log_variance).exp())
        likelihood = self._log_likelihood(target["original"], error, log_variance)
        terms = torch.where(unsqueeze_right(t, prediction.ndim) == 0, -likelihood, divergence)
        return terms.flatten(1).mean(1) / math.log(2)

    def _log_likelihood(self, original: torch.Tensor, error: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """Return log p(x0 | x_1) for a mean that is off by ``error``, of the bin of x0 or the density at x0."""
        if self.bin_width is None:
            return -0.5 * (math.log(2 * math.pi) + log_variance + error**2 * (-log_variance).exp())
        inverse_std, half = (-0.5 * log_variance).exp(), self.bin_width / 2
        above, below = (half - error) * inverse_std, (-half - error) * inverse_std
        inner = (torch.special.ndtr(above) - torch.special.ndtr(below)).clamp_min(1e-12).log()
        first, last = original < -0.999, original > 0.999
        inner = torch.where(first, torch.special.log_ndtr(above), inner)
        return torch.where(last, torch.special.log_ndtr(-below), inner)

    def forward(self, prediction: torch.Tensor, target: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss.

        Args:
            prediction: (B, 2C, *spatial), the network's output.
            target: ``output`` (B, C, *spatial), what the first half should be, ``original`` (B, C, *spatial), the clean
                images, and ``timesteps`` (B,), as prepared by `medcf.training.ClassConditionalPrepareBatch`.

        Returns:
            A scalar.

        Raises:
            ValueError: if the network has no channels for the variance.
        """
        channels = target["output"].shape[1]
        if prediction.shape[1] != 2 * channels:
            raise ValueError(
                f"The network returned {prediction.shape[1]} channels; a learned variance needs {2 * channels} "
                f"(`out_channels`)."
            )
        error = functional.mse_loss(prediction[:, :channels], target["output"])
        return error + self.scale * self.variational_bound(prediction, target).mean()


class ConceptBottleneckLoss(nn.Module):
    """Dice and cross-entropy for the segmentation, plus squared errors for concepts and quality.

    Args:
        segmentation_weight: weight of the segmentation term.
        concept_weight: weight of the concepts' mean squared error.
        quality_weight: weight of the quality's mean squared error.
    """

    def __init__(
        self, segmentation_weight: float = 0.5, concept_weight: float = 5.0, quality_weight: float = 5.0
    ) -> None:
        super().__init__()
        self.segmentation = DiceCELoss(to_onehot_y=True, softmax=True)
        self.weights = (segmentation_weight, concept_weight, quality_weight)

    def forward(self, prediction: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss.

        Args:
            prediction: output of `medcf.networks.ConceptBottleneck`.
            target: ``segmentation`` (B, 1, *spatial) integers, ``concepts`` (B, K), ``quality`` (B,).

        Returns:
            A scalar.
        """
        terms = (
            self.segmentation(prediction["segmentation"], target["segmentation"]),
            functional.mse_loss(prediction["concepts"], target["concepts"].float()),
            functional.mse_loss(prediction["quality"], target["quality"].float()),
        )
        return torch.stack([weight * term for weight, term in zip(self.weights, terms, strict=True)]).sum()


class IdentityLoss(nn.Module):
    """SimCLR's contrastive loss on the embeddings, plus smooth L1 on the parameters in units of their spread.

    Args:
        std: (P,) population standard deviation of the parameters; empty for a network without parameters.
        temperature: temperature of the contrastive loss.
        parameter_weight: weight of the parameter term.
    """

    def __init__(self, std: Sequence[float] = (), temperature: float = 0.1, parameter_weight: float = 5.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.parameter_weight = parameter_weight
        self.std = torch.as_tensor(std).float()

    def forward(self, prediction: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            prediction: output of `medcf.networks.identity.IdentityNetwork` for 2B images; images i and i + B show the
                same subject.
            target: (2B, P) parameters in physical units.

        Returns:
            A scalar.
        """
        contrastive = self._contrastive(prediction["embedding"])
        if not len(self.std):
            return contrastive
        std = self.std.to(target.device)
        error = functional.smooth_l1_loss(prediction["parameters"] / std, target / std)
        return contrastive + self.parameter_weight * error

    def _contrastive(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Compute what MONAI's ContrastiveLoss does, by a product of matrices: that one holds (2B)² x E values."""
        unit = functional.normalize(embeddings.float(), dim=1)
        logits = (unit @ unit.T / self.temperature).fill_diagonal_(-torch.inf)
        partners = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
        return functional.cross_entropy(logits, partners)
