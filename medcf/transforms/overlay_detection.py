# SPDX-License-Identifier: Apache-2.0
"""Finds what a scanner drew over an ultrasound image, and fills it in.

Echoes are blurred by the beam and speckled; scanner graphics are thin, with hard edges and one exact gray value
("ink"), or are colored, or are outside the picture. Each property is detected separately:

- color: chroma that deviates from the tint of pixels with this luminance in the image (a sepia tint is not a mark);
- strokes: bright thin structures (white top-hat) with an edge of one pixel;
- ink: gray values that many strokes share exactly; pixels of such a value that touch a stroke belong to it, which also
  finds the part of a caliper that overlaps the skull;
- surroundings: anything visible outside the convex hull of the echoes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

__all__ = ["fill_in", "find_overlays"]

Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]

_VISIBLE = 0.04
_FAINTEST = 0.004  # one level of 255
_CHROMA = 0.12
_STROKE = 0.34
_CERTAIN = 0.6
_EDGE = 0.3
_SKIRT = 0.15
_LEVELS = 256


def find_overlays(image: NDArray[np.float32], luminance: Plane, region: tuple[int, int, int, int]) -> tuple[Mask, Mask]:
    """Mark burned-in text, calipers, dotted lines and colored marks.

    Args:
        image: (C, H, W) in [0, 1], C = 1 or 3.
        luminance: (H, W) in [0, 1], the luminance of ``image``.
        region: first row, first column, end row, end column of the actual picture.

    Returns:
        (H, W), true where the image is not echo; and (H, W), true where it must become black: outside the region. Marks
        next to the picture are filled in as well, because black letters on a faint echo could still be read.
    """
    beyond = np.ones(luminance.shape, dtype=bool)
    beyond[region[0] : region[2], region[1] : region[3]] = False
    colored = _colored(image, luminance, ~beyond)
    size = 2 * max(1, round(luminance.shape[1] / 320)) + 1  # strokes are 1 pixel wide at 160 columns, 2 to 4 at 1000
    background = ndimage.grey_opening(luminance, size=(size, size))
    relief = luminance - background
    marks = colored | _strokes(luminance, relief, colored, size)
    outside, beside = _surroundings(np.where(colored, 0, luminance), background, beyond)
    marks |= beside
    # remains of text between and around its strokes; on black even the faintest can be read after windowing
    near = ndimage.binary_dilation(marks, structure=np.ones((3, 3)), iterations=2)
    around = [ndimage.uniform_filter(plane * ~near, 15 * size) for plane in (luminance, np.ones_like(luminance))]
    on_black = around[0] < _FAINTEST / 4 * around[1]
    marks |= outside & near & ((relief > _VISIBLE) | (on_black & (luminance > 0)))
    return marks, beyond


def fill_in(luminance: Plane, mask: Mask, sweeps: int = 20) -> Plane:
    """Fill the masked pixels from their surroundings: a push-pull pyramid, then Jacobi sweeps of Laplace's equation.

    Args:
        luminance: (H, W).
        mask: (H, W), true where the value is replaced.
        sweeps: number of Jacobi sweeps.

    Returns:
        (H, W), equal to ``luminance`` where the mask is false; zero if everything is masked.
    """
    if not mask.any():
        return luminance
    known = torch.from_numpy(~mask)[None, None].to(torch.float32)
    values = torch.from_numpy(luminance)[None, None] * known
    filled = _push_pull(values, known)
    padded = np.pad(filled[0, 0].numpy(), 1, mode="edge")
    flat, row = padded.ravel(), padded.shape[1]
    hole = np.flatnonzero(np.pad(mask, 1))
    for _ in range(sweeps):
        flat[hole] = 0.25 * (flat[hole - 1] + flat[hole + 1] + flat[hole - row] + flat[hole + row])
    return padded[1:-1, 1:-1].copy()


def _push_pull(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Average with weights at ever coarser scales, used where finer ones have no data (Gortler et al. 1996)."""
    known = weight.clamp(max=1)
    mean = values / weight.clamp(min=1e-6)
    if min(values.shape[-2:]) < 2 or bool((weight > 0).all()):
        return mean
    halved = [functional.avg_pool2d(plane, kernel_size=2, ceil_mode=True) for plane in (mean * known, known)]
    coarse = _push_pull(*halved)
    spread = functional.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return known * mean + (1 - known) * spread


def _colored(image: NDArray[np.float32], luminance: Plane, region: Mask) -> Mask:
    """Find pixels whose chroma is unusual for their luminance in this image's region.

    Gray counts as usual as soon as part of the picture is gray: a colored header or color Doppler can be larger than
    the rest.
    """
    if image.shape[0] == 1:
        return np.zeros(luminance.shape, dtype=bool)
    chroma = np.stack([image[0] - luminance, image[2] - luminance])
    seen = region & (luminance > _VISIBLE)
    if float(np.abs(chroma).max()) < _CHROMA / 2 or not seen.any():
        return np.zeros(luminance.shape, dtype=bool)
    bins = np.clip((luminance * 16).astype(np.int64), 0, 15)
    tint = np.zeros((2, 16), dtype=np.float32)
    bright = seen & (luminance > 4 * _VISIBLE)
    neutral = np.abs(chroma).max(axis=0) < 0.1 * luminance
    if np.count_nonzero(neutral & bright) < 0.08 * np.count_nonzero(bright):
        # one tint for all levels, plus a level's own tint if much of the image has this level
        share = [float(np.median(plane[seen] / luminance[seen])) for plane in chroma]
        tint += np.outer(share, (np.arange(16) + 0.5) / 16).astype(np.float32)
        for level in range(16):
            inside = seen & (bins == level)
            if np.count_nonzero(inside) > 0.05 * np.count_nonzero(seen):
                tint[:, level] = [np.median(plane[inside]) for plane in chroma]
    odd = np.abs(chroma - tint[:, bins]).max(axis=0) > _CHROMA
    near = np.abs(chroma - tint[:, bins]).max(axis=0) > _CHROMA / 3
    return odd | (ndimage.binary_dilation(odd, iterations=2) & near)


