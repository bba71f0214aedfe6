# SPDX-License-Identifier: Apache-2.0
"""What else an examination shows: the cervix, and the planes of class other that are no limbs or kidneys."""

from __future__ import annotations

import numpy as np

from medcf.phantoms.planes.fetus import Fetus
from medcf.phantoms.planes.scene import Scene
from medcf.phantoms.planes.states import PlaneState
from medcf.phantoms.shapes import ellipse, tube

__all__ = ["cervix", "placenta", "profile", "spine", "vessel"]


def cervix(scene: Scene, fetus: Fetus, state: PlaneState) -> None:
    """Paint the mother's cervix from the vagina: canal, bladder in front, the fetal head above the inner opening.

    ``x`` runs from the outer to the inner opening, in mm from the middle of the canal.
    """
    q = fetus.variation
    half, thick = 17.5 * q[0] ** 2, 12.5 * q[1]
    scene.surround()
    x = scene.x + 7.0
    y = scene.y - 0.010 * q[2] * x**2 + 0.9 * np.sin(x / (6.0 * q[3]))
    head_radius = fetus.sizes["bpd"] * 0.5
    sac_left = half * 1.04
    sac = ellipse(x, y, (sac_left + head_radius * 0.97, -2.0), (head_radius * 1.06, head_radius * 0.95))
    body = ellipse(x, y, (-1.0, 1.5), (half * 1.22, thick))
    scene.fill("cervix", body, 0.026, grain=0.5, edge=2.5)
    scene.line(body, 0.05, width=1.0, facing=1.5)
    scene.fluid("fluid", sac, 0.10)
    head = ellipse(x, y, (sac_left + head_radius + 5.0 + 2.5 * state.offset, 3.0), (head_radius, head_radius * 0.95))
    scene.fill("fetal_head", head, 0.010, grain=0.4)
    scene.bone(None, np.abs(head + 1.2) - 1.0, 0.95, facing=3.0)
    canal = np.maximum(np.abs(y), np.abs(x) - half)
    scene.fill("canal", canal - 3.2 * q[4], 0.008, grain=0.35, edge=2.0)
    scene.line(canal, 0.16, width=0.6, facing=1.0)
    bladder = ellipse(x, y, (0.75 * half * q[5], -1.75 * thick), (half * 0.85 * q[6], thick * 0.42 * q[7]), -12.0)
    scene.fluid("bladder", bladder, 0.09)
    # Gas in the rectum: an uneven bright line with dirty shadow.
    rectum = y - 1.75 * thick - 1.4 * np.sin(x / 4.1 + 9.0 * q[8]) + np.maximum(x - 0.2 * half, 0.0) * 0.35
    gas = np.maximum(np.abs(rectum) - 0.8, np.abs(x + 0.3 * half) - half * 0.75 * q[9])
    scene.bone(None, gas, 0.40, facing=0.5)


def profile(scene: Scene, fetus: Fetus, state: PlaneState) -> None:
    """Paint the face from the side: forehead, nose, lips and chin, with skull, nasal bone and jaws.

    ``x`` runs to the vertex, ``y`` from the face to the back of the head.
    """
    q = fetus.variation
    a, b = fetus.sizes["ofd"] / 2, fetus.sizes["bpd"] / 2
    k = fetus.sizes["bpd"] / 90.0
    head = ellipse(scene.x, scene.y, (0.36 * a, 0.12 * b), (0.92 * a, 0.98 * b))
    face = ellipse(scene.x, scene.y, (-0.46 * a, -0.12 * b), (0.52 * a, 0.62 * b * q[0]), -8.0)
    nose = ellipse(scene.x, scene.y, (-0.36 * a, -0.74 * b * q[1]), (8.5 * k, 6.5 * k), 25.0)
    lips = [
        ellipse(scene.x, scene.y, (-0.55 * a - 7.0 * k * step, -0.66 * b * q[2]), (4.2 * k, 5.2 * k)) for step in (0, 1)
    ]
    chin = ellipse(scene.x, scene.y, (-0.82 * a, -0.50 * b), (9.0 * k, 8.0 * k * q[3]))
    chest = ellipse(scene.x, scene.y, (-1.75 * a, 0.35 * b), (0.75 * a, 0.85 * b))
    body = np.minimum.reduce([head, face, nose, *lips, chin, chest])
    scene.surround(body)
    scene.fill("face", body, 0.018, grain=0.45)
    scene.line(body, 0.15, width=0.9, facing=1.5)
    scene.fill(None, head + 4.0 * k, 0.018, grain=0.6)
    scene.bone("skull", np.abs(head + 3.4 * k) - 1.2 * k, 0.75, facing=2.5, shadow=0.3)
    jaw = -0.48 * b
    for start, stop, level in ((-0.25, -0.38, 0.9), (-0.50, -0.60, 0.7), (-0.72, -0.86, 0.7)):
        path = [(start * a, jaw - 5.0 * k), (stop * a, jaw - 3.0 * k + 2.0 * k * state.offset)]
        scene.bone("bone", tube(scene.x, scene.y, path) - 1.3 * k, level, facing=0.7)
    orbit = ellipse(scene.x, scene.y, (-0.22 * a, -0.20 * b), (0.15 * a, 0.14 * b))
    if state.tilt > 1.0:
        scene.fluid(None, orbit, 0.10)


