# SPDX-License-Identifier: Apache-2.0
"""The soft parts of a chest, projected from the back to the front: thicknesses in mm of body, lungs, heart and vessels.

Points are mm on the detector relative to the center of the thorax: x to the patient's left (to the image's right, the
radiological convention), y down. Lengths are those of an adult, multiplied by the subject's scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "ChestShape", "Lung", "Soft", "coverage", "dome_of", "project"]

Array = NDArray[Any]  # float32


def coverage(distance: Array, width: float) -> Array:
    """Return the fraction of a pixel (its width is in mm) inside an outline: 1 well inside, 0 well outside."""
    return np.clip(0.5 - distance / width, 0.0, 1.0)


def dome_of(depth: Array, width: float) -> Array:
    """Thickness, relative to the largest, of a rounded body at a depth in mm inside its outline."""
    inner = np.clip(1.0 - depth / width, 0.0, 1.0)
    return np.sqrt(1.0 - inner * inner)


@dataclass(frozen=True)
class ChestShape:
    """The parameters of one subject's anatomy. Lengths are relative to the mean adult unless they name mm.

    Attributes:
        scale: size of the whole chest.
        width: width of the thorax.
        height: height of the lungs.
        depth: thickness of the body from back to front.
        wall: thickness in mm (adult) of the soft tissue beside the ribs.
        breast: thickness in mm of the breasts; 0 if there are none to see.
        heart: diameter of the heart.
        heart_tilt: tilt of its long axis in radians; an upright heart is steeper.
        atrium: how far the right atrium reaches beyond the spine.
        knob: size of the aortic knob.
        domes: heights in mm of the right and the left dome of the diaphragm relative to the mean.
        thymus: width in mm of the thymus, which children have.
        bubble: width and height in mm of the gas in the stomach.
        shoulders: height in mm of the shoulders relative to the mean.
        arms: angle of the arms in radians from hanging down.
        bend: sideways bend of the spine in mm.
        shift: x and y in mm by which the patient is off the center of the film.
        turn: rotation of the patient on the film in radians.
    """

    scale: float
    width: float
    height: float
    depth: float
    wall: float
    breast: float
    heart: float
    heart_tilt: float
    atrium: float
    knob: float
    domes: tuple[float, float]
    thymus: float
    bubble: tuple[float, float]
    shoulders: float
    arms: float
    bend: float
    shift: tuple[float, float]
    turn: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, child: bool) -> ChestShape:
        """Draw a subject: children are smaller, with a rounder thorax, a wider heart and a thymus."""
        scale = rng.uniform(0.5, 0.68) if child else rng.normal(1.0, 0.05)
        height = rng.normal(0.93 if child else 1.0, 0.05)
        female = rng.random() < 0.5
        return cls(
            scale=float(scale),
            width=float(rng.normal(1.0, 0.045)),
            height=float(height),
            depth=float(rng.normal(0.92 if child else 1.0, 0.1)),
            wall=float(np.clip(rng.normal(15.0 if child else 19.0, 6.0), 7.0, 40.0)),
            breast=0.0 if child or not female else float(rng.uniform(12.0, 42.0)),
            heart=float(np.clip(rng.normal(1.06 if child else 1.0, 0.11), 0.78, 1.38)),
            heart_tilt=float(rng.normal(0.62, 0.14)),
            atrium=float(rng.normal(1.0, 0.15)),
            knob=0.0 if child else float(np.clip(rng.normal(1.0, 0.2), 0.5, 1.6)),
            domes=(float(rng.normal(0.0, 6.0)), float(rng.normal(0.0, 7.0))),
            thymus=float(rng.uniform(0.0, 26.0)) if child else 0.0,
            bubble=(float(rng.uniform(0.0, 38.0)), float(rng.uniform(10.0, 24.0))),
            shoulders=float(rng.normal(0.0, 9.0)),
            arms=float(rng.uniform(0.25, 2.0) if child else rng.uniform(0.15, 0.7)),
            bend=float(rng.normal(0.0, 4.0)),
            shift=(float(rng.normal(0.0, 6.0)), float(rng.normal(-2.0, 6.0))),
            turn=float(rng.normal(0.0, 0.022)),
        )


@dataclass(frozen=True)
class Lung:
    """One lung on a grid; all (H, W).

    Attributes:
        share: fraction of each pixel inside the outline, in front of or behind the heart too.
        thickness: air and tissue from back to front in mm.
        across: 0 at the mediastinum to 1 at the ribs.
        along: 0 at the apex to 1 at the dome.
    """

    share: Array
    thickness: Array
    across: Array
    along: Array


@dataclass(frozen=True)
class Soft:
    """Thicknesses in mm on a grid, (H, W).

    Attributes:
        body: the whole body, including everything in it and the breasts.
        air: gas outside the lungs: trachea and stomach.
        lungs: the right and the left lung.
        heart: the heart.
        heart_share: fraction of each pixel inside the heart's outline.
        tissue: mediastinum, great vessels, hila and thymus, which take the place of lung.
    """

    body: Array
    air: Array
    lungs: tuple[Lung, Lung]
    heart: Array
    heart_share: Array
    tissue: Array


def project(shape: ChestShape, x: Array, y: Array, pixel: float) -> Soft:
    """Project a subject.

    Args:
        shape: the anatomy.
        x: (H, W) or (1, W), mm of an adult.
        y: (H, W) or (H, 1), mm of an adult.
        pixel: width of a pixel in the same units.

    Returns:
        Thicknesses in mm of an adult.
    """
    lungs = (_lung(shape, -x, y, -1, pixel), _lung(shape, x, y, 1, pixel))
    heart, share = _heart(shape, x, y, pixel)
    body = _body(shape, x, y) + _breasts(shape, x, y)
    return Soft(body, _gas(shape, x, y), lungs, heart, share, _tissue(shape, x, y))


def cage(shape: ChestShape, y: Array) -> Array:
    """Half the inner width of the rib cage in mm at a height."""
    down = np.clip((y + 122.0 * shape.height) / 190.0, 0.0, 1.0)
    return shape.width * (48.0 + 80.0 * (1.0 - (1.0 - down) ** 2.3) + 3.0 * down)


def _diaphragm(shape: ChestShape, x: Array, side: int) -> Array:
    """Height of the dome at x mm outward from the midline: higher on the right (side -1)."""
    top = (66.0 + shape.domes[0] if side < 0 else 78.0 + shape.domes[1]) * (0.5 + 0.5 * shape.height)
    outward = (x - 62.0 * shape.width) / (66.0 * shape.width)
    bend = np.where(outward > 0, 40.0 * np.abs(outward) ** 2.3, 13.0 * outward * outward)
    return top + bend


def _lung(shape: ChestShape, x: Array, y: Array, side: int, pixel: float) -> Lung:
    """One lung; x is outward."""
    apex = -122.0 * shape.height
    outer = cage(shape, y) - x
    below = np.maximum(y - apex, 0.0)
    inner = x - (19.0 + 24.0 * np.exp(-below / 17.0) + 5.0 * np.exp(-(((y + 5.0) / 30.0) ** 2)))
    floor = _diaphragm(shape, x, side) - y
    top = y - apex - 0.004 * (x - 46.0) ** 2
    edge = np.minimum(np.minimum(outer, inner), np.minimum(floor, top))
    largest = 158.0 * shape.depth
    round_ = dome_of(outer, 36.0) * dome_of(inner, 20.0) * dome_of(top, 60.0)
    thickness = largest * round_ * dome_of(floor, 22.0)
    # the recess behind the dome, which shows through the upper abdomen
    recess = 0.17 * largest * round_ * np.clip(1.0 + floor / 44.0, 0.0, 1.0) * (floor < 22.0)
    across = np.clip(inner / np.maximum(inner + outer, 1.0), 0.0, 1.0)
    along = np.clip((y - apex) / (96.0 - apex), 0.0, 1.0)
    return Lung(coverage(-edge, pixel), np.maximum(thickness, recess), across, np.broadcast_to(along, across.shape))


def _heart(shape: ChestShape, x: Array, y: Array, pixel: float) -> tuple[Array, Array]:
    """Thickness and coverage of ventricles and right atrium, with the apex at the patient's left."""
    size = shape.heart * (0.5 + 0.5 * shape.width)
    cos, sin = float(np.cos(shape.heart_tilt)), float(np.sin(shape.heart_tilt))
    dx, dy = x - 20.0 * size, y - (78.0 - 44.0 * size)
    along, across = dx * cos + dy * sin, -dx * sin + dy * cos
    ventricles = np.sqrt((along / (66.0 * size)) ** 2 + (across / (47.0 * size)) ** 2)
    ax, ay = x + 9.0 * size * shape.atrium, y - (74.0 - 40.0 * size)
    atrium = np.sqrt((ax / (29.0 * size)) ** 2 + (ay / (42.0 * size)) ** 2)
    distance = (np.minimum(ventricles, atrium) - 1.0) * 46.0 * size
    thick = np.maximum(92.0 * dome_of(1.0 - ventricles, 0.6), 74.0 * dome_of(1.0 - atrium, 0.6))
    floor = np.where(x > 0, np.float32(92.0), np.float32(84.0)) - y
    return (size * shape.depth * thick).astype(np.float32), np.minimum(coverage(distance, pixel), coverage(-floor, 8.0))


