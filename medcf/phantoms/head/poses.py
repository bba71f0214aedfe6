# SPDX-License-Identifier: Apache-2.0
"""Poses of the plane that cuts a head, how to draw them, and the geometry of the cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medcf.phantoms.shapes import Array

__all__ = ["FIELD", "HeadPose", "Plane", "cut", "far_pose", "near_pose", "pixel_grid"]

#: Height and width of the imaged field in mm.
FIELD = (112.0, 140.0)


@dataclass(frozen=True)
class HeadPose:
    """The plane's position in the head, and the quality of the acoustic window.

    Args:
        tilt: degrees about the left-right axis; positive values bring the posterior fossa in.
        roll: degrees about the front-back axis.
        rotation: degrees in the plane, relative to the subject's own position.
        offset: mm along the head's axis, toward the vertex.
        shift: in-plane shift (rows, columns) of the image in mm.
        penetration: 1 for a good acoustic window, 0 for a very poor one.
        shadow: depth in [0, 1] of a shadow cast by something in front of the head.
    """

    tilt: float = 0.0
    roll: float = 0.0
    rotation: float = 0.0
    offset: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    penetration: float = 1.0
    shadow: float = 0.0


@dataclass(frozen=True)
class Plane:
    """A cut through the head and its position in the image.

    Args:
        forward: unit vector of the plane's front-back axis in head coordinates.
        lateral: unit vector of its left-right axis.
        offset: mm along the head's axis.
        center: row and column in mm where the head's axis meets the image.
        cos: cosine of the rotation in the plane.
        sin: sine of that rotation.
        facing: 1 if the forehead is to the right, -1 if to the left.
    """

    forward: tuple[float, float, float]
    lateral: tuple[float, float, float]
    offset: float
    center: tuple[float, float]
    cos: float
    sin: float
    facing: float

    def points(self, row: Array, col: Array) -> tuple[Array, Array, Array]:
        """Return the head coordinates of image positions in mm."""
        dv, du = row - self.center[0], col - self.center[1]
        u = self.facing * (self.cos * du + self.sin * dv)
        v = self.cos * dv - self.sin * du
        (fx, fy, fz), (lx, ly, lz) = self.forward, self.lateral
        return u * fx + v * lx, u * fy + v * ly, u * fz + v * lz + self.offset

    def incidence(self, normal: tuple[Array, Array, Array], row: Array, col: Array) -> Array:
        """Return the absolute cosine between a surface normal in head coordinates and a direction in the image."""
        nx, ny, nz = normal
        (fx, fy, fz), (lx, ly, lz) = self.forward, self.lateral
        n_u, n_v = nx * fx + ny * fy + nz * fz, nx * lx + ny * ly + nz * lz
        n_row = self.facing * self.sin * n_u + self.cos * n_v
        n_col = self.facing * self.cos * n_u - self.sin * n_v
        return np.abs(n_row * row + n_col * col)


def cut(pose: HeadPose, rotation: float, facing: float, center: tuple[float, float]) -> Plane:
    """Return the cut of a pose through a body.

    Args:
        pose: the plane, relative to the body's own position.
        rotation: the body's rotation in the image in degrees.
        facing: 1 if its front is to the right, -1 if to the left.
        center: row and column in mm of its center before the pose's shift.

    Returns:
        The cut.
    """
    tilt, roll = np.deg2rad(pose.tilt), np.deg2rad(pose.roll)
    turn = np.deg2rad(rotation + pose.rotation)
    forward = (0.0, float(np.cos(tilt)), float(np.sin(tilt)))
    lateral = (float(np.cos(roll)), float(-np.sin(tilt) * np.sin(roll)), float(np.cos(tilt) * np.sin(roll)))
    center = (center[0] + pose.shift[0], center[1] + pose.shift[1])
    return Plane(forward, lateral, pose.offset, center, float(np.cos(turn)), float(np.sin(turn)), facing)


def pixel_grid(size: tuple[int, int], spacing: float) -> tuple[Array, Array]:
    """Return rows and columns in mm of an image's pixel centers, relative to the center of the field."""
    row = (np.arange(size[0]) + 0.5 - size[0] / 2) * spacing + FIELD[0] / 2
    col = (np.arange(size[1]) + 0.5 - size[1] / 2) * spacing + FIELD[1] / 2
    grid_row, grid_col = np.meshgrid(row, col, indexing="ij")
    return grid_row, grid_col


def _jitter(rng: np.random.Generator) -> dict[str, float | tuple[float, float]]:
    """Draw the variations between any two images of one head."""
    shift = (float(rng.normal(0.0, 0.8)), float(rng.normal(0.0, 0.8)))
    return {"rotation": float(rng.normal(0.0, 1.2)), "shift": shift}


def near_pose(rng: np.random.Generator) -> HeadPose:
    """Draw a pose close to the standard plane."""
    return HeadPose(
        tilt=float(rng.normal(0.0, 1.8)),
        roll=float(rng.normal(0.0, 2.2)),
        offset=float(rng.normal(0.0, 1.0)),
        penetration=float(rng.uniform(0.78, 1.0)),
        shadow=float(rng.uniform(0.0, 0.15)),
        **_jitter(rng),  # type: ignore[arg-type]
    )


def far_pose(rng: np.random.Generator) -> HeadPose:
    """Draw a pose anywhere from nearly standard to far off; most are moderate."""
    kind = rng.random()
    tilt, offset = float(rng.normal(0.0, 3.0)), float(rng.normal(0.0, 1.5))
    if kind < 0.55:  # toward the transcerebellar plane, the most common error
        tilt = float(rng.uniform(6.0, 32.0))
    elif kind < 0.75:  # too high: toward the transventricular plane
        offset = float(rng.uniform(6.0, 22.0))
    elif kind < 0.85:  # too low: toward the skull base
        offset = float(rng.uniform(-22.0, -6.0))
    else:  # tilted the other way
        tilt = float(rng.uniform(-24.0, -7.0))
    return HeadPose(
        tilt=tilt,
        roll=float(rng.normal(0.0, 7.0)),
        offset=offset,
        penetration=float(rng.uniform(0.6, 1.0)),
        shadow=float(max(0.0, rng.normal(-0.1, 0.3))) if rng.random() < 0.5 else float(rng.uniform(0.0, 0.15)),
        **_jitter(rng),  # type: ignore[arg-type]
    )
