# SPDX-License-Identifier: Apache-2.0
"""Biometry of the head from a segmentation of the skull, and how far a counterfactual changes it.

Head circumference, biparietal and occipitofrontal diameters are those of the ellipse that a sonographer would fit to
the outer outline of the skull. There are two uses: compared with the input's biometry, a shift means that identity was
not preserved; compared with the paired truth, it is an error in mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from monai.utils import ensure_tuple_rep
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.measure import EllipseModel, find_contours, regionprops
from skimage.morphology import convex_hull_image, remove_small_objects
from torch import Tensor

from medcf.metrics.base import CaseMetric
from medcf.metrics.bootstrap import interval_of_entered
from medcf.registry import METRICS
from medcf.runtime.choices import check_choice

__all__ = ["BiometryShift", "HeadBiometry", "head_biometry"]

Measure = Literal["hc", "bpd", "ofd"]

_CLOSED = 0.9  # fraction of its convex hull filled by a closed skull; a hollow one fills far less
_PIECE = 0.1  # fraction of the skull's pixels that a separate piece needs to count
_SEEN = 0.6  # fraction of directions from the center in which an open skull must be visible


@dataclass(frozen=True)
class HeadBiometry:
    """The ellipse of a head; NaN if none was found.

    Attributes:
        hc_mm: head circumference, Ramanujan's first approximation (1914) of the ellipse's perimeter.
        bpd_mm: biparietal diameter, outer to outer: the minor axis.
        ofd_mm: occipitofrontal diameter, outer to outer: the major axis.
        reason: why there is no value; None if there is one.
    """

    hc_mm: float = math.nan
    bpd_mm: float = math.nan
    ofd_mm: float = math.nan
    reason: str | None = None


def head_biometry(
    labels: ArrayLike, spacing: float | Sequence[float], *, skull: int = 1, min_pixels: int = 20
) -> HeadBiometry:
    """Measure the head in a segmentation.

    A closed skull is filled, and the ellipse has the second moments of the enclosed area, like the phantoms' truth. A
    skull with gaps gets the least-squares ellipse (Halir & Flusser 1998) through the visible part of its outer outline.

    For the true segmentations of 80 phantoms (64 x 80 pixels of 1.75 mm), HC is on average 0.5 % and BPD 0.7 % above
    the phantoms' analytic values, at most 0.8 % and 1.3 %.

    Args:
        labels: integers (H, W) or (1, H, W).
        spacing: mm between rows and columns: one number or two.
        skull: label of the skull's ring.
        min_pixels: fewer skull pixels than this count as no skull.

    Returns:
        The measurements.

    Raises:
        ValueError: if the labels are not a 2D image, or a spacing is not positive.

    Example:
        >>> rows, cols = np.mgrid[:64, :80]
        >>> distance = np.hypot((rows - 31.6) / 20, (cols - 39.6) / 25)
        >>> measured = head_biometry((distance < 1) & (distance > 0.9), 2.0)
        >>> round(measured.bpd_mm), round(measured.ofd_mm)
        (80, 100)
    """
    image = np.asarray(labels)
    image = image[0] if image.ndim == 3 and len(image) == 1 else image
    steps = tuple(float(step) for step in ensure_tuple_rep(spacing, 2))
    if image.ndim != 2:
        raise ValueError(f"labels must be one 2D image (H, W) or (1, H, W), got shape {np.shape(labels)}.")
    if not min(steps) > 0:
        raise ValueError(f"spacing={spacing} must be positive: give mm between rows and columns.")
    inside = image == skull
    ring = remove_small_objects(inside, max_size=math.ceil(_PIECE * inside.sum()) - 1, connectivity=2)
    if ring.sum() < min_pixels:
        return HeadBiometry(reason=f"less than {min_pixels} pixels of skull")
    filled, hull = ndimage.binary_fill_holes(ring), convex_hull_image(ring, offset_coordinates=False)
    if filled.sum() >= _CLOSED * hull.sum():
        region = regionprops(filled.astype(np.uint8), spacing=steps)[0]
        return _ellipse(region.axis_minor_length, region.axis_major_length)
    return _fitted(ring, hull, steps)


def _fitted(ring: NDArray[np.bool_], hull: NDArray[np.bool_], steps: tuple[float, ...]) -> HeadBiometry:
    """Fit the ellipse to points of the hull's outline that are skull; the other points bridge gaps."""
    outline = max(find_contours(np.pad(hull, 1).astype(float), 0.5), key=len) - 1.0
    nearest = ndimage.distance_transform_edt(~ring)
    near = ndimage.map_coordinates(nearest, outline.T, order=1, mode="nearest") < 1.0
    points = outline[near] * steps
    model = EllipseModel.from_estimate(points[:, ::-1]) if len(points) else None
    if not model:
        return HeadBiometry(reason="no ellipse fits the skull")
    angles = np.arctan2(*(points - model.center[::-1]).T)
    seen = len(np.unique(np.floor((angles + np.pi) / (2 * np.pi) * 36).astype(int) % 36)) / 36
    if seen < _SEEN:
        return HeadBiometry(reason=f"skull seen in less than {_SEEN:.0%} of the directions")
    axes = sorted(2.0 * float(length) for length in model.axis_lengths)
    return _ellipse(*axes)


