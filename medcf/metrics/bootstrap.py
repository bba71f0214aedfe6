# SPDX-License-Identifier: Apache-2.0
"""Intervals of any statistic by resampling cases or whole subjects."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["bootstrap_interval", "group_members", "groups_of_entered", "half_sampled_indices", "interval_of_entered"]

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


def groups_of_entered(groups: Groups | None, entered: NDArray[np.bool_]) -> list[Hashable] | None:
    """Return the groups of the cases that ``entered`` (N,), from those of all N cases."""
    if groups is None:
        return None
    if len(groups) != len(entered):
        raise ValueError(f"groups names {len(groups)} cases, the metric has {len(entered)}; give one entry per case.")
    return [group for group, keep in zip(groups, entered, strict=True) if keep]


def interval_of_entered(
    statistic: Callable[..., float],
    *arrays: NDArray[Any],
    entered: NDArray[np.bool_],
    groups: Groups | None = None,
    **options: Any,
) -> tuple[float, float]:
    """Return the `bootstrap_interval` over the cases that ``entered`` (N,), NaN without any; ``groups`` names all N."""
    kept = groups_of_entered(groups, entered)
    if not entered.any():
        return math.nan, math.nan
    return bootstrap_interval(statistic, *(array[entered] for array in arrays), groups=kept, **options)
