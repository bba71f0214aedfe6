# SPDX-License-Identifier: Apache-2.0
"""Figures for few subjects: intervals by bootstrap over subjects, and chance levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcf.metrics.bootstrap import bootstrap_interval

__all__ = ["balanced_accuracy", "bootstrap", "chance_of_reidentification", "share"]


def balanced_accuracy(truth: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Mean of the recalls of the classes that occur in ``truth``."""
    return float(np.mean([(predicted[truth == label] == label).mean() for label in np.unique(truth)]))


def bootstrap(
    statistic: Callable[..., float],
    arrays: Sequence[Any],
    subjects: Sequence[str],
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[float]:
    """Interval of a statistic when whole subjects are drawn with replacement, see `bootstrap_interval`.

    Images of one subject resemble each other, so that drawing images would give too narrow an interval.

    Args:
        statistic: takes as many arrays as ``arrays`` holds.
        arrays: one entry an image.
        subjects: whose image it is.
        draws: bootstrap samples; those in which the statistic is not defined are dropped.
        level: coverage.
        seed: seed of the draws.

    Returns:
        Lower and upper end.
    """
    return list(
        bootstrap_interval(statistic, *arrays, groups=subjects, confidence=level, num_resamples=draws, seed=seed)
    )


def chance_of_reidentification(subjects: Sequence[str], k: int) -> float:
    """Share of queries that k random images of the gallery would re-identify, where queries and gallery match."""
    total = len(subjects)
    k = min(k, total)
    counts = [list(subjects).count(name) for name in subjects]
    return float(np.mean([1 - comb(total - count, k) / comb(total, k) for count in counts]))


def share(hits: Sequence[Any], subjects: Sequence[str]) -> dict[str, Any]:
    """Count hits: ``count``, ``of``, ``share`` and its ``interval`` over subjects.

    Where there is none, no share and no interval either.
    """
    values = np.asarray(hits, dtype=bool)
    result: dict[str, Any] = {"count": int(values.sum()), "of": len(values)}
    if len(values):
        result["share"] = float(values.mean())
        result["interval"] = bootstrap(np.mean, [values], subjects)
    return result
