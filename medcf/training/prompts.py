# SPDX-License-Identifier: Apache-2.0
"""Training by prompts, in the latents of a frozen autoencoder: plain, or as DreamBooth with prior preservation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.utils import CommonKeys
from torch import Tensor, nn
from torch.nn import functional

from medcf.networks.text_encoder import TextEncoder
from medcf.sampling import PixelSpace, Space
from medcf.schedulers import RespacedScheduler
from medcf.training.prepare_batch import Device, NoisePrepareBatch

__all__ = ["DreamBoothPrepareBatch", "PriorPreservationLoss", "PromptPrepareBatch", "captions_of"]

Batch = Mapping[str, Any]
Prepared = tuple[Tensor, Any, tuple, dict]


class PromptPrepareBatch(NoisePrepareBatch):
    """Latents, noise, timesteps, token ids and target.

    Part of the captions is replaced by the null prompt "" (classifier-free guidance). The token ids are the
    ``condition`` of `medcf.training.inferer.DiffusionTrainingInferer`; the network embeds them
    (`medcf.networks.PromptUNet`), so that its text encoder is trained, too.

    Args:
        scheduler: see `NoisePrepareBatch`.
        text_encoder: tokenizes the captions.
        space: where the network works, usually a `LatentSpace`, whose autoencoder is frozen here; None is the pixels,
            or latents that are in the batch already.
        dropout: probability of the null prompt.
        class_prompts: prompts of the classes, by ``label``, for images without a ``caption``.
        timestep_power: see `NoisePrepareBatch`.
        matched_steps: see `NoisePrepareBatch`.

    Raises:
        ValueError: if ``dropout`` is no probability.
    """

    def __init__(
        self,
        scheduler: RespacedScheduler,
        text_encoder: TextEncoder,
        space: Space | None = None,
        dropout: float = 0.15,
        class_prompts: Sequence[str] = (),
        timestep_power: float = 1.0,
        matched_steps: int | None = None,
    ) -> None:
        super().__init__(scheduler, timestep_power, matched_steps)
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout is {dropout}; it must be a probability.")
        self.text_encoder = text_encoder
        self.space = PixelSpace() if space is None else space
        for network in self.space.networks:
            network.eval().requires_grad_(False)
        self.dropout = dropout
        self.class_prompts = tuple(class_prompts)

    def get_captions(self, batchdata: Batch) -> list[str]:
        """Return the captions of a batch.

        Raises:
            ValueError: if it has none, and not every class has a prompt.
        """
        if "caption" in batchdata:
            return [str(one) for one in batchdata["caption"]]
        labels = batchdata[CommonKeys.LABEL].tolist() if CommonKeys.LABEL in batchdata else []
        if not labels or max(labels) >= len(self.class_prompts):
            raise ValueError(
                f"The images have no captions, and there are {len(self.class_prompts)} prompts for their classes: fill "
                "the table's column 'caption', or give class_prompts, one per class."
            )
        return [self.class_prompts[label] for label in labels]

    def get_condition(self, captions: Sequence[str]) -> Tensor:
        """Return token ids (B, tokens), a random part of them those of the null prompt."""
        dropped = (torch.rand(len(captions)) < self.dropout).tolist()
        return self.text_encoder.tokenize(["" if drop else one for drop, one in zip(dropped, captions, strict=True)])

    def __call__(self, batchdata: Batch, device: Device = None, non_blocking: bool = False, **kwargs: Any) -> Prepared:
        """Prepare a batch with ``image`` (B, C, *spatial) in [-1, 1] and ``caption``, B texts, or ``label`` (B,).

        Returns:
            Latents, the target, no positional arguments, and ``noise``, ``timesteps`` and ``condition``.
        """
        image = batchdata[CommonKeys.IMAGE].to(device=device, non_blocking=non_blocking, **kwargs)
        with torch.no_grad():
            latent = self.space.encode(image)
        batch: dict[str, Tensor] = {str(CommonKeys.IMAGE): latent, str(CommonKeys.LABEL): latent}
        latents, target, args, arguments = super().__call__(batch, device, non_blocking, **kwargs)
        condition = self.get_condition(self.get_captions(batchdata)).to(latents.device)
        return latents, target, args, {**arguments, "condition": condition}


class DreamBoothPrepareBatch(PromptPrepareBatch):
    """A batch of two halves, [instances | priors], each with its own captions and stratified timesteps.

    With `PriorPreservationLoss` this is DreamBooth's training (Ruiz et al. 2023, arXiv 2208.12242, eq. 2). The random
    numbers of the instances are drawn first, so they are those of a training without priors.
    """

    def __call__(self, batchdata: Batch, device: Device = None, non_blocking: bool = False, **kwargs: Any) -> Prepared:
        """Prepare a batch of `medcf.training.dreambooth.DreamBoothDataset`.

        It holds ``image``, ``caption``, ``prior_image`` and ``prior_caption``.

        Returns:
            What `PromptPrepareBatch` returns, for 2B rows.
        """
        prior = {CommonKeys.IMAGE: batchdata["prior_image"], "caption": batchdata["prior_caption"]}
        latents, target, args, arguments = super().__call__(batchdata, device, non_blocking, **kwargs)
        others, other_target, _, more = super().__call__(prior, device, non_blocking, **kwargs)
        both = {name: torch.cat([value, more[name]]) for name, value in arguments.items()}
        return torch.cat([latents, others]), torch.cat([target, other_target]), args, both


class PriorPreservationLoss(nn.Module):
    """Mean squared error of the instances plus λ times that of the priors (DreamBooth, eq. 2).

    Args:
        weight: λ; 1 in the paper, 0 trains on the instances alone.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of 2B rows, [instances | priors].

        Raises:
            ValueError: if the rows cannot be halved.
        """
        if len(prediction) % 2:
            raise ValueError(f"A batch of {len(prediction)} rows has no halves; prepare it by DreamBoothPrepareBatch.")
        pairs = zip(prediction.chunk(2), target.chunk(2), strict=True)
        instance, prior = (functional.mse_loss(*pair) for pair in pairs)
        return instance + self.weight * prior


def captions_of(dataset: Any, class_prompts: Sequence[str] = ()) -> Iterator[str]:
    """Yield the captions of a dataset, as far as it has any, then the prompts of its classes."""
    for index in range(len(dataset)):
        item = dataset[index]
        if "caption" in item:
            yield str(item["caption"])
    yield from class_prompts
