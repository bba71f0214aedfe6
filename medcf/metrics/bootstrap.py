# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals: exact for proportions, BCa bootstrap for any statistic over cases or whole subjects."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, bootstrap

__all__ = [
    "MIN_GROUPS",
    "bootstrap_interval",
    "group_members",
    "groups_of_entered",
    "half_sampled_indices",
    "interval_of_entered",
]

Groups = Sequence[Hashable] | NDArray[Any]
#: Fewest groups that are resampled: n groups have only (2n - 1)! / (n! (n - 1)!) different resamples, 35 for four, and
#: their spread says little about that of the population.
MIN_GROUPS = 5


def group_members(groups: Groups) -> list[NDArray[np.int64]]:
    """Return the case indices of each group, given each case's group."""
    _, member_of = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    return np.split(np.argsort(member_of, kind="stable"), np.cumsum(np.bincount(member_of))[:-1])


def half_sampled_indices(members: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the cases of half of the groups (rounded down), each group at most once."""
    return np.concatenate([members[group] for group in rng.permutation(len(members))[: len(members) // 2]])


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    groups: Groups | None = None,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Confidence interval of a statistic over cases or groups of cases.

    This is the bias-corrected and accelerated bootstrap (Efron & Tibshirani 1993, chapter 14; `scipy.stats.bootstrap`),
    with three exceptions. The mean of Booleans, or of zeros and ones that both occur, is a proportion: if every group
    is one case, or all values agree, the interval is the exact one of Clopper and Pearson (1934) with the groups as
    trials, so 64 hits of 64 give [0.944, 1]. Of anything else there is no interval over fewer than five groups. And if
    BCa is undefined, because the resamples have no finite value or all the same one, it is the percentile interval of
    the finite resamples.

    Args:
        statistic: function of the arrays, each indexed by the same resampled cases along axis 0; ``np.mean`` of one
            array is computed for all resamples at once.
        arrays: one entry per case along axis 0.
        groups: group of each case; whole groups are resampled.
        confidence: coverage of the interval.
        num_resamples: number of resamples.
        seed: seed for the resampling.

    Returns:
        Lower and upper ends; NaN if there are fewer than ``MIN_GROUPS`` groups, or no resample gives a finite value.

    Raises:
        ValueError: if arrays differ in length, there is no case, or the confidence is outside (0, 1).

    Example:
        >>> low, high = bootstrap_interval(np.mean, np.arange(100.0))
        >>> low < 49.5 < high
        True
    """
    values = [np.asarray(array) for array in arrays]
    lengths = {len(array) for array in values} | ({len(groups)} if groups is not None else set())
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"bootstrap_interval needs arrays of one positive length, got lengths {sorted(lengths)}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is a fraction of the resamples: use a value between 0 and 1.")
    members = list(np.arange(len(values[0]))[:, None]) if groups is None else group_members(groups)
    exact = _exact(statistic, values, members, confidence)
    if exact is not None or len(members) < MIN_GROUPS:
        return exact or (math.nan, math.nan)
    options: dict[str, Any] = {"confidence_level": confidence, "n_resamples": num_resamples, "rng": seed}
    if statistic is not np.mean or len(values) > 1 or values[0].ndim > 1:

        def of_groups(chosen: NDArray[np.int64]) -> float:
            cases = np.concatenate([members[group] for group in chosen])
            return float(statistic(*(array[cases] for array in values)))

        return _bca((np.arange(len(members)),), of_groups, vectorized=False, **options)
    cases = values[0].astype(float)
    sums = np.array([cases[each].sum() for each in members])
    sizes = np.array([float(len(each)) for each in members])
    return _bca((sums, sizes), _ratio_of_sums, vectorized=True, paired=True, **options)


def _exact(
    statistic: Callable[..., float],
    values: Sequence[NDArray[Any]],
    members: Sequence[NDArray[np.int64]],
    confidence: float,
) -> tuple[float, float] | None:
    """Return the interval of Clopper and Pearson with the groups as trials; None unless it is such a proportion."""
    if statistic is not np.mean or len(values) > 1 or values[0].ndim > 1:
        return None
    cases = values[0].astype(float)
    proportion = values[0].dtype == bool or set(cases.tolist()) == {0.0, 1.0}
    if proportion and (len(members) == len(cases) or (cases == cases[0]).all()):
        hits = int(cases.sum()) if len(members) == len(cases) else int(cases[0]) * len(members)
        found = binomtest(hits, len(members)).proportion_ci(confidence, method="exact")
        return float(found.low), float(found.high)
    return None


def _ratio_of_sums(sums: NDArray[np.float64], sizes: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Return the mean over the cases of the drawn groups."""
    return sums.sum(axis) / sizes.sum(axis)


def _bca(data: tuple[NDArray[Any], ...], statistic: Callable[..., Any], **options: Any) -> tuple[float, float]:
    """Return scipy's BCa interval, or if undefined the percentile interval of the finite resamples."""
    confidence = options["confidence_level"]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # degenerate distributions are handled below
        found = bootstrap(data, statistic, method="BCa", **options)
    low, high = found.confidence_interval
    if math.isfinite(low) and math.isfinite(high):
        return float(low), float(high)
    drawn = found.bootstrap_distribution
    finite = drawn[np.isfinite(drawn)]
    if not finite.size:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def groups_of_entered(groups: Groups | None, entered: NDArray[np.bool_]) -> list[Hashable] | None:
    """Return the groups of the cases that ``entered`` (N,), given the groups of all N cases."""
    if groups is None:
        return None
    if len(groups) != len(entered):
        raise ValueError(f"groups has {len(groups)} cases, but the metric has {len(entered)}; give one entry per case.")
    return [group for group, keep in zip(groups, entered, strict=True) if keep]


def interval_of_entered(
    statistic: Callable[..., float],
    *arrays: NDArray[Any],
    entered: NDArray[np.bool_],
    groups: Groups | None = None,
    **options: Any,
) -> tuple[float, float]:
    """Return the `bootstrap_interval` over the cases that ``entered`` (N,); NaN if none. ``groups`` covers all N."""
    kept = groups_of_entered(groups, entered)
    if not entered.any():
        return math.nan, math.nan
    return bootstrap_interval(statistic, *(array[entered] for array in arrays), groups=kept, **options)
