# SPDX-License-Identifier: Apache-2.0
"""Long bones: the femur in its standard plane, and other limbs."""

from __future__ import annotations

import numpy as np

from medcf.phantoms.planes.fetus import Fetus
from medcf.phantoms.planes.scene import Scene
from medcf.phantoms.planes.states import PlaneState
from medcf.phantoms.shapes import Array, ellipse, tube

__all__ = ["femur", "limbs"]


def femur(scene: Scene, fetus: Fetus, state: PlaneState) -> None:
    """Paint the thigh along the femur, whose near surface is bright and whose shadow hides what is behind it."""
    half, q = fetus.sizes["fl"] / 2, fetus.variation
    thick = half * 0.055 * q[0] + 0.5
    flesh = half * 0.40 * q[1]
    bow = 0.09 * half * (scene.x / half) ** 2 * q[2]
    y = scene.y - bow
    thigh = np.minimum(
        ellipse(scene.x, y, (0.0, 0.10 * flesh), (half * 1.22, flesh * 1.12)),
        ellipse(scene.x, y, (-1.15 * half, 0.15 * flesh), (half * 0.75, flesh * 1.5), 25.0 * q[3]),
    )
    scene.surround(thigh)
    scene.fill("thigh", thigh, 0.011, grain=0.7)
    _muscle(scene, y, thigh, half)
    scene.line(thigh, 0.12, width=0.8)
    for end in (-1.0, 1.0):  # cartilage of knee and hip
        cartilage = ellipse(scene.x, y, (end * 1.13 * half, 0.0), (0.16 * half * q[4], 0.13 * half * q[5]))
        scene.fill(None, cartilage, 0.006, grain=0.2, edge=1.2)
        scene.line(cartilage, 0.05)
    flare = 1.0 + 0.45 * np.clip(np.abs(scene.x) / half, 0.0, 1.0) ** 6
    shaft = np.maximum(np.abs(y) - thick * flare, np.abs(scene.x) - half)
    scene.bone("femur", shaft, 0.7, facing=0.7, shadow=0.9, breaks=0.3)
    if state.offset > 0.3:  # the other thigh, farther from the probe
        far = np.maximum(np.abs(y - 3.1 * flesh) - thick, np.abs(scene.x - 0.3 * half) - 0.8 * half)
        scene.bone(None, far, 0.5, facing=1.0, shadow=0.4, breaks=0.2)


def limbs(scene: Scene, fetus: Fetus, state: PlaneState) -> None:
    """Paint a forearm or lower leg with two bones and a hand or foot, and another limb's cross-section, in fluid."""
    half, q = fetus.sizes["fl"] * 0.43, fetus.variation
    flesh = half * 0.34 * q[6]
    arm = ellipse(scene.x, scene.y, (0.0, 0.0), (half * 1.1, flesh))
    hand = ellipse(scene.x, scene.y, (1.35 * half, 0.12 * half * state.offset), (0.42 * half, flesh * 0.8), 20.0 * q[7])
    other = ellipse(scene.x, scene.y, (-0.5 * half * q[8], 1.25 * half), (0.42 * half, 0.38 * half * q[9]))
    body = np.minimum(np.minimum(arm, hand), other)
    scene.surround(body)
    scene.fill("limb", body, 0.018, grain=0.4)
    scene.line(body, 0.12, width=0.8)
    _muscle(scene, scene.y, arm, half)
    for side in (-1.0, 1.0):
        bone = np.maximum(np.abs(scene.y - side * 0.34 * flesh) - 0.9, np.abs(scene.x + 0.05 * half) - 0.85 * half)
        scene.bone("bone", bone, 0.85, facing=1.0, shadow=0.5, breaks=0.2)
    for finger in range(5):
        angle = np.deg2rad(-34.0 + 17.0 * finger)
        base = (1.55 * half, 0.12 * half * state.offset + (finger - 2) * 0.06 * half)
        tip = (base[0] + 0.32 * half * float(np.cos(angle)), base[1] + 0.32 * half * float(np.sin(angle)))
        scene.bone("bone", tube(scene.x, scene.y, [base, tip]) - 0.7, 0.45, facing=0.5)
    scene.bone("bone", ellipse(scene.x, scene.y, (-0.5 * half * q[8], 1.25 * half), (2.2, 2.0)), 0.8, facing=1.0)


def _muscle(scene: Scene, y: Array, inside: Array, half: float) -> None:
    """Paint fibers of muscle along a bone."""
    _, stripes = scene.fetus.noise(scene.x * 0.25, y * 1.7 + 11.0)
    fibers = np.exp(-((stripes / 0.28) ** 2)) * np.clip(-inside / (0.08 * half), 0.0, 1.0)
    scene.specular = scene.specular + 0.09 * fibers * (0.5 if scene.grid is not None else 0.0)