def _blob(x: Array, y: Array, center: tuple[float, float], radii: tuple[float, float]) -> Array:
    """A smooth bump of height 1 that is half as high at the radii."""
    return np.exp2(-(((x - center[0]) / radii[0]) ** 2) - ((y - center[1]) / radii[1]) ** 2)


def _tissue(shape: ChestShape, x: Array, y: Array) -> Array:
    """Great vessels, hila and thymus."""
    upper = 1.0 / (1.0 + np.exp((y + 20.0) / 14.0))
    tissue = 34.0 * upper * np.exp(-(((x - 2.0) / (26.0 + shape.thymus)) ** 4))
    tissue = tissue + 60.0 * shape.knob * _blob(x, y, (24.0, -52.0), (12.0 * shape.knob + 3.0, 13.0))
    tissue = tissue + 38.0 * _blob(x, y, (24.0, -24.0), (12.0, 15.0))
    tissue = tissue + 20.0 * (_blob(x, y, (-36.0, -4.0), (11.0, 20.0)) + _blob(x, y, (38.0, -12.0), (11.0, 18.0)))
    return tissue.astype(np.float32)


def _breasts(shape: ChestShape, x: Array, y: Array) -> Array:
    if not shape.breast:
        return np.zeros((), np.float32)
    outward = np.abs(x) - 72.0 * shape.width
    sag = 1.0 / (1.0 + np.exp((y - 62.0 + 0.004 * outward * outward) / 3.0))
    shade = np.exp(-((outward / 58.0) ** 4)) * np.exp(-(((y - 40.0) / 62.0) ** 2))
    return (shape.breast * sag * shade).astype(np.float32)


