# SPDX-License-Identifier: Apache-2.0
"""Cross-sections of the trunk: abdomen with stomach and umbilical vein, kidneys, and thorax with four chambers.

In the plane ``x`` runs to the fetus' left and ``y`` to its back, in mm from the trunk's center.
"""

from __future__ import annotations

import numpy as np

from medcf.phantoms.planes.fetus import Fetus
from medcf.phantoms.planes.scene import Scene
from medcf.phantoms.planes.states import PlaneState
from medcf.phantoms.shapes import Array, ellipse, tube

__all__ = ["abdomen", "kidneys", "thorax"]


def abdomen(scene: Scene, fetus: Fetus, state: PlaneState) -> None:
    """Paint the plane of the abdominal circumference: liver, stomach, umbilical vein, spine."""
    r, q = fetus.trunk, fetus.variation
    body = _outline(scene, fetus, (r * 1.02, r * 0.98))
    scene.surround(body)
    scene.fill("abdomen", body, 0.021, grain=0.30)
    _wall(scene, body)
    # Branches of the portal and hepatic veins, which the texture's dark patches suggest.
    for index in range(5):
        angle, far = 2.4 * index + 5.0 * q[index], r * (0.30 + 0.09 * index) * q[index + 4]
        center = (-0.18 * r + far * float(np.cos(angle)) * 0.8, -0.10 * r + far * float(np.sin(angle)) * 0.7)
        spot = ellipse(scene.x, scene.y, center, (0.075 * r * q[index], 0.028 * r), 70.0 * index * q[index])
        scene.fill(None, spot, 0.004, grain=0.0, edge=0.7)
    size = 1.0 + 0.25 * state.offset
    stomach = (0.47 * r * q[0], 0.02 * r * q[1])
    bent = scene.y + 0.10 * r * np.cos((scene.x - stomach[0]) * (3.2 / r))
    scene.fluid(
        "stomach", ellipse(scene.x, bent, stomach, (0.24 * r * q[2] * size, 0.14 * r * q[3] * size), 25.0), 0.07
    )
    path = [(0.02 * r, -0.52 * r), (0.0, -0.26 * r), (-0.10 * r * q[4], -0.10 * r), (-0.34 * r * q[5], -0.02 * r)]
    vein = tube(scene.x, scene.y, path) - 0.048 * r * q[6]
    scene.fluid("umbilical_vein", vein, 0.09)
    _great_vessels(scene, fetus, r)
    _spine(scene, fetus, r)
    _ribs(scene, body, r, (0.32 + 0.1 * q[7], 0.55), share=0.35 - 0.2 * state.offset)


def kidneys(scene: Scene, fetus: Fetus, state: PlaneState) -> None:
    """Paint a plane below that of the abdominal circumference: two kidneys beside the spine, no stomach."""
    r, q = fetus.trunk * 0.95, fetus.variation
    body = _outline(scene, fetus, (r * 1.05, r * 0.93))
    scene.surround(body)
    scene.fill("abdomen", body, 0.022, grain=0.6)
    _wall(scene, body)
    for side in (-1.0, 1.0):
        center = (side * 0.42 * r * q[1], 0.40 * r * q[2])
        shape = ellipse(scene.x, scene.y, center, (0.26 * r * q[3], 0.21 * r), side * 30.0)
        scene.fill("kidneys", shape, 0.012, grain=0.25)
        scene.line(shape, 0.08)
        scene.fluid(None, ellipse(scene.x, scene.y, center, (0.09 * r * q[4], 0.035 * r), side * 30.0), 0.05)
    bladder = ellipse(scene.x, scene.y, (0.0, -0.42 * r), (0.20 * r * q[5], 0.15 * r * q[6]))
    if state.offset > 0:
        scene.fluid("fluid", bladder, 0.06)
    _great_vessels(scene, fetus, r)
    _spine(scene, fetus, r)


def thorax(scene: Scene, fetus: Fetus, state: PlaneState) -> None:
    """Paint the four-chamber view: heart with four chambers, lungs, spine, ribs."""
    r, q = fetus.trunk * 0.88, fetus.variation
    body = _outline(scene, fetus, (r * 1.0, r * 0.97))
    scene.surround(body)
    scene.fill("thorax", body, 0.036, grain=0.30)
    _wall(scene, body)
    size = 0.58 * r * q[8]
    _heart(scene, fetus, state, (0.15 * r * q[9], -0.16 * r), size)
    aorta = ellipse(scene.x, scene.y, (0.12 * r, 0.40 * r), (0.072 * r, 0.072 * r))
    scene.fluid("vessels", aorta, 0.10)
    _spine(scene, fetus, r)
    _ribs(scene, body, r, (0.35, 0.9 + 0.2 * q[10]), share=0.85)


