# SPDX-License-Identifier: Apache-2.0
"""Kernel distance (KID) between two sets of features: unbiased for any number of images."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from medcf.metrics.set_distance import Matrix, SetDistance, Statistic, feature_pair, of_subsets
from medcf.registry import METRICS

__all__ = ["KernelDistance", "kernel_distance"]


def kernel_distance(a: ArrayLike | Tensor, b: ArrayLike | Tensor, *, paired: bool = False) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel k(x, y) = (x . y / D + 1)^3, over all pairs of images.

    Sources: Bińkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4 (KID; averaged there over random subsets,
    which estimates the same number with more variance); Gretton et al., "A kernel two-sample test", JMLR 2012, lemma 6.

    Args:
        a: features of one set, (N, D), N >= 2.
        b: features of the other, (M, D), M >= 2.
        paired: b[i] belongs to a[i] (a counterfactual and its input): the N products of an image with its own partner
            are omitted, as in lemma 6, because the two are not independent; N = M.

    Returns:
        The distance, without a unit: 0 on average for two samples from one distribution, so it may be negative.

    Raises:
        ValueError: if these are not two matrices with equal columns and at least two rows each (equal rows if paired),
            or values are not finite.

    Example:
        >>> a = np.random.default_rng(0).normal(size=(50, 20))
        >>> kernel_distance(a, a, paired=True), round(kernel_distance(a, a + 1), 1)
        (0.0, 6.4)
    """
    first, second = feature_pair("kernel_distance", a, b)
    if paired and len(first) != len(second):
        raise ValueError(f"paired: {len(first)} images have no partners in a set of {len(second)}.")
    return _discrepancy(_kernel(first, first), _kernel(second, second), _kernel(first, second), paired=paired)


def _kernel(a: Tensor, b: Tensor) -> Matrix:
    return (((a @ b.T) / a.shape[1] + 1) ** 3).numpy()


def _discrepancy(own: Matrix, other: Matrix, cross: Matrix, *, paired: bool) -> float:
    """Unbiased discrepancy from the kernels within (N, N), (M, M) and between (N, M) the sets."""
    within = sum(_off_diagonal_mean(each) for each in (own, other))
    return float(within - 2 * (_off_diagonal_mean(cross) if paired else cross.mean()))


def _off_diagonal_mean(matrix: Matrix) -> float:
    return float((matrix.sum() - np.trace(matrix)) / (len(matrix) * (len(matrix) - 1)))


class KernelDistance(SetDistance):
    """Kernel distance of generated images to reference images on any extractor's features.

    It is named KD(extractor), and KID only with Inception's features. Unlike a Fréchet distance it is not biased for
    small numbers of images. Its interval comes from halves of the sets, because a bootstrap would compare repeated
    images with themselves. The kernel emphasizes means: if features are far from 0, one image repeated can pass for the
    whole class, so read it together with the Fréchet distance. Source: :func:`kernel_distance`.

    Args:
        extractor, reference, network: see :class:`SetDistance`; without a reference, the product of an image with its
            own input is omitted.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> target = torch.randn(64, 4, generator=generator) + 3
        >>> inputs = torch.randn(32, 4, generator=generator)
        >>> to_target, to_inputs = KernelDistance(reference=target), KernelDistance()
        >>> _ = to_target(inputs, inputs), to_inputs(inputs, inputs)  # the control: counterfactuals equal to the inputs
        >>> to_target.aggregate() > 100, to_inputs.aggregate()
        (True, 0.0)
    """

    initials = "KD"

    def _statistic(self, generated: Tensor, reference: Tensor) -> Statistic:
        own, other = _kernel(generated, generated), _kernel(reference, reference)
        cross = _kernel(generated, reference)
        return of_subsets(partial(_discrepancy, paired=self._paired), own, other, cross)


METRICS.add("kernel_distance", "unbiased kernel distance on any extractor's features (KID)", KernelDistance)
