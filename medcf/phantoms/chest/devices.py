# SPDX-License-Identifier: Apache-2.0
"""Things that are not the patient: a pacemaker with its lead, or wires and electrodes on the skin."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

from medcf.phantoms.chest.anatomy import Array

__all__ = ["DEVICES", "Device", "device_thickness"]

Device = Literal["pacemaker", "wires"]

#: Devices that a chest can be rendered with.
DEVICES: tuple[Device, ...] = ("pacemaker", "wires")


def device_thickness(device: Device, subject: int, x: Array, y: Array, pixel: float) -> Array:
    """Return the thickness of metal in mm, (H, W).

    Args:
        device: one of ``DEVICES``. Its place belongs to the subject and has nothing to do with any disease.
        subject: seed of the subject.
        x: (H, W) mm of an adult, to the patient's left.
        y: (H, W) mm of an adult, down.
        pixel: mm between grid points.

    Raises:
        ValueError: if the device is unknown.
    """
    if device not in DEVICES:
        raise ValueError(f"device={device!r}: choose one of {', '.join(DEVICES)}, or None.")
    key = [0xDE71, subject, DEVICES.index(device)]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
    x, y = np.broadcast_arrays(x, y)
    if device == "wires":
        return _wires(rng, x, y, pixel)
    return _pacemaker(rng, x, y, pixel)


def _pacemaker(rng: np.random.Generator, x: Array, y: Array, pixel: float) -> Array:
    """A generator below a clavicle, more often the left one, and a lead through the veins to the right ventricle."""
    side = 1.0 if rng.random() < 0.85 else -1.0
    cx, cy = side * rng.uniform(76.0, 96.0), rng.uniform(-74.0, -54.0)
    angle, half = rng.normal(0.0, 0.3), rng.uniform(19.0, 24.0)
    dx, dy = x - cx, y - cy
    across, down = np.abs(dx * np.cos(angle) + dy * np.sin(angle)), np.abs(dy * np.cos(angle) - dx * np.sin(angle))
    inside = 1.0 - (across / half) ** 3 - (down / (0.82 * half)) ** 3
    case = 3.2 * np.clip(inside / 0.12, 0.0, 1.0) * (0.75 + 0.25 * (inside < 0.45))
    bends = [
        (cx - side * 0.8 * half, cy - 0.6 * half),
        (side * 40.0, -96.0 + rng.normal(0.0, 3.0)),
        (-16.0, -62.0),
        (-24.0 + rng.normal(0.0, 3.0), 8.0),
        (-4.0, 56.0),
        (38.0 + rng.normal(0.0, 5.0), 66.0 + rng.normal(0.0, 4.0)),
    ]
    return np.maximum(case, _tube(np.array(bends), 1.3, x, y, pixel)).astype(np.float32)


def _wires(rng: np.random.Generator, x: Array, y: Array, pixel: float) -> Array:
    """Three or four electrodes with wires that leave the field at the top or the side."""
    metal = np.zeros(x.shape, np.float32)
    for _ in range(int(rng.integers(3, 5))):
        cx, cy = rng.uniform(-115.0, 115.0), rng.uniform(-80.0, 70.0)
        metal = np.maximum(metal, 1.4 * np.clip((6.0 - np.hypot(x - cx, y - cy)) / max(pixel, 1.0) + 0.5, 0.0, 1.0))
        exit_x = np.sign(cx) * rng.uniform(90.0, 200.0)
        bends = [
            (cx, cy),
            (cx + rng.normal(0.0, 22.0), cy - 35.0 + rng.normal(0.0, 12.0)),
            (0.5 * (cx + exit_x) + rng.normal(0.0, 18.0), -100.0 + rng.normal(0.0, 20.0)),
            (exit_x, -215.0),
        ]
        metal = np.maximum(metal, _tube(np.array(bends), 0.9, x, y, pixel))
    return metal


def _tube(bends: Array, radius: float, x: Array, y: Array, pixel: float) -> Array:
    """A wire through the given points; one that is thinner than a pixel is spread over it."""
    steps = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(bends, axis=0), axis=1))])
    path = CubicSpline(steps, bends)(np.arange(0.0, steps[-1], 1.0))
    width = max(radius, 0.75 * pixel)
    away = cKDTree(path).query(np.stack([x.ravel(), y.ravel()], 1), distance_upper_bound=2 * width)[0]
    away = np.minimum(away, 2 * width).reshape(x.shape)
    chord = np.sqrt(np.clip(1.0 - (away / width) ** 2, 0.0, 1.0))
    return (2.0 * radius * min(radius / width, 1.0) * chord).astype(np.float32)
