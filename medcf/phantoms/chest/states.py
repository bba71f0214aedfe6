# SPDX-License-Identifier: Apache-2.0
"""The state of a chest: which disease, where, how far and how dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["CLASS_NAMES", "DISEASES", "LARGE", "ChestState", "Disease", "Lobe", "Side"]

Disease = Literal["normal", "lung_opacity", "covid", "viral_pneumonia"]
Side = Literal["left", "right", "both"]
Lobe = Literal["upper", "lower"]

#: Diseases in the order of the class labels.
DISEASES: tuple[Disease, ...] = ("normal", "lung_opacity", "covid", "viral_pneumonia")

#: Names of the class labels 0 to 3.
CLASS_NAMES = ["Normal", "Lung Opacity", "COVID-19", "Viral Pneumonia"]

#: Extent from which an opacity is called large.
LARGE = 0.5


@dataclass(frozen=True)
class ChestState:
    """What a disease changes in a chest.

    Attributes:
        disease: ``"normal"``; ``"lung_opacity"``, one focal consolidation per named side; ``"covid"``, ground glass at
            the periphery of both lungs, mostly below; or ``"viral_pneumonia"``, streaks around both hila.
        side: the patient's side of a lung opacity. The other diseases are in both lungs; normal has none.
        lobe: where a lung opacity is; None is between the two, and no caption names it.
        extent: size of the affected region, from 0 (smallest) to 1 (largest).
        severity: density of the affected region, from 0 (faint) to 1.

    Raises:
        ValueError: if the parts do not fit together.

    Example:
        >>> ChestState("lung_opacity", "left", "lower", extent=0.8).label
        1
    """

    disease: Disease = "normal"
    side: Side | None = None
    lobe: Lobe | None = None
    extent: float = 0.5
    severity: float = 0.7

    def __post_init__(self) -> None:
        if self.disease not in DISEASES:
            raise ValueError(f"disease={self.disease!r}: choose one of {', '.join(DISEASES)}.")
        if self.disease == "lung_opacity":
            if self.side not in ("left", "right", "both"):
                raise ValueError(f"side={self.side!r}: a lung opacity needs the side 'left', 'right' or 'both'.")
            if self.lobe not in (None, "upper", "lower"):
                raise ValueError(f"lobe={self.lobe!r}: choose 'upper', 'lower' or None.")
        elif self.lobe is not None or self.side in ("left", "right"):
            raise ValueError(f"{self.disease} is not on one side or in one lobe: leave side and lobe out.")
        if not (0 <= self.extent <= 1 and 0 <= self.severity <= 1):
            raise ValueError(f"extent={self.extent}, severity={self.severity}: they must be in [0, 1].")

    @property
    def label(self) -> int:
        """Class label, the index in ``DISEASES``."""
        return DISEASES.index(self.disease)

    @property
    def sides(self) -> tuple[Literal["left", "right"], ...]:
        """The affected lungs."""
        if self.disease == "normal":
            return ()
        return (self.side,) if self.side in ("left", "right") else ("right", "left")

    @classmethod
    def draw(cls, rng: np.random.Generator, label: int) -> ChestState:
        """Draw a state of a class: all sides, lobes and extents; severities from 0.35 on, which can be seen."""
        if label not in range(len(DISEASES)):
            raise ValueError(f"label={label!r}: choose 0 to {len(DISEASES) - 1}.")
        extent, severity = float(rng.uniform()), float(rng.uniform(0.35, 1.0))
        side = ("left", "right", "both")[int(rng.choice(3, p=(0.42, 0.42, 0.16)))]
        lobe = ("upper", "lower", None)[int(rng.choice(3, p=(0.4, 0.4, 0.2)))]
        disease = DISEASES[label]
        if disease == "normal":
            return cls()
        if disease == "lung_opacity":
            return cls(disease, side, lobe, extent, severity)  # type: ignore[arg-type]  # str of a tuple of Literals
        return cls(disease, None, None, extent, severity)
