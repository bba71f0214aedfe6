# SPDX-License-Identifier: Apache-2.0
"""Ground truth for pixels: how far is a counterfactual from the same subject's true image in the target class?

The truth is another rendering (or another scan), so its speckle is different: even a perfect counterfactual differs
from it in every pixel, and a blurred one would win by having no speckle at all. ``smoothing`` first blurs all images,
which averages speckle away and keeps anatomy. On the 64 x 80 phantoms, speckle alone causes an error of 10 % of that of
doing nothing without smoothing, 4 % at the default of one pixel and 2 % at two.

A ``mask`` limits the errors to a part of the images: the organ, or where a structure changes. The images are blurred
first, so that no edge of the mask enters.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from monai.metrics import SSIMMetric
from monai.networks.layers import GaussianFilter
from torch import Tensor

from medcf.metrics.base import CaseMetric, collected
from medcf.metrics.bootstrap import bootstrap_interval
from medcf.registry import METRICS

__all__ = [
    "PairedTruth",
    "RelativeTruthError",
    "TruthError",
    "TruthSimilarity",
    "TruthSimilarityGain",
    "blurred",
    "inside",
    "ratio_of_sums",
]


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Blur images (B, C, *spatial) by a Gaussian of ``sigma`` pixels that keeps the level at the borders."""
    if not sigma:
        return image
    # The filter pads with zeros; dividing by the blurred ones preserves the level at the borders.
    blur = GaussianFilter(image.ndim - 2, sigma, approx="sampled").to(image.device)
    found: Tensor = blur(image) / blur(torch.ones_like(image[:1, :1]))
    return found


class PairedTruth(CaseMetric):
    """The common part of the comparisons with the paired truth.

    Args:
        smoothing: standard deviation in pixels of the Gaussian blur for all images; 0 for none.
    """

    left_out_reason = "no difference between input and truth"
    needs: ClassVar[Mapping[str, str]] = {"y_pred": "{on}", "y": "image_true"}

    def __init__(self, smoothing: float = 1.0) -> None:
        super().__init__()
        if smoothing < 0:
            raise ValueError(f"smoothing={smoothing} is a standard deviation in pixels: use 0 or more.")
        self.smoothing = float(smoothing)

    def _blurred(self, y_pred: Tensor, y: Tensor | None, **further: Any) -> list[Tensor]:
        """Check the shapes and blur: counterfactual, truth and the further images that the metric needs, in order."""
        name = type(self).__name__
        if y is None:
            raise ValueError(f"{name} needs the paired true image as y.")
        images = [y_pred, y]
        for key in self.needs:
            if key in _FURTHER:
                if not isinstance(further.get(key), Tensor):
                    raise ValueError(f"{name} {_FURTHER[key]} as {key}=.")
                images.append(further[key])
        if any(each.shape != y_pred.shape for each in images) or y_pred.ndim < 4:
            shapes = ", ".join(str(tuple(each.shape)) for each in images)
            raise ValueError(f"{name} needs images of one shape (B, C, *spatial), got {shapes}.")
        return [blurred(each.as_subclass(Tensor).float(), self.smoothing) for each in images]


#: Images besides counterfactual and truth, and why a metric needs them.
_FURTHER = {
    "image": "compares with doing nothing: give the inputs",
    "own": "compares with the input's own class: give what the method makes of the inputs toward it",
}


def inside(image: Tensor, mask: Tensor | None) -> Tensor:
    """Return images (B, C, *spatial) in double precision, zero outside a mask (B, 1 or C, *spatial).

    Raises:
        ValueError: if the mask has another grid.
    """
    if mask is None:
        return image.double()
    if mask.ndim != image.ndim or mask.shape[2:] != image.shape[2:] or len(mask) != len(image):
        raise ValueError(f"The mask has the shape {tuple(mask.shape)}, the images have {tuple(image.shape)}.")
    return image.double() * (mask.as_subclass(Tensor).to(image.device) != 0)


