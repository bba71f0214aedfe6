# SPDX-License-Identifier: Apache-2.0
"""Quality criteria for the transthalamic plane as smooth scores, based on the ISUOG and Salomon (2006) checklists.

Areas are compared with those in the subject's own standard plane, so a small head does not count as a poor plane.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medcf.phantoms.head.anatomy import Array

__all__ = ["CONCEPTS", "QUALITY_THRESHOLD", "fossa_absence", "plane_quality", "ramp", "symmetry"]

#: Concepts in tensor order, with their weights in the quality.
CONCEPTS: dict[str, float] = {
    "thalami": 1.0,
    "cavum": 1.0,
    "fossa_absent": 0.8,
    "symmetry": 0.7,
    "skull": 0.5,
    "magnification": 0.3,
    "window": 0.5,
}

#: A plane with at least this quality is a standard plane (label 1).
QUALITY_THRESHOLD = 0.75

_FLOOR = 0.05  # a missing concept reduces the quality strongly, but not to zero


def ramp(value: float, low: float, high: float) -> float:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return share * share * (3.0 - 2.0 * share)


def symmetry(roll: float, offset: float) -> float:
    """Score a central, symmetric midline: falls with the roll in degrees and, slowly, with the offset in mm."""
    return float(np.exp(-0.5 * (roll / 9.0) ** 2 - 0.5 * (offset / 25.0) ** 2))


def fossa_absence(area: float, head_area: float) -> float:
    """Return 1 without posterior fossa, 0 if it fills 9 % of the head or more."""
    return 1.0 - ramp(area / head_area, 0.0, 0.09)


def plane_quality(concepts: Mapping[str, float]) -> float:
    """Return the overall quality: the average of the concepts' weighted arithmetic and weighted geometric means.

    The geometric part makes a single missing structure matter; the arithmetic part distinguishes far-off planes.

    Args:
        concepts: score of each concept in ``CONCEPTS``.

    Returns:
        A value in [0, 1].
    """
    weights: Array = np.array(list(CONCEPTS.values()))
    scores: Array = np.array([concepts[name] for name in CONCEPTS])
    arithmetic = float((weights * scores).sum() / weights.sum())
    geometric = float(np.exp((weights * np.log(np.maximum(scores, _FLOOR))).sum() / weights.sum()))
    return 0.5 * arithmetic + 0.5 * geometric
