# SPDX-License-Identifier: Apache-2.0
"""B-mode imaging of an analytic scene by a curved array: sector geometry, attenuation, speckle, log compression.

Everything is computed on beams (depth by line), where shadows are sums along a column and the point spread function is
the same everywhere; the last step converts beams to pixels. Speckle is the envelope of complex Gaussian scatterers
under a Gaussian pulse (Goodman 1975; Wagner et al. 1983), averaged over several looks as in compounding scanners.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medcf.phantoms.shapes import Array

__all__ = ["BeamGrid", "Scanner"]


@dataclass(frozen=True)
class Scanner:
    """Settings of the machine and of the maternal tissue in front of it; constant for one subject.

    Args:
        radius: radius of curvature of the probe in mm.
        half_angle: half the opening angle of the sector in radians.
        depth: imaged depth in mm.
        gain: overall gain in dB.
        dynamic_range: displayed range in dB.
        gamma: exponent of the gray map.
        tgc: residual slope of the time-gain compensation in dB per mm.
        axial: standard deviation of the pulse along the beam in mm.
        lateral: standard deviation of the beam's width in lines.
        bone: attenuation of bone in dB per mm (both ways).
        haze: level of near-field reverberation, relative to a skull at normal incidence.
        looks: independent views that the scanner averages (compounding); more of them leave less speckle.
    """

    radius: float
    half_angle: float
    depth: float
    gain: float
    dynamic_range: float
    gamma: float
    tgc: float
    axial: float
    lateral: float
    bone: float
    haze: float
    looks: int = 2

    @classmethod
    def draw(cls, rng: np.random.Generator, depth: float) -> Scanner:
        """Draw the settings of a machine with the given imaging depth in mm."""
        return cls(
            radius=rng.uniform(42.0, 62.0),
            half_angle=np.deg2rad(rng.uniform(31.0, 40.0)),
            depth=depth,
            gain=rng.uniform(-3.0, 3.0),
            dynamic_range=rng.uniform(52.0, 64.0),
            gamma=rng.uniform(1.3, 1.8),
            tgc=rng.uniform(-0.05, 0.03),
            axial=rng.uniform(0.40, 0.60),
            lateral=rng.uniform(0.9, 1.5),
            bone=rng.uniform(0.9, 1.5),
            haze=rng.uniform(0.008, 0.022),
        )


class BeamGrid:
    """Samples of a sector scan in image coordinates.

    Args:
        scanner: the settings.
        apex: image position (row, column) in mm of the center of the probe's face.
        shape: samples along a beam, and beams across the sector.
    """

    def __init__(self, scanner: Scanner, apex: tuple[float, float], shape: tuple[int, int] = (232, 136)) -> None:
        self.scanner = scanner
        self.apex = apex
        self.shape = shape
        self.depth: Array = (np.arange(shape[0], dtype=np.float64) + 0.5) * (scanner.depth / shape[0])
        self.angle: Array = np.linspace(-scanner.half_angle, scanner.half_angle, shape[1], dtype=np.float64)
        distance = scanner.radius + self.depth[:, None]
        self.beam_row: Array = np.cos(self.angle)[None, :]
        self.beam_col: Array = np.sin(self.angle)[None, :]
        self.row: Array = apex[0] - scanner.radius + distance * self.beam_row
        self.col: Array = apex[1] + distance * self.beam_col

    def locate(self, row: Array, col: Array) -> tuple[Array, Array]:
        """Return depth in mm and angle in radians for image positions in mm."""
        y = row - (self.apex[0] - self.scanner.radius)
        x = col - self.apex[1]
        return np.sqrt(x * x + y * y) - self.scanner.radius, np.arctan2(x, y)

    def inside(self, row: Array, col: Array) -> NDArray[np.bool_]:
        """Return whether image positions in mm are within the sector (Boolean)."""
        depth, angle = self.locate(row, col)
        return (depth >= 0) & (depth <= self.scanner.depth) & (np.abs(angle) <= self.scanner.half_angle)

    def accumulate(self, loss: Array) -> Array:
        """Return the loss in dB accumulated up to each sample, given a loss in dB per mm at each sample."""
        step = self.scanner.depth / self.shape[0]
        return np.cumsum(loss, axis=0) * step - 0.5 * loss * step

    def envelope(self, scatter: Array, specular: Array, rng: np.random.Generator) -> Array:
        """Return the envelope of the received echoes.

        Args:
            scatter: amplitude of diffuse backscatter at each sample.
            specular: amplitude of smooth interfaces at each sample.
            rng: source of the speckle.

        Returns:
            Amplitude at each sample, same units.
        """
        axial = self.scanner.axial * self.shape[0] / self.scanner.depth
        lateral = self.scanner.lateral
        field = scatter * rng.standard_normal((2 * self.scanner.looks, *self.shape))
        field = ndimage.gaussian_filter1d(field, axial, axis=1, mode="nearest", truncate=3.0)
        field = ndimage.gaussian_filter1d(field, lateral, axis=2, mode="nearest", truncate=3.0)
        # Fraction of white noise energy kept by the pulse: 1 / (4 pi s_axial s_lateral).
        power = (field * field).sum(axis=0) * (4 * np.pi * axial * lateral) / (2 * self.scanner.looks)
        smooth = ndimage.gaussian_filter1d(specular, 0.8, axis=1, mode="nearest")
        # Interfaces are rough at the scale of the wavelength, so they carry their own speckle.
        grain = np.sqrt(power) / (scatter + 1e-6)
        smooth = smooth * (0.65 + 0.35 * np.clip(grain, 0.0, 2.0))
        return np.sqrt(power + smooth * smooth)

    def compress(self, envelope: Array) -> Array:
        """Compress logarithmically to gray values in [0, 1]."""
        scanner = self.scanner
        level = 20.0 * np.log10(envelope + 1e-7) + scanner.gain
        return np.clip(1.0 + level / scanner.dynamic_range, 0.0, 1.0) ** scanner.gamma

    def scan_convert(self, gray: Array, row: Array, col: Array) -> Array:
        """Return the gray values of pixels.

        Args:
            gray: values on the beams.
            row: vertical pixel positions in mm.
            col: horizontal pixel positions in mm.

        Returns:
            Values in [0, 1], 0 outside the sector, in the shape of ``row``.
        """
        depth, angle = self.locate(row, col)
        scanner = self.scanner
        nodes = np.stack(
            [
                depth * (self.shape[0] / scanner.depth) - 0.5,
                (angle / scanner.half_angle + 1.0) * ((self.shape[1] - 1) / 2),
            ]
        )
        pixels = ndimage.map_coordinates(gray, nodes, order=1, mode="nearest")
        edge = np.clip((scanner.half_angle - np.abs(angle)) * (scanner.radius + depth) / 0.9 + 0.5, 0.0, 1.0)
        near = np.clip(depth / 0.9 + 0.5, 0.0, 1.0) * np.clip((scanner.depth - depth) / 0.9 + 0.5, 0.0, 1.0)
        return pixels * edge * near