def _gas(shape: ChestShape, x: Array, y: Array) -> Array:
    """Trachea, main bronchi and the gas under the left dome."""
    fork = np.maximum(y + 34.0, 0.0)
    distance = np.abs(np.abs(x - 1.0) - 0.75 * fork)
    width = 8.5 - 0.05 * fork
    trachea = 17.0 * np.sqrt(np.clip(1.0 - (distance / np.maximum(width, 1.0)) ** 2, 0.0, 1.0))
    trachea = trachea * np.clip(1.0 - fork / 45.0, 0.0, 1.0)
    wide, high = shape.bubble
    if wide < 8.0:
        return trachea.astype(np.float32)
    top = _diaphragm(shape, np.float32(60.0) + 0 * x, 1) + 6.0 + high
    bubble = 42.0 * np.clip(1.0 - ((x - 62.0) / wide) ** 2 - ((y - top) / high) ** 2, 0.0, 1.0)
    return (trachea + bubble).astype(np.float32)


def _body(shape: ChestShape, x: Array, y: Array) -> Array:
    """Trunk, shoulders, neck and arms."""
    outward = np.abs(x)
    trunk = cage(shape, np.maximum(y, -60.0)) + shape.wall + 6.0 * np.clip(-y / 60.0, 0.0, 2.0)
    trunk = trunk + 44.0 * np.clip((-48.0 - y) / 34.0, 0.0, 1.0)  # the shoulders, above the armpits
    waist = np.clip((y - 90.0) / 120.0, 0.0, 1.0)
    inside = trunk * (1.0 - 0.05 * waist) - outward
    slope = y + 148.0 - shape.shoulders - 0.0042 * np.clip(outward - 38.0, 0.0, None) ** 2
    thick = 205.0 * shape.depth * dome_of(inside, 70.0)
    thick = thick * (0.42 + 0.58 * dome_of(slope, 120.0)) * np.clip(slope / 10.0, 0.0, 1.0)
    neck = 108.0 * shape.depth * dome_of(52.0 - outward, 30.0) * (slope < 60.0)
    # an arm is a cylinder from the shoulder joint
    cos, sin = float(np.cos(shape.arms)), float(np.sin(shape.arms))
    dx, dy = outward - 138.0 * shape.width, y + 108.0 - shape.shoulders
    along, across = dx * sin + dy * cos, np.abs(dx * cos - dy * sin)
    arm = 84.0 * dome_of(40.0 - across, 40.0) * np.clip(1.0 + along / 30.0, 0.0, 1.0)
    return np.maximum(np.maximum(thick, neck), arm).astype(np.float32)
