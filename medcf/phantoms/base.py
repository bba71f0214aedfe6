# SPDX-License-Identifier: Apache-2.0
"""The result of every 2D phantom, and the interface of a phantom subject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["PhantomSample", "PhantomSubject"]


@dataclass(frozen=True)
class PhantomSample:
    """One rendered image with its complete ground truth.

    Args:
        image: (H, W) float32 in [0, 1], multiples of 1/255.
        segmentation: (H, W) uint8; each phantom documents its labels.
        concepts: name of each concept to its score in [0, 1], in a fixed order.
        quality: overall quality of the plane in [0, 1].
        label: class index.
        spacing_mm: distances between rows and between columns in mm.
        hc_mm: head circumference in the plane in mm.
        bpd_mm: biparietal diameter (outer to outer) in the plane in mm.
        subject: seed of the subject.
        pose: the state that was rendered.
    """

    image: NDArray[np.float32]
    segmentation: NDArray[np.uint8]
    concepts: dict[str, float]
    quality: float
    label: int
    spacing_mm: tuple[float, float]
    hc_mm: float
    bpd_mm: float
    subject: int
    pose: Any


class PhantomSubject(Protocol):
    """A seeded subject that can be imaged in any pose."""

    seed: int

    def sample_pose(self, rng: np.random.Generator, label: int) -> Any:
        """Draw a pose whose image belongs to class ``label``."""
        ...

    def render(
        self,
        pose: Any = None,
        *,
        seed: int = 0,
        size: tuple[int, int] = (128, 160),
        spacing: float = 0.875,
        overlays: bool = False,
    ) -> PhantomSample:
        """Image the subject; ``seed`` changes only the speckle."""
        ...
