# SPDX-License-Identifier: Apache-2.0
"""Training of the identity network: pairs of one subject, its loss and its validation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from ignite.metrics import EpochMetric
from monai.engines import PrepareBatch
from monai.inferers import SimpleInferer
from monai.losses import ContrastiveLoss
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import CommonKeys
from torch import nn
from torch.nn import functional

__all__ = ["AutocastInferer", "IdentityLoss", "PairPrepareBatch", "PairRecall", "ParameterFit", "RandVignetted"]


class AutocastInferer(SimpleInferer):
    """One call of the network in mixed precision, on any device (the ``amp`` of MONAI's trainer means CUDA only).

    Args:
        amp_dtype: ``"bfloat16"``, which needs no gradient scaler, or None for full precision.
    """

    def __init__(self, amp_dtype: str | None = "bfloat16") -> None:
        super().__init__()
        self.amp_dtype: torch.dtype | None = getattr(torch, amp_dtype) if amp_dtype else None

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        with torch.autocast(inputs.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            return super().__call__(inputs, network, *args, **kwargs)


class RandVignetted(MapTransform, RandomizableTransform):
    """Blacken the image outside a random ellipse, so that the sector's edges do not give the subject away.

    Without it the shape of the sector alone tells two scanners' subjects apart, and the head would not be looked at.

    Args:
        keys: images (C, *spatial) to change, all by the same ellipse.
        prob: probability of a change.
        radius: lowest and highest semi-axis, as a share of the image's half size; each axis draws its own.
        fill: value outside.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        prob: float = 0.7,
        radius: tuple[float, float] = (0.85, 1.15),
        fill: float = -1.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.radius = radius
        self.fill = fill

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the images of one item."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        spatial = item[self.keys[0]].shape[1:]
        radii = [self.R.uniform(*self.radius) for _ in spatial]
        axes = [torch.linspace(-1, 1, size) / radius for size, radius in zip(spatial, radii, strict=True)]
        outside = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0) > 1
        for key in self.keys:
            item[key] = torch.as_tensor(item[key]).masked_fill(outside, self.fill)
        return item


class PairPrepareBatch(PrepareBatch):
    """The two images of every pair as one batch, first all first ones, then all second ones.

    Args:
        pair_key: key of the second image.
        target_key: key of the parameters.
    """

    def __init__(self, pair_key: str = "image_pair", target_key: str = "parameters") -> None:
        self.keys = (CommonKeys.IMAGE, pair_key)
        self.target_key = target_key

    def __call__(
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prepare images (2B, C, *spatial) and parameters (2B, P) on ``device``."""
        images = torch.cat([batchdata[key] for key in self.keys])
        target = batchdata[self.target_key].repeat(2, 1)
        return tuple(  # type: ignore[return-value]
            value.to(device=device, non_blocking=non_blocking, **kwargs) for value in (images, target)
        )


class IdentityLoss(nn.Module):
    """SimCLR's contrastive loss of the embeddings (MONAI's), plus smooth L1 of the parameters in units of their spread.

    Args:
        std: (P,) standard deviation of the parameters over the population.
        temperature: temperature of the contrastive loss.
        parameter_weight: weight of the parameters' term.
    """

    def __init__(self, std: Sequence[float], temperature: float = 0.1, parameter_weight: float = 5.0) -> None:
        super().__init__()
        self.contrastive = ContrastiveLoss(temperature=temperature)
        self.parameter_weight = parameter_weight
        self.std = torch.as_tensor(std).float()

    def forward(self, prediction: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            prediction: output of `medcf.networks.identity.IdentityNetwork` for 2B images, image i and i + B of one
                subject.
            target: (2B, P) parameters in physical units.

        Returns:
            A scalar.
        """
        first, second = prediction["embedding"].chunk(2)
        std = self.std.to(target.device)
        error = functional.smooth_l1_loss(prediction["parameters"] / std, target / std)
        return self.contrastive(first, second) + self.parameter_weight * error


class ParameterFit(EpochMetric):
    """Mean over the parameters of R², the share of their variance that is recovered."""

    def __init__(self) -> None:
        super().__init__(_mean_r2, output_transform=_parameters, check_compute_fn=False)


class PairRecall(EpochMetric):
    """Share of the images whose partner is the nearest of all images with another place in their pair.

    The evaluator's batches hold first images, then second ones, as `PairPrepareBatch` makes them.
    """

    def __init__(self) -> None:
        super().__init__(_recall, output_transform=_embeddings, check_compute_fn=False)


def _parameters(output: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    predicted = torch.stack([item[CommonKeys.PRED]["parameters"] for item in output])
    return predicted.cpu(), torch.stack([item[CommonKeys.LABEL] for item in output]).cpu()


def _embeddings(output: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.stack([item[CommonKeys.PRED]["embedding"] for item in output]).cpu().chunk(2)
    return first, second


def _mean_r2(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    residual = ((predicted - truth) ** 2).sum(0)
    return float((1.0 - residual / ((truth - truth.mean(0)) ** 2).sum(0)).mean())


def _recall(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(((first @ second.T).argmax(1) == torch.arange(len(first))).float().mean())
