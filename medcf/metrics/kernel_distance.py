# SPDX-License-Identifier: Apache-2.0
"""Kernel distance (KID) between two sets of features: unbiased at any number of images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medcf.metrics.set_distance import SetDistance, Statistic
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
            are left out, as lemma 6 does, because the two are not independent; N = M.

    Returns:
        The distance, in no unit: 0 on average for two samples of one distribution, so it may be negative.

    Raises:
        ValueError: not two matrices with as many columns and at least two rows each (as many rows if paired), or values
            that are not finite.

    Example:
        >>> a = np.random.default_rng(0).normal(size=(50, 20))
        >>> kernel_distance(a, a, paired=True), round(kernel_distance(a, a + 1), 1)
        (0.0, 6.4)
    """
    first, second = (torch.as_tensor(each).detach().cpu().double() for each in (a, b))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(
            f"kernel_distance needs features (N, D) and (M, D) of at least two images, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    if paired and len(first) != len(second):
        raise ValueError(f"paired: {len(first)} images have no partners in a set of {len(second)}.")
    if not (first.isfinite().all() and second.isfinite().all()):
        raise ValueError("kernel_distance got features that are not finite; leave those images out.")
    return _discrepancy(_kernel(first, first), _kernel(second, second), _kernel(first, second), paired=paired)


def _kernel(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    return (((a @ b.T) / a.shape[1] + 1) ** 3).numpy()


def _discrepancy(
    own: NDArray[np.float64], other: NDArray[np.float64], cross: NDArray[np.float64], *, paired: bool
) -> float:
    """Unbiased discrepancy from the kernels within (N, N), (M, M) and between (N, M) the sets."""
    within = sum(_off_diagonal_mean(each) for each in (own, other))
    return float(within - 2 * (_off_diagonal_mean(cross) if paired else cross.mean()))


def _off_diagonal_mean(matrix: NDArray[np.float64]) -> float:
    return float((matrix.sum() - np.trace(matrix)) / (len(matrix) * (len(matrix) - 1)))


class KernelDistance(SetDistance):
    """Kernel distance of generated images to reference images on any extractor's features.

    It is called KD(extractor), and KID only on Inception's features. Unlike a Fréchet distance it is not biased by
    small numbers of images. Its interval comes from halves of the sets: a bootstrap would compare repeated images with
    themselves. The kernel weighs means: where features lie far from 0, one image repeated can pass for the whole class,
    so read it beside the Fréchet distance. Source: :func:`kernel_distance`.

    Args:
        extractor: what the features are; "inception" names the figure KID.
        reference: features (M, F) of the fixed reference set, or images if there is a ``network``; None compares with
            the inputs that come as ``y``, and leaves out the product of an image with its own input.
        network: images to features, averaged over space; None when the metric is called with features.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> target = torch.randn(64, 4, generator=generator) + 3
        >>> inputs = torch.randn(32, 4, generator=generator)
        >>> to_target, to_inputs = KernelDistance(reference=target), KernelDistance()
        >>> _ = to_target(inputs, inputs), to_inputs(inputs, inputs)  # the control: counterfactuals that are the inputs
        >>> to_target.aggregate() > 100, to_inputs.aggregate()
        (True, 0.0)
    """

    @property
    def name(self) -> str:
        """KD(extractor), or KID."""
        return "KID" if self.extractor.lower() == "inception" else f"KD({self.extractor})"

    def _statistic(self, generated: Tensor, reference: Tensor) -> Statistic:
        own, other = _kernel(generated, generated), _kernel(reference, reference)
        cross, paired = _kernel(generated, reference), self._paired

        def distance(some: NDArray[np.int64], others: NDArray[np.int64]) -> float:
            picked = own[np.ix_(some, some)], other[np.ix_(others, others)], cross[np.ix_(some, others)]
            return _discrepancy(*picked, paired=paired)

        return distance


METRICS.add("kernel_distance", "unbiased kernel distance on any extractor's features (KID)", KernelDistance)
