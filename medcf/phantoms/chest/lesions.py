# SPDX-License-Identifier: Apache-2.0
"""What each disease adds: mm of tissue or fluid in place of the lung's air."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from medcf.phantoms.chest.anatomy import Array, Lung
from medcf.phantoms.chest.states import ChestState

__all__ = ["FISSURE", "lesion_thickness"]

#: Height (0 apex, 1 base) of the border between the upper and the lower lobe as it is named in captions.
FISSURE = 0.5

_GRID = 96  # nodes of a noise field along each axis
_CENTERS = {"upper": (0.24, 0.36), "lower": (0.64, 0.78), None: (0.46, 0.54)}


def lesion_thickness(state: ChestState, lungs: tuple[Lung, Lung], x: Array, y: Array, subject: int) -> Array:
    """Return how much of the lungs' thickness an abnormality affects.

    The place and the pattern belong to the subject: with a larger extent the same lesion grows, with a larger severity
    it gets denser.

    Args:
        state: the disease.
        lungs: the right and the left lung.
        x: (H, W) mm of an adult, to the patient's left.
        y: (H, W) mm of an adult, down.
        subject: seed of the subject.

    Returns:
        mm of air replaced, (H, W) float32; 0 outside the affected lungs.
    """
    result = np.zeros(x.shape, np.float32)
    for side in state.sides:
        number = int(side == "left")
        key = [0x1E51, subject, state.label, number, (None, "upper", "lower").index(state.lobe)]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        part = _extent(lungs[number].share)  # nothing is computed outside the lung
        lung = Lung(*(values[part] for values in vars(lungs[number]).values()))
        outward = x[part] if number else -x[part]
        result[part] += _PATTERNS[state.disease](state, lung, outward, y[part], rng)
    return result


def _consolidation(state: ChestState, lung: Lung, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """One dense focus that ends at the fissure."""
    across, along = rng.uniform(0.38, 0.68), rng.uniform(*_CENTERS[state.lobe])
    # the point of the lung at these coordinates
    distance = np.abs(lung.across - across) + np.abs(lung.along - along) + (lung.share < 0.5)
    row, col = np.unravel_index(int(distance.argmin()), distance.shape)
    x0, y0 = float(x[row, col]), float(y[row, col])
    radius = 20.0 + 46.0 * state.extent
    stretch = rng.uniform(0.8, 1.1)
    away = np.hypot((x - x0) * stretch, (y - y0) / stretch)
    away = away * (1.0 + 0.16 * _field(rng, 26.0)(x, y))
    profile = _smooth((radius - away) / (0.45 * radius))
    depth = np.minimum(lung.thickness, 3.2 * np.sqrt(np.clip(radius**2 - away**2, 0.0, None)))
    mottled = 0.88 + 0.12 * np.tanh(_field(rng, 9.0)(x, y))  # air that is left in it
    if state.lobe is not None:
        above = (FISSURE - lung.along if state.lobe == "upper" else lung.along - FISSURE) / 0.03
        profile = profile * np.clip(0.5 + above, 0.0, 1.0)
    return (0.3 + 0.7 * state.severity) * depth * profile * mottled * lung.share


def _ground_glass(state: ChestState, lung: Lung, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Hazy patches near the ribs, mostly in the lower zones."""
    place = 1.5 * (_smooth((lung.across - 0.3) / 0.55) - 0.6) + 1.3 * (_smooth((lung.along - 0.2) / 0.5) - 0.6)
    patches = 0.8 * _field(rng, 24.0)(x, y) + place
    share = _smooth(0.5 + (patches - 1.0 + 2.1 * state.extent) / 1.1)
    return (0.16 + 0.44 * state.severity) * lung.thickness * share * lung.share


def _interstitial(state: ChestState, lung: Lung, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Streaks and haze that spread from the hilum."""
    away = np.hypot(x - 36.0, 0.85 * (y + 4.0))
    spread = np.exp(-((away / (42.0 + 52.0 * state.extent)) ** 2))
    # ridges of a field that is stretched along the radius look like thickened bronchi and vessels
    angle = np.arctan2(y + 4.0, np.maximum(x - 30.0, 1.0))
    streaks = np.maximum(1.0 - np.abs(_field(rng, 1.0)(angle * 4.2, away / 26.0)) / 0.45, 0.0)
    mesh = np.maximum(1.0 - np.abs(_field(rng, 11.0)(x, y)) / 0.4, 0.0)
    pattern = 0.16 + 0.34 * streaks + 0.26 * mesh
    return (0.25 + 0.75 * state.severity) * lung.thickness * spread * pattern * lung.share


_PATTERNS: dict[str, Callable[[ChestState, Lung, Array, Array, np.random.Generator], Array]] = {
    "lung_opacity": _consolidation,
    "covid": _ground_glass,
    "viral_pneumonia": _interstitial,
}


def _extent(share: Array) -> tuple[slice, slice]:
    """Return the rows and columns of the lung, or all of them if it is outside the image."""
    rows, cols = (np.flatnonzero(share.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(None), slice(None)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _smooth(share: Array) -> Array:
    share = np.clip(share, 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def _field(rng: np.random.Generator, length: float) -> Callable[[Array, Array], Array]:
    """Draw a smooth random field of mean 0 and deviation 1 that varies over ``length`` mm."""
    nodes = gaussian_filter(rng.standard_normal((_GRID, _GRID), dtype=np.float32), 1.5, mode="wrap")
    nodes /= nodes.std()
    step = length / 2.5

    def at(x: Array, y: Array) -> Array:
        where = np.stack(np.broadcast_arrays(y / step, x / step))
        return map_coordinates(nodes, where, order=1, mode="grid-wrap")

    return at