def _ellipse(minor: float, major: float) -> HeadBiometry:
    perimeter = math.pi / 2 * (3 * (major + minor) - math.sqrt((3 * major + minor) * (major + 3 * minor)))
    return HeadBiometry(float(perimeter), float(minor), float(major))


class BiometryShift(CaseMetric):
    """How far a measurement of the head moved, in mm, absolute; ``bias`` is the signed mean.

    Compared with the input (or the subject's known values) it measures whether the head is still the same; compared
    with the paired truth, whether it has the correct size.

    Args:
        spacing: mm between rows and columns.
        measure: "hc", "bpd" or "ofd".
        skull: label of the skull's ring.

    Example:
        >>> rows, cols = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
        >>> distance = torch.hypot((rows - 31.6) / 20, (cols - 39.6) / 25)[None, None]
        >>> metric = BiometryShift(2.0, "bpd")
        >>> _ = metric(distance < 1, torch.tensor([84.0]))
        >>> round(metric.aggregate()), round(metric.bias())
        (4, -4)
    """

    higher_is_better = False
    needs: ClassVar = {"y_pred": "{of}({on})", "y": "segmentation_true"}
    quantity = "segmentation"
    left_out_reason = "no head found in counterfactual or reference"

    def __init__(self, spacing: float | Sequence[float], measure: Measure = "hc", *, skull: int = 1) -> None:
        super().__init__()
        check_choice("measure", measure, Measure)
        self.spacing = spacing
        self.measure = measure
        self.skull = skull

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare labels (B, 1, H, W) with ``y``, labels or mm (B,): counterfactual minus reference in mm, (B,)."""
        if y is None or len(y) != len(y_pred):
            raise ValueError("BiometryShift needs one reference per counterfactual as y: labels, or mm.")
        known = y.ndim == 1
        if not known and y.shape != y_pred.shape:
            raise ValueError(f"y has shape {tuple(y.shape)}: give mm (B,), or labels {tuple(y_pred.shape)}.")
        reference = y.double().cpu() if known else self._measured(y)
        return self._measured(y_pred) - reference

    def _measured(self, labels: Tensor) -> Tensor:
        found = [head_biometry(each.cpu().numpy(), self.spacing, skull=self.skull) for each in labels]
        return torch.tensor([getattr(each, f"{self.measure}_mm") for each in found], dtype=torch.float64)

    def per_case(self) -> Tensor:
        """Return the absolute shift of each case in mm (N,); NaN if no head was found."""
        return super().per_case().abs()

    def bias(self) -> float:
        """Return the mean of counterfactual minus reference in mm."""
        return float(super().per_case().nanmean())

    def bias_interval(self, **options: Any) -> tuple[float, float]:
        """Return the bootstrap interval of the bias; see `medcf.metrics.bootstrap_interval` for the options."""
        values = super().per_case().numpy()
        return interval_of_entered(np.mean, values, entered=~np.isnan(values), **options)


METRICS.add("biometry_shift", "Shift of head circumference or diameters in mm", BiometryShift)
