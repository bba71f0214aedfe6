# SPDX-License-Identifier: Apache-2.0
"""Intervals: of any statistic by resampling cases or whole subjects, of a proportion by the binomial distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

__all__ = ["bootstrap_interval", "group_members", "half_sampled_indices", "proportion_interval"]

Groups = Sequence[Hashable] | NDArray[Any]


def group_members(groups: Groups) -> list[NDArray[np.int64]]:
    """Return the case numbers of each group, from whose case each is (one entry per case)."""
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
    """Percentile bootstrap (Efron & Tibshirani 1993, chapter 13) over cases or groups of cases.

    Args:
        statistic: function of the arrays, each indexed by the same resampled cases along axis 0.
        arrays: one entry per case along axis 0.
        groups: whose case it is; whole groups are resampled.
        confidence: share of the resamples inside the interval.
        num_resamples: number of resamples.
        seed: seed of the resampling.

    Returns:
        Lower and upper end; NaN where no resample gives a finite value.

    Raises:
        ValueError: arrays of different lengths, no case, or a confidence outside (0, 1).

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
        raise ValueError(f"confidence={confidence} is a share of the resamples: use a value between 0 and 1.")
    rng = np.random.default_rng(seed)
    members = None if groups is None else group_members(groups)
    count = len(values[0]) if members is None else len(members)
    drawn = []
    for _ in range(num_resamples):
        chosen = rng.integers(0, count, count)
        if members is not None:
            chosen = np.concatenate([members[group] for group in chosen])
        result = float(statistic(*(array[chosen] for array in values)))
        if math.isfinite(result):
            drawn.append(result)
    if not drawn:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def proportion_interval(
    hits: ArrayLike, *, groups: Groups | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper & Pearson 1934), which does not claim certainty where all cases agree.

    Args:
        hits: 0 or 1, one entry per case.
        groups: whose case it is; the cases must be independent, so each group may give one.
        confidence: coverage of the interval.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: no case, other values, a group with several cases, or a confidence outside (0, 1).

    Example:
        >>> low, high = proportion_interval([1] * 64)
        >>> round(low, 3), high
        (0.944, 1.0)
    """
    values = np.asarray(hits, dtype=float)
    if not len(values) or not np.isin(values, (0, 1)).all():
        raise ValueError("proportion_interval needs at least one case, each 0 or 1; use bootstrap_interval for others.")
    if groups is not None and len({str(group) for group in groups}) < len(values):
        raise ValueError("proportion_interval needs one case per group; bootstrap_interval resamples whole groups.")
    interval = binomtest(int(values.sum()), len(values)).proportion_ci(confidence)
    return float(interval.low), float(interval.high)
