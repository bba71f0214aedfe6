# SPDX-License-Identifier: Apache-2.0
"""Similarity of a counterfactual to its input: MONAI's SSIM, MS-SSIM, MSE and PSNR, and the cosine of features.

All are best for the unchanged input: they measure how much a method changed, and need a validity metric with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.metrics import MSEMetric, MultiScaleSSIMMetric, PSNRMetric, SSIMMetric
from torch import Tensor
from torch.nn.functional import cosine_similarity

from medcf.metrics.base import QUANTITIES, CaseMetric
from medcf.metrics.set_distance import pooled_features
from medcf.registry import METRICS

__all__ = ["MSE", "PSNR", "SSIM", "FeatureCosine", "MultiScaleSSIM"]

#: Weights of the scales, finest first (Wang et al. 2003, section 3.2).
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Side of the Gaussian window for SSIM (Wang et al. 2004), in pixels.
WINDOW = 11


class _ImagePair(CaseMetric):
    """A metric of two images of the same size; finite pixels only.

    Args:
        value_range: lowest and highest possible values of an image.
    """

    higher_is_better = True
    left_out_reason = "the images have pixels that are not finite"

    def __init__(self, value_range: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__()
        self.lowest, highest = value_range
        self.data_range = highest - self.lowest
        if not self.data_range > 0:
            raise ValueError(f"value_range={value_range} must be the lowest and highest possible values of an image.")

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare images (B, C, *spatial) in 2D or 3D, within ``value_range``, with their inputs ``y``: (B,)."""
        if y is None or y.shape != y_pred.shape or y.ndim not in (4, 5):
            shapes = f"{tuple(y_pred.shape)} and {None if y is None else tuple(y.shape)}"
            raise ValueError(
                f"{type(self).__name__} compares images (B, C, *spatial) of one size in 2D or 3D: {shapes}."
            )
        values = torch.as_tensor(self._compare(y_pred.float(), y.float())).reshape(len(y))
        finite = (y_pred.isfinite() & y.isfinite()).flatten(1).all(1)
        return torch.where(finite, values, torch.nan)

    def _compare(self, y_pred: Tensor, y: Tensor) -> Any:
        """Return one value per case, (B, 1)."""
        raise NotImplementedError


class MSE(_ImagePair):
    """Mean squared difference over pixels and channels, in squared units of the image (0 to 4 for images in [-1, 1]).

    Source: ``monai.metrics.MSEMetric``; ControlCG, Table 1.

    Example:
        >>> metric = MSE()
        >>> _ = metric(torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 0.5))
        >>> metric.aggregate()
        0.25
    """

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()

    def _compare(self, y_pred: Tensor, y: Tensor) -> Any:
        return MSEMetric()(y_pred, y)


class PSNR(_ImagePair):
    """Peak signal-to-noise ratio in dB: 20 log10(range) - 10 log10(MSE), per case and then averaged.

    Identical images have an infinite ratio; a case counts with at most ``limit``, so one unchanged image does not make
    the mean infinite. Source: ``monai.metrics.PSNRMetric``.

    Args:
        value_range: lowest and highest possible values of an image.
        limit: upper limit for the ratio of a case, in dB; 100 is a root mean square error of 2e-5 on [-1, 1].

    Example:
        >>> metric = PSNR()
        >>> _ = metric(torch.zeros(2, 1, 8, 8), torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.2)]))
        >>> metric.per_case().round(decimals=3).tolist()
        [100.0, 20.0]
    """

    def __init__(self, value_range: tuple[float, float] = (-1.0, 1.0), *, limit: float = 100.0) -> None:
        super().__init__(value_range)
        self.limit = limit

    def _compare(self, y_pred: Tensor, y: Tensor) -> Any:
        return torch.as_tensor(PSNRMetric(max_val=self.data_range)(y_pred, y)).clamp(max=self.limit)


class SSIM(_ImagePair):
    """Structural similarity, at most 1 (identical images), 0 for unrelated and below 0 for inverted structure.

    Gaussian window of 11 pixels and standard deviation 1.5, without padding (Wang et al., "Image quality assessment:
    from error visibility to structural similarity", 2004), by ``monai.metrics.SSIMMetric``. Images are shifted so that
    ``value_range`` starts at 0, because SSIM compares means relative to 0: on [-1, 1], two images of opposite contrast
    would count as alike. A side below 11 pixels gets the largest odd window that fits; ``window`` holds the size used.

    Example:
        >>> image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> metric = SSIM()
        >>> _ = metric(torch.cat([image, -image]), torch.cat([image, image]))
        >>> metric.window, [round(value, 1) for value in metric.per_case().tolist()]
        (11, [1.0, -1.0])
    """

    window = WINDOW

    def _compare(self, y_pred: Tensor, y: Tensor) -> Any:
        self.window = _fitting_window(min(y.shape[2:]))
        metric = SSIMMetric(y.ndim - 2, data_range=self.data_range, win_size=self.window)
        return metric(y_pred - self.lowest, y - self.lowest)


