# SPDX-License-Identifier: Apache-2.0
"""The classes of planes, and how one plane of an examination is held."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["COUNTS", "PLANE_NAMES", "VARIANTS", "PlaneState"]

#: Names of the class labels 0 to 5.
PLANE_NAMES = ("abdomen", "brain", "femur", "thorax", "cervix", "other")

#: Images of each class in FETAL_PLANES_DB (Burgos-Artizzu et al., Sci Rep 2020), in the order of the labels.
COUNTS = (711, 3092, 1040, 1718, 1626, 4213)

#: What each class can show, with the probability of each.
VARIANTS: dict[str, dict[str, float]] = {
    "abdomen": {"stomach": 1.0},
    "brain": {"transthalamic": 0.55, "transventricular": 0.2, "transcerebellar": 0.25},
    "femur": {"femur": 1.0},
    "thorax": {"four_chambers": 1.0},
    "cervix": {"cervix": 1.0},
    "other": {"limbs": 0.2, "profile": 0.2, "spine": 0.15, "kidneys": 0.15, "placenta": 0.2, "vessel": 0.1},
}


@dataclass(frozen=True)
class PlaneState:
    """One plane of a subject's examination: everything that is the same on every scanner, except the subject.

    Attributes:
        label: class label, the index in ``PLANE_NAMES``.
        variant: a key of the class's ``VARIANTS``.
        tilt: degrees by which the plane misses the ideal one.
        offset: the same along the body's axis, -1 to 1.
        rotation: degrees in the plane.
        facing: 1, or -1 for the mirror image.
        shift: position (row, column) of the anatomy in mm, relative to the middle of the picture.
        zoom: size of the anatomy in the picture, relative to what is usual for the class.
        framing: 0 to 1; a site with share s of whole sectors shows the whole sector if this is less than s.
        penetration: 1 for a good acoustic window, 0 for a very poor one.
        shadow: depth in [0, 1] of a shadow cast by something in front of the anatomy.

    Raises:
        ValueError: if the label or the variant does not exist.
    """

    label: int = 0
    variant: str = "stomach"
    tilt: float = 0.0
    offset: float = 0.0
    rotation: float = 0.0
    facing: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    framing: float = 0.5
    penetration: float = 1.0
    shadow: float = 0.0

    def __post_init__(self) -> None:
        if self.label not in range(len(PLANE_NAMES)):
            raise ValueError(f"label={self.label!r}: choose 0 to {len(PLANE_NAMES) - 1}.")
        if self.variant not in VARIANTS[self.name]:
            raise ValueError(f"variant={self.variant!r}: {self.name} has {', '.join(VARIANTS[self.name])}.")

    @property
    def name(self) -> str:
        """Name of the class."""
        return PLANE_NAMES[self.label]

    @classmethod
    def draw(cls, rng: np.random.Generator, label: int) -> PlaneState:
        """Draw a plane of a class.

        Args:
            rng: source of randomness.
            label: class label, the index in ``PLANE_NAMES``.

        Returns:
            The plane.

        Raises:
            ValueError: if the label does not exist.
        """
        if label not in range(len(PLANE_NAMES)):
            raise ValueError(f"label={label!r}: choose 0 to {len(PLANE_NAMES) - 1}.")
        name = PLANE_NAMES[label]
        shares = VARIANTS[name]
        variant = tuple(shares)[int(rng.choice(len(shares), p=tuple(shares.values())))]
        return cls(
            label=int(label),
            variant=variant,
            tilt=float(rng.normal(0.0, 2.5)),
            offset=float(np.clip(rng.normal(0.0, 0.45), -1.0, 1.0)),
            rotation=_rotation(rng, variant),
            facing=1.0 if rng.random() < 0.5 else -1.0,
            shift=(float(rng.normal(0.0, 2.5)), float(rng.normal(0.0, 4.0))),
            zoom=float(np.exp(rng.normal(0.0, 0.14))),
            framing=float(rng.random()),
            penetration=float(1.0 - 0.5 * rng.random() ** 2),
            shadow=float(max(0.0, rng.normal(-0.05, 0.35))),
        )


def _rotation(rng: np.random.Generator, variant: str) -> float:
    """Draw the angle in the plane: bodies lie in any way, the spine rarely toward the probe; long bones lie flat."""
    if variant in ("stomach", "four_chambers", "kidneys"):
        return float((-75.0, 0.0, 75.0)[int(rng.integers(3))] + rng.normal(0.0, 22.0))
    spread = {"cervix": 6.0, "vessel": 3.0, "femur": 13.0, "limbs": 22.0}.get(variant, 11.0)
    return float(rng.normal(0.0, spread))
