# SPDX-License-Identifier: Apache-2.0
"""How much of the true change was made, and how much else: the two parts of the error to the paired truth.

With z = truth - input and z' = counterfactual - input, effectiveness e = <z, z'> / |z|² is the fraction of the true
change that was made, and amplification a = |z' - e z| / |z| is the size of everything else. The error over doing
nothing, `medcf.metrics.RelativeTruthError`, is then exactly (1 - e)² + a² ("TEA", MICCAI 2025).

What follows: a sample of a perfect posterior has twice the error of the posterior's mean; the mean of K samples keeps e
and divides the random part of a² by K; and a change shrunk by s has the error 1 - 2 s e + s² (e² + a²), whatever made
it. So neither a ratio near 1 nor a small one says how much of the true change is in an image, but e does.

All aggregates pool the products of all cases, as the ratio pools the errors, so the identity holds for them as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medcf.metrics.base import collected
from medcf.metrics.bootstrap import interval_of_entered
from medcf.metrics.truth import PairedTruth, inside
from medcf.registry import METRICS

__all__ = ["Amplification", "ClassEffectiveness", "Effectiveness"]

Products = NDArray[np.float64]


class Effectiveness(PairedTruth):
    """Fraction of the true change that the counterfactual makes: <z, z'> / |z|².

    1 for the truth, 0 for the unchanged input and for any change that has nothing to do with the true one. Above 1 the
    true change is exaggerated.

    Example:
        >>> truth, image = torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
        >>> metric = Effectiveness(smoothing=0)
        >>> _ = metric(0.25 * truth, truth, image=image)
        >>> metric.aggregate()
        0.25
    """

    higher_is_better = True
    needs: ClassVar[Mapping[str, str]] = {**PairedTruth.needs, "image": "image"}

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare the changes of images (B, C, *spatial) in [-1, 1]: the products |z|², <z, z'> and |z'|², (B, 3).

        ``y`` is the truth, ``image`` the inputs; ``mask`` (B, 1, *spatial), if given, limits the products to a part of
        the images.
        """
        pred, truth, image = (each.double() for each in self._blurred(y_pred, y, **kwargs))
        return _products(truth - image, pred - image, kwargs.get("mask"))

    @staticmethod
    def _value(true: Products, along: Products, made: Products) -> Products:
        """Return the figure from the products, of one case or summed."""
        return np.asarray(along / true)

    def per_case(self) -> Tensor:
        """Return the figure of each case (N,); NaN if the input equals the truth."""
        products = collected(self).double().cpu().numpy()
        with np.errstate(all="ignore"):
            return torch.from_numpy(np.where(products[:, 0] > 0, self._value(*products.T), np.nan))

    def aggregate(self) -> float:
        """Return the figure from the products of all cases together."""
        return self._pooled(*collected(self).double().cpu().numpy().T)

    def _pooled(self, *columns: Products) -> float:
        true, along, made = (column.sum() for column in columns)
        return float(self._value(true, along, made)) if true > 0 else float("nan")

    def _interval(self, groups: Sequence[Hashable] | None, **options: Any) -> tuple[float, float]:
        columns = collected(self).double().cpu().numpy().T
        return interval_of_entered(self._pooled, *columns, entered=columns[0] > 0, groups=groups, **options)


class Amplification(Effectiveness):
    """Size of everything that changed besides the true change, relative to it: |z' - e z| / |z|.

    0 for the truth and for the unchanged input. Speckle that was drawn again, an outline that moved and an invented
    structure all count.

    Example:
        >>> image = torch.zeros(1, 1, 16, 16)
        >>> truth, pred = image.clone(), image.clone()
        >>> truth[..., :8], pred[..., 8:] = 1.0, 0.5
        >>> metric = Amplification(smoothing=0)
        >>> _ = metric(pred, truth, image=image)
        >>> metric.aggregate()
        0.5
    """

    higher_is_better = False

    @staticmethod
    def _value(true: Products, along: Products, made: Products) -> Products:
        return np.sqrt(np.maximum(made / true - (along / true) ** 2, 0))  # rounding may fall below 0


class ClassEffectiveness(Effectiveness):
    """Effectiveness toward the target minus that toward the input's own class: what the class itself contributes.

    Regeneration alone moves an image along the true change, because it blurs and redraws; only the rest is an answer to
    "what if it were another class?".

    Example:
        >>> truth, image = torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
        >>> metric = ClassEffectiveness(smoothing=0)
        >>> _ = metric(0.75 * truth, truth, image=image, own=0.25 * truth)
        >>> metric.aggregate()
        0.5
    """

    needs: ClassVar[Mapping[str, str]] = {**Effectiveness.needs, "own": "own"}

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare the changes of images (B, C, *spatial) in [-1, 1]; ``own`` is the result toward the own class."""
        pred, truth, image, own = (each.double() for each in self._blurred(y_pred, y, **kwargs))
        return _products(truth - image, pred - own, kwargs.get("mask"))


def _products(true: Tensor, made: Tensor, mask: Tensor | None) -> Tensor:
    """Return |true|², <true, made> and |made|² of each case within a mask, (B, 3)."""
    z, change = (inside(each, mask).flatten(1) for each in (true, made))
    return torch.stack([(z * z).sum(1), (z * change).sum(1), (change * change).sum(1)], dim=1)


METRICS.add("effectiveness", "fraction of the true change that was made", Effectiveness)
METRICS.add("amplification", "everything that changed besides the true change, relative to it", Amplification)
METRICS.add(
    "class_effectiveness", "effectiveness minus that of regeneration in the input's own class", ClassEffectiveness
)
