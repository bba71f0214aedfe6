# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance between two sets of features, efficient with fewer images than features."""

from __future__ import annotations

import logging
from contextlib import suppress

import torch
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, eigh
from torch import Tensor

from medcf.metrics.set_distance import Matrix, SetDistance, Statistic, feature_pair, of_subsets
from medcf.registry import METRICS

__all__ = ["FrechetDistance", "frechet_distance"]

logger = logging.getLogger(__name__)


def frechet_distance(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features.

    d = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with covariances of N - 1 degrees of freedom (Heusel et al.,
    "GANs trained by a two time-scale update rule", NeurIPS 2017, eq. 6). With centered features A and B, tr (S_a
    S_b)^(1/2) is the sum of the singular values of A B^T / sqrt((N - 1)(M - 1)), an N x M matrix; a set with more
    images than features is first replaced by the triangular factor of its QR decomposition. So the decomposed matrix is
    min(N, D) x min(M, D), and rank-deficient covariances need no regularization. Where time counts (512 rows and more),
    eigenvalues of a symmetric matrix take the place of singular values.

    Args:
        a: features of one set, (N, D), N >= 2.
        b: features of the other, (M, D), M >= 2.

    Returns:
        The distance, in squared units of the features.

    Raises:
        ValueError: if these are not two matrices with equal columns and at least two rows each, or values are not
            finite.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> a = rng.normal(size=(50, 200))
        >>> round(frechet_distance(a, a + 0.1), 6)
        2.0
    """
    first, second = feature_pair("frechet_distance", a, b)
    means = first.mean(0), second.mean(0)
    factors = (first - means[0]).div_((len(first) - 1) ** 0.5), (second - means[1]).div_((len(second) - 1) ** 0.5)
    variance = sum(float(factor.square().sum()) for factor in factors)
    offset = float((means[0] - means[1]).square().sum())
    return max(offset + variance - 2 * _root_of_product(*factors), 0.0)


#: From this number of rows and columns on, time counts more than the last digits of the smallest singular values.
_LARGE = 512


def _root_of_product(left: Tensor, right: Tensor) -> float:
    """Return tr (S_a S_b)^(1/2) of the covariances A^T A and B^T B of two factors (N, D) and (M, D)."""
    features = left.shape[1]
    if min(len(left), len(right)) > features >= _LARGE:
        # Cheaper than two QR decompositions, but needs a positive definite covariance; NumPy computes half of X^T X.
        first, second = (factor.numpy().T @ factor.numpy() for factor in (left, right))
        with suppress(LinAlgError):
            # transposed, because LAPACK stores columns: no copies
            squares = eigh(
                second.T, first.T, type=2, eigvals_only=True, driver="gvx", overwrite_a=True, overwrite_b=True
            )
            return _sum_of_roots(torch.from_numpy(squares))
    left, right = (torch.linalg.qr(each, mode="r").R if len(each) > features else each for each in (left, right))
    return _sum_of_singular_values(left @ right.T)


def _sum_of_singular_values(matrix: Tensor) -> float:
    """Sum the singular values of a matrix; of a large one, by the eigenvalues of its scalar products."""
    if min(matrix.shape) < _LARGE:
        return float(torch.linalg.svdvals(matrix).sum())
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return _sum_of_roots(torch.linalg.eigvalsh(short @ short.T))


def _sum_of_roots(squares: Tensor) -> float:
    """Sum the roots of eigenvalues in ascending order.

    Rounding spreads those that are 0 over +- n eps of the largest, which a root would enlarge to 1e-6 of it: they are
    taken for 0.
    """
    rounding = squares[-1] * len(squares) * torch.finfo(squares.dtype).eps
    return float(squares[squares > rounding].sqrt().sum())


def _gram_distance(*products: Matrix) -> float:
    """Fréchet distance from the scalar products A A^T, B B^T and A B^T of features (N, D) and (M, D)."""
    own, other, cross = map(torch.from_numpy, products)
    numbers = len(own), len(other)
    means = own.mean(), other.mean()
    offset = float(means[0] + means[1] - 2 * cross.mean())
    variance = sum(
        float(gram.diagonal().sum() - number * mean) / (number - 1)
        for gram, number, mean in zip((own, other), numbers, means, strict=True)
    )
    centered = cross - cross.mean(0, keepdim=True) - cross.mean(1, keepdim=True) + cross.mean()
    root = _sum_of_singular_values(centered) / ((numbers[0] - 1) * (numbers[1] - 1)) ** 0.5
    return max(offset + variance - 2 * root, 0.0)


class FrechetDistance(SetDistance):
    """Fréchet distance of generated images to reference images on any extractor's features: FID, FSD, in 2D and 3D.

    It is named FD(extractor), and FID only with Inception's features. With few images it is biased upward, the more so
    the more features there are: a warning states the amount if there are no more images than features, and only
    distances with equal N, M and extractor are comparable. Sources: :func:`frechet_distance`; Pegios et al., Diff-ICE,
    section 4 (FID and FSD of counterfactuals to the inputs, which the unchanged input wins with 0; give held-out images
    of the target class as ``reference``).

    Args:
        extractor, reference, network: see :class:`SetDistance`; without a reference, the inputs are the reference.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> target = torch.randn(64, 4, generator=generator) + 3
        >>> inputs = torch.randn(32, 4, generator=generator)
        >>> to_target, to_inputs = FrechetDistance("sononet", reference=target), FrechetDistance("sononet")
        >>> for batch in inputs.split(16):  # the control: counterfactuals equal to the inputs
        ...     _ = to_target(batch, batch), to_inputs(batch, batch)
        >>> to_target.name, to_target.aggregate() > 30, round(to_inputs.aggregate(), 6)
        ('FD(sononet)', True, 0.0)
    """

    initials = "FD"
    smallest = 0.0

    def _statistic(self, generated: Tensor, reference: Tensor) -> Statistic:
        if min(len(generated), len(reference)) > generated.shape[1]:
            return lambda some, others: frechet_distance(generated[some], reference[others])
        # Scalar products are computed once; a subset only indexes them. Centering preserves precision.
        center = reference.mean(0)
        a, b = generated - center, reference - center
        own, other, cross = (a @ a.T).numpy(), (b @ b.T).numpy(), (a @ b.T).numpy()
        return of_subsets(_gram_distance, own, other, cross)

    def aggregate(self) -> float:
        """Return the distance; warns if there are no more images than features."""
        generated, reference = self.features()
        if min(len(generated), len(reference)) < 2:
            return float("nan")
        result = frechet_distance(generated, reference)
        features = generated.shape[1]
        if min(len(generated), len(reference)) <= features:
            logger.warning(
                "%s = %.4g: N = %d generated and M = %d reference images are too few for D = %d features: "
                "biased upward by at least about %.2g. Compare it only at equal N and M, or use more images or fewer "
                "features.",
                self.name,
                result,
                len(generated),
                len(reference),
                features,
                self.bias(),
            )
        return result

    def bias(self, *, num_resamples: int = 8, seed: int = 0) -> float:
        """Estimate the upward bias of the distance at this N and M from the increase when both sets are halved.

        To first order the bias is inversely proportional to the number of images, so halving doubles it (Chong &
        Forsyth, "Effectively unbiased FID and Inception score", CVPR 2020). With no more images than features it falls
        off more slowly, and the estimate is too small.

        Args:
            num_resamples: number of half-samples.
            seed: seed for drawing them.

        Returns:
            The bias, in units of the distance; NaN if either set has fewer than four images.
        """
        whole, halves, scale = self._half_samples(None, num_resamples, seed)
        return float(scale**2 * (halves.mean() - whole)) if len(halves) else float("nan")


METRICS.add("frechet_distance", "Fréchet distance on any extractor's features (FID, FSD)", FrechetDistance)
