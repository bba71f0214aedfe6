# SPDX-License-Identifier: Apache-2.0
"""Training of an autoencoder on MONAI's `AdversarialTrainer`: forward pass, losses, and the scale of its latents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn
from torch.nn import functional

from medcf.networks.denoiser import unwrap
from medcf.training.inferer import AutocastInferer

__all__ = ["AutoencoderInferer", "AutoencoderLoss", "MeasureLatents", "PatchLoss", "latent_statistics"]

logger = logging.getLogger(__name__)

Posterior = tuple[Tensor, Tensor]


class AutoencoderInferer(AutocastInferer):
    """The reconstruction alone, from sampled latents in training and from their mean in validation.

    Mean and standard deviation of the latents stay here, in ``posterior``, until the loss reads them: MONAI's trainer
    shows the same tensor to the discriminator and to the reconstruction loss.

    Args:
        amp_dtype: see `AutocastInferer`.
    """

    posterior: Posterior | None = None

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return the reconstructions (B, C, *spatial) in float32; anything but an autoencoder is called as it is."""
        own = unwrap(network)
        if not hasattr(own, "reconstruct"):
            return super().__call__(inputs, network, *args, **kwargs)
        if not own.training:
            return super().__call__(inputs, own.reconstruct).float()
        image, mean, deviation = super().__call__(inputs, network)
        self.posterior = (mean.float(), deviation.float())
        return image.float()


class AutoencoderLoss(nn.Module):
    """mean |error| + a mean error² + b KL + c perceptual, the reconstruction loss of latent diffusion.

    KL is the divergence of the latents' posterior from a unit normal, summed over an image's latents (Rombach et al.
    2022, arXiv 2112.10752, section 3.1). The perceptual part is the mean squared difference of features.

    Args:
        inferer: the training's inferer, which keeps the posterior.
        mse_weight: a.
        kl_weight: b.
        features: images (B, C, *spatial) to a list of activations, such as `medcf.guidance.PerceptualFeatures` of one's
            own classifier; None for no perceptual part.
        perceptual_weight: c, of each activation's mean.
    """

    def __init__(
        self,
        inferer: AutoencoderInferer,
        mse_weight: float = 4.0,
        kl_weight: float = 1e-6,
        features: Callable[[Tensor], Sequence[Tensor]] | None = None,
        perceptual_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.mse_weight = mse_weight
        self.kl_weight = kl_weight
        self.features = None if perceptual_weight == 0 else features
        self.perceptual_weight = perceptual_weight
        if isinstance(self.features, nn.Module):
            self.features.eval().requires_grad_(False)

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Compute the loss of reconstructions (B, C, *spatial), right after the inferer made them.

        Raises:
            RuntimeError: if the inferer made no reconstruction before.
        """
        if self.inferer.posterior is None:
            raise RuntimeError("AutoencoderLoss reads the posterior of its inferer: give the trainer the same inferer.")
        mean, deviation = self.inferer.posterior
        divergence = 0.5 * (mean**2 + deviation**2 - 1 - 2 * deviation.log()).flatten(1).sum(1).mean()
        loss = functional.l1_loss(reconstruction, image) + self.kl_weight * divergence
        loss = loss + self.mse_weight * functional.mse_loss(reconstruction, image)
        if self.features is not None:
            with torch.no_grad():
                own = self.features(image)
            pairs = zip(self.features(reconstruction), own, strict=True)
            loss = loss + self.perceptual_weight * torch.stack([functional.mse_loss(*pair) for pair in pairs]).sum()
        return loss


class PatchLoss:
    """MONAI's `PatchAdversarialLoss` for a `PatchDiscriminator`, whose last output holds the logits.

    Args:
        weight: weight of the generator's part.
        criterion: see MONAI.
    """

    def __init__(self, weight: float = 0.01, criterion: str = "least_squares") -> None:
        self.weight = weight
        self.loss = PatchAdversarialLoss(criterion=criterion)

    def generator(self, fake: Sequence[Tensor]) -> Tensor:
        """Return the weighted loss of reconstructions that are recognized as such."""
        return self.weight * self._part(fake, real=True, discriminator=False)

    def discriminator(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
        """Return the mean loss of taking images for reconstructions, or the other way around."""
        parts = (self._part(real, real=True, discriminator=True), self._part(fake, real=False, discriminator=True))
        return 0.5 * (parts[0] + parts[1])

    def _part(self, outputs: Sequence[Tensor], *, real: bool, discriminator: bool) -> Tensor:
        return torch.as_tensor(self.loss(outputs[-1], target_is_real=real, for_discriminator=discriminator))


class MeasureLatents:
    """Measure mean and spread of the latents when the training is complete, for `BundleAutoencoder`'s buffers.

    Place it before the export of the weights, so that they are stored with them.

    Args:
        network: the autoencoder whose weights are exported.
        dataset: dataset of the training images.
        num_images: number of images, spread evenly over the dataset.
        batch_size: images per call.
    """

    def __init__(self, network: nn.Module, dataset: Any, num_images: int = 1000, batch_size: int = 32) -> None:
        self.network = network
        self.dataset = dataset
        self.num_images = num_images
        self.batch_size = batch_size

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Measure and set the buffers."""
        network = unwrap(self.network)
        count = min(self.num_images, len(self.dataset))
        chosen = np.linspace(0, len(self.dataset) - 1, count).round().astype(int)
        batches = (
            torch.stack([torch.as_tensor(self.dataset[int(i)]["image"]).as_subclass(Tensor) for i in indices])
            for indices in np.array_split(chosen, -(-count // self.batch_size))
        )
        shift, scale = latent_statistics(network, batches)
        network.latent_shift.copy_(shift)
        network.latent_scale.copy_(scale)
        logger.info("Latents of %d images: shift %s, scale %s.", count, shift.tolist(), scale.tolist())


@torch.no_grad()
def latent_statistics(network: nn.Module, batches: Any) -> tuple[Tensor, Tensor]:
    """Return shift and scale per channel with which latents have mean 0 and variance 1.

    Args:
        network: autoencoder with MONAI's ``encode``; the means of its posteriors are measured.
        batches: images (B, C, *spatial).
    """
    device, training = next(network.parameters()).device, network.training
    network.eval()
    found = torch.cat([network.encode(images.to(device))[0].double().flatten(2) for images in batches])  # type: ignore[operator]
    network.train(training)
    deviation, mean = torch.std_mean(found, dim=(0, 2), correction=0)
    return mean.float(), (1 / deviation).float()