def _heart(scene: Scene, fetus: Fetus, state: PlaneState, center: tuple[float, float], size: float) -> None:
    """Paint a heart whose apex points to the left front (Carvalho et al., ISUOG practice guidelines, 2013)."""
    q = fetus.variation
    angle = np.deg2rad(-48.0 * q[11] + 2.0 * state.tilt)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    along = ((scene.x - center[0]) * cos + (scene.y - center[1]) * sin) / size  # 1 at the apex
    across = ((scene.y - center[1]) * cos - (scene.x - center[0]) * sin) / size  # positive on the left
    narrow = 1.0 + 0.22 * along  # the heart tapers toward the apex
    wall = ellipse(along, across * narrow, (0.02, 0.0), (1.0, 0.74)) * size
    scene.fill("heart", wall, 0.020, grain=0.3, edge=1.2)
    scene.line(wall, 0.10, facing=1.5)
    beat = 1.0 + 0.12 * state.offset
    for side, scale in ((1.0, 1.0), (-1.0, 1.08 * q[12])):
        ventricle = ellipse(along, across, (0.28, side * 0.30), (0.50 * beat, 0.20 * scale * beat), -7.0 * side)
        atrium = ellipse(along, across, (-0.53, side * 0.28), (0.29 / beat, 0.24 * scale / beat), 10.0 * side)
        for chamber in (ventricle, atrium):
            scene.fluid("chambers", chamber * size, 0.05)
        # Valve leaflets between atrium and ventricle, the tricuspid valve nearer to the apex.
        hinge = -0.22 if side > 0 else -0.15
        leaflet = np.abs(along - hinge - 0.25 * np.abs(across * side - 0.28)) + 5.0 * np.maximum(
            np.abs(across - side * 0.28) - 0.18, 0.0
        )
        scene.line(leaflet * size, 0.14, width=0.7, facing=0.7)
    septum = np.abs(across) + 4.0 * np.maximum(np.abs(along - 0.15) - 0.55, 0.0)
    scene.line(septum * size, 0.07, width=1.0, facing=1.0)


def _outline(scene: Scene, fetus: Fetus, radii: tuple[float, float]) -> Array:
    """Return the distance to the skin of a nearly elliptic cross-section."""
    h = fetus.harmonics
    angle = np.arctan2(scene.y, scene.x)
    bump = (
        1.0 + h[0] * np.cos(3 * angle) + h[1] * np.sin(3 * angle) + h[2] * np.cos(4 * angle) + h[3] * np.sin(5 * angle)
    )
    return ellipse(scene.x / bump, scene.y / bump, (0.0, 0.0), radii)


def _wall(scene: Scene, body: Array) -> None:
    """Paint limbs that lie beside the trunk, its skin, and the dark and bright layers of its wall."""
    r, h = scene.fetus.trunk, scene.fetus.harmonics
    for index in range(2):
        angle, size = 200.0 * float(h[5 + index]) + 2.6 * index, r * (0.24 + 3.0 * abs(float(h[index])))
        center = ((1.12 * r + size) * float(np.cos(angle)), (1.12 * r + size) * float(np.sin(angle)))
        limb = np.maximum(ellipse(scene.x, scene.y, center, (size, 0.85 * size), 60.0 * index), -body)
        scene.fill("limb", limb, 0.024, grain=0.4)
        scene.line(limb, 0.20, facing=1.5)
        scene.bone("bone", ellipse(scene.x, scene.y, center, (0.22 * size, 0.18 * size)), 0.8, facing=0.8, shadow=0.5)
    scene.line(body, 0.38, width=0.9, facing=2.5)
    scene.fill(None, np.abs(body + 2.0) - 0.8, 0.009, grain=0.2, edge=1.0)
    scene.line(body + 3.2, 0.12, width=0.7, facing=2.5)


def _great_vessels(scene: Scene, fetus: Fetus, r: float) -> None:
    q = fetus.variation
    for center, radius in (((0.10 * r, 0.46 * r), 0.065), ((-0.20 * r * q[12], 0.38 * r), 0.070 * q[13])):
        scene.fluid("vessels", ellipse(scene.x, scene.y, center, (radius * r, radius * r * 0.9)), 0.10)


def _spine(scene: Scene, fetus: Fetus, r: float) -> None:
    """Paint the three ossification centers of a vertebra around the canal."""
    q = fetus.variation
    around = ellipse(scene.x, scene.y, (0.0, 0.72 * r), (0.17 * r, 0.15 * r))
    scene.fill("spine", around, 0.020, grain=0.4, edge=2.0)
    scene.fill(None, ellipse(scene.x, scene.y, (0.0, 0.745 * r), (0.05 * r, 0.045 * r)), 0.003, grain=0.0)
    body = ellipse(scene.x, scene.y, (0.0, 0.64 * r), (0.085 * r * q[14], 0.045 * r))
    scene.bone(None, body, 0.85, facing=1.0)
    for side in (-1.0, 1.0):
        arch = ellipse(scene.x, scene.y, (side * 0.085 * r, 0.80 * r), (0.055 * r, 0.028 * r), side * -40.0)
        scene.bone(None, arch, 0.75, facing=0.8)


def _ribs(scene: Scene, body: Array, r: float, reach: tuple[float, float], share: float) -> None:
    """Paint pieces of ribs along the wall.

    Args:
        scene: the scene.
        body: distance to the skin.
        r: the trunk's radius in mm.
        reach: where a piece begins and how long it is, in radians from the spine.
        share: brightness of the pieces.
    """
    away = np.abs(np.arctan2(scene.x, scene.y))  # 0 at the spine
    first, length = reach
    for index in range(2):
        middle = first + (0.5 + 1.15 * index) * length
        piece = np.maximum(
            np.abs(body + 0.095 * r + 0.012 * r * index) - 0.9, (np.abs(away - middle) - 0.45 * length) * r
        )
        scene.bone("ribs", piece, max(share, 0.05) * 0.75, facing=2.0, shadow=0.5)