class MultiScaleSSIM(_ImagePair):
    """Multi-scale structural similarity in [0, 1].

    Five scales as in Wang et al., "Multiscale structural similarity for image quality assessment", 2003, by
    ``monai.metrics.MultiScaleSSIMMetric``, need sides of 176 pixels. A smaller image keeps the window of 11 pixels and
    drops the coarsest scales, and the other weights are rescaled to sum to 1: four scales from 100 pixels, three from
    44, two from 22, below that one, which is SSIM clipped at 0. ``scales``, ``window`` and ``name`` report what was
    used; values with different numbers of scales are not comparable, so a metric that gets both raises an error. Images
    are shifted to start at 0, as in :class:`SSIM`.

    Example:
        >>> image = torch.rand(2, 1, 64, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> metric = MultiScaleSSIM()
        >>> _ = metric(image, image)
        >>> metric.name, round(metric.aggregate(), 4)
        ('MS-SSIM (3 scales, window 11)', 1.0)
    """

    scales = 0
    window = WINDOW

    @property
    def name(self) -> str:
        """MS-SSIM, with the number of scales and the window once an image was seen."""
        used = f" ({self.scales} scale{'s' * (self.scales > 1)}, window {self.window})"
        return f"MS-SSIM{used if self.scales else ''}"

    def reset(self) -> None:
        """Forget the cases and the number of scales."""
        super().reset()
        self.scales = 0

    def _compare(self, y_pred: Tensor, y: Tensor) -> Any:
        shortest = min(y.shape[2:])
        window = _fitting_window(shortest)
        scales = _fitting_scales(shortest, window)
        if self.scales and (scales, window) != (self.scales, self.window):
            raise ValueError(
                f"MultiScaleSSIM has seen images with {self.scales} scales; sides of {shortest} pixels allow {scales}. "
                "Use one metric per image size."
            )
        self.scales, self.window = scales, window
        weights = [weight / sum(SCALE_WEIGHTS[:scales]) for weight in SCALE_WEIGHTS[:scales]]
        metric = MultiScaleSSIMMetric(y.ndim - 2, data_range=self.data_range, kernel_size=window, weights=weights)
        return metric(y_pred - self.lowest, y - self.lowest)


class FeatureCosine(CaseMetric):
    """Cosine between the features of the counterfactual and of its input, in [-1, 1].

    With SonoNet's features it is SonoSim in Pegios et al., Diff-ICE, section 4. It is high for any image of the same
    kind: compare it with the cosine to the inputs of OTHER subjects, or use ``ReIdentification``.

    Args:
        extractor: images to features, a tensor or a list of them (``PerceptualFeatures``), averaged over space; None if
            the metric is called with features (B, F).

    Example:
        >>> metric = FeatureCosine()
        >>> _ = metric(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
        >>> [round(value, 3) for value in metric.per_case().tolist()]
        [1.0, 0.707]
    """

    higher_is_better = True
    needs = QUANTITIES
    quantity = "features"
    left_out_reason = "features are zero or not finite"

    def __init__(self, extractor: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        self.extractor = extractor

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare images (B, C, *spatial), or features (B, F) without an extractor, with those of ``y``: (B,)."""
        if y is None or y.shape != y_pred.shape:
            raise ValueError("FeatureCosine needs the inputs (or their features) as y, of the shape of y_pred.")
        found, own = pooled_features(y_pred, self.extractor), pooled_features(y, self.extractor)
        lengths = found.norm(dim=1) * own.norm(dim=1)
        return torch.where(lengths.isfinite() & (lengths > 0), cosine_similarity(found, own, eps=0.0), torch.nan)


def _fitting_window(shortest: int) -> int:
    """Return the window of 11 pixels, or the largest odd one that fits a side."""
    return min(WINDOW, shortest - 1 + shortest % 2)


def _fitting_scales(shortest: int, window: int) -> int:
    """Return how many scales the window allows, by geometry and by MONAI's stricter check."""
    for scales in range(len(SCALE_WEIGHTS), 1, -1):
        if shortest >> (scales - 1) >= window and shortest // (scales - 1) ** 2 > window - 1:
            return scales
    return 1


METRICS.add("mse", "mean squared difference to the input", MSE)
METRICS.add("psnr", "peak signal-to-noise ratio to the input", PSNR)
METRICS.add("ssim", "structural similarity to the input", SSIM)
METRICS.add("ms_ssim", "multi-scale structural similarity to the input", MultiScaleSSIM)
METRICS.add("feature_cosine", "cosine of features to the input's (SonoSim)", FeatureCosine)
