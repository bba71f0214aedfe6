# SPDX-License-Identifier: Apache-2.0
"""The best linear denoiser of images, which a trained network must beat."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from sklearn.decomposition import PCA
from torch import Tensor

__all__ = ["GaussianBound"]


@dataclass(frozen=True)
class GaussianBound:
    """The posterior mean of a clean image if images were Gaussian (probabilistic PCA, Tipping and Bishop 1999).

    With A the cumulative alpha of a timestep, x_t = √A x + √(1 - A) ε, mean m and variance λ along a direction, the
    estimate along that direction is m + √A λ / (A λ + 1 - A) (x_t - √A m), the linear one with the least mean squared
    error.

    Attributes:
        mean: m, (D,) for images with D pixels or voxels.
        components: the leading principal components (K, D).
        variances: their variances (K,).
        rest: variance along each of the other D - K directions.
        num_images: number of images it was fitted to.
    """

    mean: Tensor
    components: Tensor
    variances: Tensor
    rest: float
    num_images: int

    @classmethod
    def fit(cls, images: Tensor, num_components: int = 60, seed: int = 0) -> GaussianBound:
        """Fit mean and variances.

        Args:
            images: (N, *shape), 2D or 3D; overwritten, so that volumes are not held in memory twice.
            num_components: K, at most N - 1 and at most D.
            seed: seed of the randomized decomposition.

        Raises:
            ValueError: if there are fewer than two images.
        """
        count = len(images)
        if count < 2:
            raise ValueError(f"The Gaussian bound needs at least 2 training images, not {count}.")
        flat = images.flatten(1).float()
        total = float(flat.var(0).double().sum())
        kept = min(num_components, count - 1, flat.shape[1])
        pca = PCA(kept, copy=False, svd_solver="randomized", random_state=seed).fit(flat.numpy())
        mean, components, variances = (
            torch.as_tensor(each) for each in (pca.mean_, pca.components_, pca.explained_variance_)
        )
        others = flat.shape[1] - kept
        rest = max(total - float(variances.double().sum()), 0.0) / others if others else 0.0
        return cls(mean, components, variances, rest, count)

    def to(self, device: torch.device | str) -> GaussianBound:
        """Return a copy on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("mean", "components", "variances")}
        return replace(self, **moved)

    def __call__(self, noisy: Tensor, alpha_bar: float) -> Tensor:
        """Estimate the clean images.

        Args:
            noisy: (B, *shape), noisy images.
            alpha_bar: A of their timestep.

        Returns:
            The estimates (B, *shape), not clipped.
        """
        signal, spread = alpha_bar**0.5, 1 - alpha_bar
        residual = noisy.flatten(1).float() - signal * self.mean
        along = residual @ self.components.T
        rest_gain = signal * self.rest / (alpha_bar * self.rest + spread)
        gains = signal * self.variances / (alpha_bar * self.variances + spread)
        estimate = self.mean + rest_gain * residual + (along * (gains - rest_gain)) @ self.components
        return estimate.reshape(noisy.shape)
