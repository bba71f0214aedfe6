# SPDX-License-Identifier: Apache-2.0
"""The common part of distances between two sets of images: collecting features, the interval, and counts."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medcf.metrics.base import QUANTITIES, Counts, collected
from medcf.metrics.bootstrap import MIN_GROUPS, group_members, groups_of_entered, half_sampled_indices

__all__ = ["SetDistance", "feature_pair", "of_subsets", "pooled_features"]

logger = logging.getLogger(__name__)

Matrix = NDArray[np.float64]
#: Distance between the sets selected by two lists of case indices.
Statistic = Callable[[NDArray[np.int64], NDArray[np.int64]], float]


def pooled_features(images: Tensor, network: Callable[[Tensor], Any] | None = None) -> Tensor:
    """Describe each image by one vector.

    Args:
        images: (B, C, *spatial), or features (B, F) if there is no network.
        network: images to a feature tensor or a list of them, like ``PerceptualFeatures``; None takes ``images`` as the
            features. Feature maps are averaged over space, lists are concatenated.

    Returns:
        (B, F), in float64 on the CPU.
    """
    with torch.no_grad():
        found = images if network is None else network(images)
    maps = [found] if isinstance(found, Tensor) else list(found)
    vectors = [each.flatten(2).mean(2) if each.ndim > 2 else each.reshape(len(each), -1) for each in maps]
    return torch.cat([vector.detach().cpu().double() for vector in vectors], dim=1)


def feature_pair(name: str, a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> tuple[Tensor, Tensor]:
    """Check the features (N, F) and (M, F) of two sets for the function ``name``; return them in float64 on the CPU."""
    first, second = (torch.as_tensor(each).detach().cpu().double() for each in (a, b))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(
            f"{name} needs features (N, D) and (M, D) of at least two images, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    if not (first.isfinite().all() and second.isfinite().all()):
        raise ValueError(f"{name} got features that are not finite: leave those images out.")
    return first, second


def of_subsets(distance: Callable[..., float], own: Matrix, other: Matrix, cross: Matrix) -> Statistic:
    """Apply ``distance`` to selected rows of the matrices within (N, N), (M, M) and between (N, M) two sets."""
    return lambda some, others: distance(
        own[np.ix_(some, some)], other[np.ix_(others, others)], cross[np.ix_(some, others)]
    )


class SetDistance(CumulativeIterationMetric):
    """A distance between the features of generated and of reference images; subclasses define the distance.

    The reference is either fixed (``reference``: held-out images of the target class, any number; ``y`` is then ignored
    and ``reset`` keeps it) or is given with each batch as ``y`` (the inputs, one per generated image). A small distance
    to the INPUTS is not an achievement: doing nothing has distance 0. A small distance to held-out images of the target
    class cannot be reached that way.

    Args:
        extractor: what the features are, for ``name``.
        reference: features (M, F) of the fixed reference set, or its images (M, C, *spatial) if there is a ``network``.
        network: see :func:`pooled_features`; None when the metric is called with features.

    Raises:
        ValueError: if features of the reference are not finite.
    """

    higher_is_better = False
    needs = QUANTITIES
    quantity = "features"
    #: Two-letter short name of the distance.
    initials: str
    #: The smallest possible value of the distance; bounds the interval.
    smallest = -math.inf

    def __init__(
        self,
        extractor: str = "features",
        *,
        reference: Tensor | None = None,
        network: Callable[[Tensor], Any] | None = None,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.network = network
        self._reference = None if reference is None else pooled_features(reference, network)
        if self._reference is not None and not self._reference.isfinite().all():
            raise ValueError("The reference has features that are not finite: leave those images out.")

    @property
    def name(self) -> str:
        """Name of the figure: with Inception's features the usual one, FID or KID, otherwise with the extractor."""
        inception = self.extractor.lower() == "inception"
        return "I".join(self.initials) if inception else f"{self.initials}({self.extractor})"

    @abstractmethod
    def _statistic(self, generated: Tensor, reference: Tensor) -> Statistic:
        """Prepare the distance between subsets of two sets of features (N, F) and (M, F)."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor | list[Tensor]:
        """Collect features (B, F), or images: generated ones and, without a fixed reference, the inputs ``y``."""
        generated = pooled_features(y_pred, self.network)
        if not self._paired:
            return generated
        if y is None or len(y) != len(y_pred):
            raise ValueError(
                f"{type(self).__name__} needs one input as y for each y_pred; give a set of another size as reference=."
            )
        return [generated, pooled_features(y, self.network)]

    def features(self) -> tuple[Tensor, Tensor]:
        """Return the finite features of the generated and of the reference images, (N, F) and (M, F), float64."""
        return self._entered()[:2]

    @property
    def _paired(self) -> bool:
        return self._reference is None

    def _entered(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features, and which generated cases they belong to; of a pair, both must be finite."""
        buffer = collected(self)
        if self._reference is not None:
            kept = buffer.isfinite().all(1)
            return buffer[kept], self._reference, kept
        generated, reference = buffer
        kept = (generated.isfinite() & reference.isfinite()).all(1)
        return generated[kept], reference[kept], kept

    def aggregate(self) -> float:
        """Return the distance between all generated and all reference images; NaN if either has fewer than two."""
        generated, reference = self.features()
        if min(len(generated), len(reference)) < 2:
            return float("nan")
        return self._statistic(generated, reference)(np.arange(len(generated)), np.arange(len(reference)))

    def counts(self) -> Counts:
        """Return how many generated cases count, how many do not, and the size of the reference."""
        generated, reference, kept = self._entered()
        left_out = len(kept) - len(generated)
        return Counts(len(generated), {"features are not finite": left_out} if left_out else {}, len(reference))

    def interval(
        self,
        *,
        groups: Sequence[Hashable] | None = None,
        confidence: float = 0.95,
        num_resamples: int = 200,
        seed: int = 0,
    ) -> tuple[float, float]:
        """Return an interval for the distance at these numbers of images.

        A bootstrap repeats cases, and a set with repetitions is farther from the other set: the percentile interval of
        a Fréchet distance often lies entirely above the distance itself. Here halves of both sets are drawn WITHOUT
        repetition; the spread of the distance over them, about their mean, estimates its standard error at full size
        (Shao & Wu, "A general theory for jackknife variance estimation", 1989, with half of the cases deleted). On
        Gaussian sets of 32 to 100 images with 8 to 256 features, the 95 % interval of a Fréchet distance contained its
        expected value at N and M in 91 to 97 % of draws, the percentile bootstrap in 1 to 91 %; on log-normal features,
        also with four images per subject drawn by subject, in 93 to 98 %. If both sets come from one distribution it is
        too wide, by at most 1.7 times. It does not remove the upward bias of a Fréchet distance at small N: compare
        figures with equal N and M.

        Args:
            groups: subject of each generated case; whole subjects are drawn.
            confidence: fraction of the half-samples inside the interval.
            num_resamples: number of half-samples.
            seed: seed for drawing them.

        Returns:
            Lower and upper ends; NaN with fewer than five groups, or fewer than five images in a fixed reference.

        Raises:
            ValueError: if groups and cases differ in length.
        """
        estimate, halves, scale = self._half_samples(groups, num_resamples, seed)
        if not len(halves):
            return float("nan"), float("nan")
        tail = (1 - confidence) / 2
        low, high = estimate + scale * (np.quantile(halves, [tail, 1 - tail]) - halves.mean())
        return max(float(low), self.smallest), float(high)

    def _half_samples(
        self, groups: Sequence[Hashable] | None, num_resamples: int, seed: int
    ) -> tuple[float, NDArray[np.float64], float]:
        """Return the distance, those of half-samples, and the factor from their spread to the standard error."""
        generated, reference, kept = self._entered()
        names = groups_of_entered(groups, kept.numpy())
        members = _alone(generated) if names is None else group_members(names)
        others = members if self._paired else _alone(reference)
        if min(len(members), len(others)) < MIN_GROUPS:
            logger.warning("%s: %d and %d groups are too few for an interval.", self.name, len(members), len(others))
            return float("nan"), np.empty(0), 1.0
        statistic = self._statistic(generated, reference)
        rng = np.random.default_rng(seed)
        halves = np.empty(num_resamples)
        for draw in range(num_resamples):
            chosen = half_sampled_indices(members, rng)
            halves[draw] = statistic(chosen, chosen if self._paired else half_sampled_indices(others, rng))
        # An odd number of groups keeps fewer than it deletes: sqrt(kept / deleted), which is 1 for even numbers.
        scale = np.mean([(len(each) // 2 / (len(each) - len(each) // 2)) ** 0.5 for each in (members, others)])
        whole = statistic(np.arange(len(generated)), np.arange(len(reference)))
        return whole, halves, float(scale)


def _alone(features: Tensor) -> list[NDArray[np.int64]]:
    """Return the case indices of each group if every case is its own group."""
    return list(np.arange(len(features))[:, None])