def spine(scene: Scene, fetus: Fetus, state: PlaneState) -> None:
    """Paint the spine lengthwise: two rows of vertebrae, skin behind them and the trunk in front."""
    r, q = fetus.trunk, fetus.variation
    y = scene.y - 0.0035 * q[0] * scene.x**2 + 0.06 * r * np.sin(scene.x / (0.8 * r))
    body = np.maximum(np.abs(y - 0.62 * r) - 0.95 * r, np.abs(scene.x) - 2.6 * r)
    scene.surround(body)
    scene.fill("abdomen", body, 0.018, grain=0.5)
    scene.line(body, 0.14, width=0.9)
    scene.fill("spine", np.abs(y) - 0.20 * r, 0.022, grain=0.4, edge=1.5)
    scene.fill(None, np.abs(y) - 0.085 * r, 0.003, grain=0.1)
    pitch = 0.165 * r * q[1]
    near = scene.x - pitch * np.round(scene.x / pitch)
    for row, level in ((-0.135, 0.8), (0.135, 0.65)):
        shape = np.sqrt((near / 1.25) ** 2 + (y - row * r * (1.0 + 0.1 * state.offset)) ** 2) - 0.040 * r
        scene.bone(None, shape, level, facing=0.5, shadow=0.35)


def placenta(scene: Scene, fetus: Fetus, state: PlaneState) -> None:
    """Paint the placenta on the near or far wall, fluid before it, and loops of the cord with their three vessels."""
    r, q = 34.0, fetus.variation
    scene.surround()
    wave = 2.2 * np.sin(scene.x / (9.0 * q[0])) + 1.1 * np.sin(scene.x / 4.3 + 7.0 * q[1])
    side = 1.0 if state.tilt > 0 else -1.0
    plate = side * scene.y - 0.25 * r * q[2] + wave + 0.004 * side * scene.x**2
    disc = np.maximum(-plate, plate - 26.0 * q[3])
    pool = ellipse(scene.x, scene.y, (6.0 * state.offset, -side * 0.25 * r), (1.5 * r * q[4], 0.62 * r * q[5]))
    pool = np.maximum(pool + 3.0 * np.sin(scene.x / (7.0 * q[12]) + 2.0 * np.sin(scene.y / 9.0)), plate)
    scene.fluid("fluid", pool, 0.04)
    scene.fill("placenta", disc, 0.034, grain=0.35, edge=1.6)
    scene.line(plate, 0.13, width=0.8, facing=1.5)
    for index in range(2):
        center = (r * (0.75 * index - 0.35) * q[6 + index], -side * 0.22 * r * q[8 + index])
        cord = ellipse(scene.x, scene.y, center, (7.2 * q[10], 6.4 * q[11]), 40.0 * index)
        scene.fill("cord", cord, 0.012, grain=0.3)
        scene.line(cord, 0.08, width=0.7, facing=1.0)
        for turn, radius in ((0.3, 2.3), (2.6, 1.3), (4.4, 1.3)):
            at = (center[0] + 3.0 * float(np.cos(turn + index)), center[1] + 3.0 * float(np.sin(turn + index)))
            scene.fluid(None, ellipse(scene.x, scene.y, at, (radius, radius)), 0.12)


def vessel(scene: Scene, fetus: Fetus, state: PlaneState) -> None:
    """Paint a vessel of the mother lengthwise, as a linear array shows it: two bright walls around a black lumen."""
    q = fetus.variation
    scene.surround()
    y = scene.y - 1.3 * np.sin(scene.x / (14.0 * q[0])) - 0.05 * state.tilt * scene.x
    lumen = np.abs(y) - 4.3 * q[1] * (1.0 + 0.012 * state.offset * scene.x)
    scene.fill(None, lumen - 1.6, 0.012, grain=0.3, edge=1.0)
    scene.fluid("vessels", lumen, 0.30)
    scene.line(lumen - 1.1, 0.22, width=0.5)