class TruthError(PairedTruth):
    """Mean squared error of each counterfactual relative to the paired true image, in squared image units ([-1, 1]).

    Example:
        >>> metric = TruthError(smoothing=0)
        >>> _ = metric(torch.full((1, 1, 16, 16), 0.5), torch.zeros(1, 1, 16, 16))
        >>> metric.aggregate()
        0.25
    """

    higher_is_better = False

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare images (B, C, *spatial) in [-1, 1] with the truth ``y``, within ``mask`` if given; returns (B,)."""
        pred, truth = self._blurred(y_pred, y)
        mask = kwargs.get("mask")
        size = inside(torch.ones_like(pred), mask).flatten(1).sum(1)
        return squared_error(pred, truth, mask) / size  # NaN if the mask is empty


class RelativeTruthError(PairedTruth):
    """Error to the paired truth over the error of doing nothing: MSE(counterfactual, truth) / MSE(input, truth).

    Below 1 is closer to the truth than the input; the unchanged input scores 1. The aggregate is the ratio of the mean
    errors, so an input that happens to be close to its truth does not dominate; ``per_case`` returns the ratios.

    It rewards blur: the mean of all plausible truths has half the error of one of them, and the input blurred by less
    than a pixel is "closer to the truth" than the input. Read it with `medcf.metrics.Effectiveness` and
    `medcf.metrics.Sharpness`.

    Example:
        >>> truth, image = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
        >>> metric = RelativeTruthError(smoothing=0)
        >>> _ = metric(0.5 * image, truth, image=image)
        >>> metric.aggregate()
        0.25
    """

    higher_is_better = False
    needs: ClassVar[Mapping[str, str]] = {**PairedTruth.needs, "image": "image"}

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare images (B, C, *spatial) in [-1, 1] and ``image``, the inputs, with the truth ``y``: (B, 2).

        ``mask`` (B, 1, *spatial), if given, limits the errors to a part of the images.
        """
        pred, truth, image = self._blurred(y_pred, y, **kwargs)
        return torch.stack([squared_error(each, truth, kwargs.get("mask")) for each in (pred, image)], dim=1)

    def per_case(self) -> Tensor:
        """Return the ratio of each case (N,); NaN if the input equals the truth."""
        errors, unchanged = collected(self).double().unbind(1)
        return torch.where(unchanged > 0, errors / unchanged, torch.nan)

    def aggregate(self) -> float:
        """Return the mean error over the mean error of doing nothing."""
        return ratio_of_sums(*collected(self).double().cpu().numpy().T)

    def _interval(self, groups: Sequence[Hashable] | None, **options: Any) -> tuple[float, float]:
        return bootstrap_interval(ratio_of_sums, *collected(self).double().cpu().numpy().T, groups=groups, **options)


class TruthSimilarity(PairedTruth):
    """Structural similarity (MONAI's SSIM) of each counterfactual with the paired true image.

    Example:
        >>> image = torch.rand(1, 1, 16, 16)
        >>> metric = TruthSimilarity()
        >>> _ = metric(image, image)
        >>> round(metric.aggregate(), 4)
        1.0
    """

    higher_is_better = True

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare images (B, C, *spatial) in [-1, 1] with the truth ``y``; returns (B,)."""
        return _ssim(*self._blurred(y_pred, y))


class TruthSimilarityGain(PairedTruth):
    """SSIM to the paired truth minus the SSIM of the unchanged input: above 0 is better than doing nothing.

    Example:
        >>> truth, image = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)
        >>> metric = TruthSimilarityGain()
        >>> _ = metric(truth, truth, image=image)
        >>> metric.aggregate() > 0.3
        True
    """

    higher_is_better = True
    needs: ClassVar[Mapping[str, str]] = {**PairedTruth.needs, "image": "image"}

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare images (B, C, *spatial) in [-1, 1] with the truth ``y``; ``image`` are the inputs. Returns (B,)."""
        pred, truth, image = self._blurred(y_pred, y, **kwargs)
        return _ssim(pred, truth) - _ssim(image, truth)


def squared_error(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum the squared differences within a mask, (B,)."""
    return inside(first.double() - second.double(), mask).square().flatten(1).sum(1)


def _ssim(first: Tensor, second: Tensor) -> Tensor:
    """Compute SSIM per image, (B,)."""
    metric = SSIMMetric(spatial_dims=first.ndim - 2, data_range=2.0)
    # SSIM compares means relative to 0, so images in [-1, 1] are shifted to start there
    return metric(first + 1, second + 1).reshape(len(first), -1).mean(1)  # type: ignore[union-attr]


def ratio_of_sums(part: np.ndarray, whole: np.ndarray) -> float:
    """Return the ratio of the sums over the cases; NaN if the second is zero."""
    return float(part.sum() / whole.sum()) if whole.sum() > 0 else float("nan")


METRICS.add("truth_error", "Mean squared error to the paired true image", TruthError)
METRICS.add("relative_truth_error", "Error to the paired truth over that of doing nothing", RelativeTruthError)
METRICS.add("truth_similarity", "SSIM with the paired true image", TruthSimilarity)
METRICS.add("truth_similarity_gain", "SSIM with the paired truth minus that of the input", TruthSimilarityGain)
