# SPDX-License-Identifier: Apache-2.0
"""The X-ray machine: attenuation, scatter, the display's curve, blur, grain, collimation and the marker of the side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from medcf.phantoms.chest.anatomy import Array, coverage

__all__ = ["BONE", "METAL", "TISSUE", "XrayMachine"]

#: Linear attenuation per mm at about 70 keV: soft tissue and fluid; bone in addition to tissue; metal.
TISSUE, BONE, METAL = 0.0185, 0.038, 0.9

_LETTERS = {
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
}


@dataclass(frozen=True)
class XrayMachine:
    """One subject's acquisition.

    Attributes:
        low, high: attenuation shown as black and as white.
        compression: share of the large-scale contrast that the display processing takes away.
        gamma: exponent of the display's curve.
        scatter: scattered over direct radiation.
        blur: standard deviation of the detector's blur in mm.
        grain: standard deviation of the noise in display units, in the lungs, for pixels of 2.8 mm.
        collimation: dark borders at the top, right, bottom and left, as a fraction of the field.
        marker: "R", "L" or "".
        marker_place: distance of the marker from the midline and from the center's height, relative to the field.
        marker_mm: height of the letter in mm.
    """

    low: float
    high: float
    compression: float
    gamma: float
    scatter: float
    blur: float
    grain: float
    collimation: tuple[float, float, float, float]
    marker: str
    marker_place: tuple[float, float]
    marker_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> XrayMachine:
        """Draw an acquisition."""
        compression = float(rng.uniform(0.25, 0.6))
        low = float(rng.uniform(0.0, 0.5)) * (1.0 - compression)
        borders = rng.uniform(0.0, 0.07, 4) * (rng.random(4) < 0.25)
        return cls(
            low=low,
            high=low + float(rng.uniform(3.3, 4.5)) * (1.0 - 0.7 * compression),
            compression=compression,
            gamma=float(rng.uniform(0.8, 1.2)),
            scatter=float(rng.uniform(0.05, 0.3)),
            blur=float(rng.uniform(0.4, 1.2)),
            grain=float(rng.uniform(0.001, 0.0035)),
            collimation=(float(borders[0]), float(borders[1]), float(borders[2]), float(borders[3])),
            marker=("R", "L", "")[int(rng.choice(3, p=(0.45, 0.15, 0.4)))],
            marker_place=(float(rng.uniform(0.4, 0.46)), float(rng.uniform(-0.46, 0.2))),
            marker_mm=float(rng.uniform(13.0, 20.0)),
        )

    def scattered(self, attenuation: Array, pixel: float) -> Array:
        """Return the scattered radiation relative to the unattenuated beam, (H, W)."""
        direct = np.exp(-np.maximum(attenuation, 1.2))  # scatter comes from the patient, not from the air
        return self.scatter * _wide(direct, 28.0, pixel)

    def background(self, attenuation: Array, pixel: float) -> Array:
        """Return the large-scale attenuation that the display processing takes away, (H, W).

        Taken from the chest without disease, as the scatter is, so that a lesion changes no pixel beside it.
        """
        return self.compression * _wide(np.clip(attenuation, 1.0, 5.0), 22.0, pixel)

    def develop(self, attenuation: Array, scattered: Array, background: Array, noise: Array, pixel: float) -> Array:
        """Turn attenuation into gray values.

        Args:
            attenuation: (H, W) integral along the beam.
            scattered: (H, W) result of `scattered`.
            background: (H, W) result of `background`.
            noise: (H, W) standard normal numbers.
            pixel: mm between pixels, of an adult.

        Returns:
            Gray values in [0, 1], bones bright.
        """
        seen = -np.log(np.exp(-attenuation) + scattered) + np.log1p(self.scatter * np.float32(0.3)) - background
        shown = np.clip((seen - self.low) / (self.high - self.low), 0.0, 1.25)
        # white is approached slowly, as on a film
        shown = np.where(shown > 0.8, 0.8 + 0.2 * np.tanh((shown - 0.8) / 0.2), shown) ** self.gamma
        # fewer photons arrive behind dense parts
        grain = self.grain * np.sqrt(2.8 / pixel) * (0.5 + np.exp(0.35 * (attenuation - 2.0)))
        return np.clip(shown + grain * noise * (shown > 0.002), 0.0, 1.0)

    def open_field(self, across: Array, down: Array, pixel: float) -> Array:
        """Return the share of the field that is not covered by the collimator; coordinates in [-0.5, 0.5]."""
        top, right, bottom, left = self.collimation
        edge = np.maximum(
            np.maximum(left - 0.5 - across, across - 0.5 + right), np.maximum(top - 0.5 - down, down - 0.5 + bottom)
        )
        covered = coverage(edge, pixel)
        return covered if any(self.collimation) else np.ones_like(covered)

    def marker_thickness(self, across: Array, down: Array, field: float) -> Array:
        """Return the thickness in mm of the lead letter beside the side that it names; coordinates in [-0.5, 0.5]."""
        result = np.zeros(np.broadcast_shapes(across.shape, down.shape), np.float32)
        if not self.marker:
            return result
        letter = np.array([[int(bit) for bit in row] for row in _LETTERS[self.marker]], np.float32)
        cell = self.marker_mm / len(letter)
        center = (-1 if self.marker == "R" else 1) * self.marker_place[0]
        col = np.floor((across - center) * field / cell + 2.5).astype(np.intp)
        row = np.floor((down - self.marker_place[1]) * field / cell + 3.5).astype(np.intp)
        inside = (col >= 0) & (col < 5) & (row >= 0) & (row < 7)
        row, col = np.broadcast_arrays(np.clip(row, 0, 6), np.clip(col, 0, 4))
        return np.where(inside, 2.5 * letter[row, col], result)


def _wide(array: Array, sigma: float, pixel: float) -> Array:
    """Blur by a Gaussian of sigma mm, on a coarse grid."""
    factor = max(round(10.0 / pixel), 1)
    rows, cols = (max(n // factor, 1) for n in array.shape)
    coarse = array[: rows * factor, : cols * factor].reshape(rows, factor, cols, factor).mean(axis=(1, 3))
    wide = gaussian_filter(coarse, sigma / (factor * pixel), mode="nearest")
    full = _between(array.shape[0], rows, factor) @ wide @ _between(array.shape[1], cols, factor).T
    return full.astype(np.float32)


@lru_cache(maxsize=16)
def _between(fine: int, coarse: int, factor: int) -> Array:
    """Return the matrix (fine, coarse) that interpolates linearly between the centers of blocks."""
    where = np.clip((np.arange(fine) + 0.5) / factor - 0.5, 0.0, coarse - 1.0)
    return np.maximum(1.0 - np.abs(where[:, None] - np.arange(coarse)), 0.0).astype(np.float32)