def _strokes(luminance: Plane, relief: Plane, colored: Mask, size: int) -> Mask:
    """Find thin bright structures with a hard edge, and the ink that touches them."""
    cross = ndimage.generate_binary_structure(2, 1)  # a pixel and its neighbors along the axes
    rise = ndimage.maximum_filter(luminance, footprint=cross) - luminance
    step = np.maximum(rise, luminance - ndimage.minimum_filter(luminance, footprint=cross))
    edged = ndimage.maximum_filter(step, size=size) > _EDGE
    core = (relief > _STROKE) & edged
    inks = _inks(luminance, core & ~colored)
    ink = inks[_level(luminance)]
    near = ndimage.binary_dilation(core, structure=np.ones((3, 3)), iterations=size // 2)
    # without ink, only structures far brighter than both sides are safe to call drawn
    certain = (core & ink) | ((relief > _CERTAIN) & edged)
    marks = certain | (near & ink & ndimage.binary_dilation(certain, structure=np.ones((3, 3)), iterations=size))
    if not marks.any():
        return marks
    # the soft fringe of antialiased or compressed strokes
    return marks | (ndimage.binary_dilation(marks, structure=np.ones((3, 3))) & (relief > _SKIRT) & ~ink)


def _inks(luminance: Plane, core: Mask) -> NDArray[np.bool_]:
    """Return a table of the 256 gray levels: true if strokes share the exact level far more often than by chance.

    Most pixels of such a level must be in strokes, because white is also the level of saturated echoes.
    """
    counts = np.bincount(_level(luminance[core]), minlength=_LEVELS).astype(np.float64)
    around = ndimage.uniform_filter1d(counts, 21, mode="nearest") * 21 - counts
    total = np.bincount(_level(luminance).ravel(), minlength=_LEVELS)
    return (counts >= 12) & (counts > 0.75 * around) & (counts > 0.4 * total)


def _level(values: Plane) -> NDArray[np.int64]:
    return np.rint(np.clip(values, 0, 1) * (_LEVELS - 1)).astype(np.int64)


def _surroundings(luminance: Plane, background: Plane, beyond: Mask) -> tuple[Mask, Mask]:
    """Find what lies outside the picture, the convex hull of the echoes; ``beyond`` is always outside.

    Returns:
        Pixels outside the picture, and visible non-echo objects outside it: they are not connected to the picture and
        have a hard outline, whereas a patch of echoes fades out. If there is no clear picture, nothing is outside.
    """
    visible = luminance > _VISIBLE
    textured = np.zeros(luminance.shape, dtype=bool)
    textured[:, 1:] = np.diff(luminance, axis=1) != 0
    picture = _picture((background > 0.02) & textured & ~beyond & (luminance > 0))
    if picture is None:
        return beyond, beyond & visible
    labels, count = ndimage.label(visible & ~beyond, structure=np.ones((3, 3)))
    outline = (labels > 0) & ~ndimage.binary_erosion(visible, border_value=1)
    hard = _share(labels, outline & (luminance > 2 * _VISIBLE), outline, count) > 0.5
    connected = _share(labels, picture, labels > 0, count) > 0
    beside = np.concatenate([[False], (hard & ~connected)[1:]])[labels]
    outside = beyond | ~picture
    return outside, (beside | beyond) & visible


def _share(labels: NDArray[np.int32], part: Mask, whole: Mask, count: int) -> NDArray[np.float64]:
    """Return for each label the share of its ``whole`` pixels also in ``part``; entry 0 is the background."""
    of_part = np.bincount(labels[part & whole], minlength=count + 1)
    return of_part / np.maximum(np.bincount(labels[whole], minlength=count + 1), 1)


def _picture(echoes: Mask) -> Mask | None:
    """Return the convex hull of the large echo patches, found at about 160 columns; None without a large patch."""
    from skimage.morphology import convex_hull_image

    height, width = echoes.shape
    reduce = max(1, width // 160)
    coarse = echoes[: height // reduce * reduce, : width // reduce * reduce]
    coarse = coarse.reshape(height // reduce, reduce, width // reduce, reduce).mean(axis=(1, 3)) > 0.3
    labels, count = ndimage.label(coarse)
    areas = np.bincount(labels.ravel(), minlength=2)[1:]
    if count == 0 or areas.max() < 0.02 * coarse.size:
        return None
    kept = np.isin(labels, 1 + np.flatnonzero(areas > 0.15 * areas.max()))
    hull = convex_hull_image(ndimage.binary_dilation(kept, iterations=2))
    hull = np.kron(hull, np.ones((reduce, reduce), dtype=bool))
    # rows and columns cut off by the reduction continue their neighbors
    return np.pad(hull, ((0, height - hull.shape[0]), (0, width - hull.shape[1])), mode="edge")
