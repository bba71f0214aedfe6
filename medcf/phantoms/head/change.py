# SPDX-License-Identifier: Apache-2.0
"""Where a phantom and the same subject's standard plane truly differ: what a counterfactual's map should find.

Two renderings of one plane differ in every pixel, because speckle is random. The true change is therefore computed from
EXPECTED images, the mean over all speckle: "appearance" is where they differ by more than a fraction of the dynamic
range, "structure" is where the labels of brain structures differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import roots_genlaguerre
from torch.utils.data import Dataset

from medcf.phantoms.base import PhantomSubject
from medcf.phantoms.cache import cached_arrays, make_rows
from medcf.phantoms.head.datasets import draw_case, native_size, on_grid, shrink, subject_seed
from medcf.phantoms.head.fetal_head import FetalHead
from medcf.phantoms.head.poses import HeadPose, pixel_grid
from medcf.phantoms.shapes import Array
from medcf.phantoms.ultrasound import BeamGrid

__all__ = ["STRUCTURES", "TrueChange", "TrueChangeDataset", "expected_image", "true_change"]

#: Labels whose changes count as "structure": thalami, cavum and posterior fossa.
STRUCTURES = (2, 3, 4)

_VERSION = 1  # of the definition of the change; caches from other versions are not used
# The speckle's power over its mean has a gamma distribution with shape 2 (two looks of two quadratures). These nodes
# and weights integrate over it; twice as many change no gray value by more than 0.3 of 255.
_NODES, _WEIGHTS = roots_genlaguerre(8, 1.0)
_POWERS = _NODES / 2.0
_RANGE = 2.0  # of the network's images, [-1, 1]; gray values here are in [0, 1]
_FIELDS = ("difference", "appearance", "structure", "organ")


class _ExpectedGrid(BeamGrid):
    """Beams whose gray values are means over all speckle instead of a single draw.

    The speckle power at a sample is its mean times a chi-squared variable over its degrees of freedom, and the gray
    value is a function of that power. So its mean is a one-dimensional integral, computed by Gauss-Laguerre quadrature.
    """

    def envelope(self, scatter: Array, specular: Array, rng: np.random.Generator) -> Array:
        """Return the envelope at each node of the quadrature, (nodes, samples, lines); ``rng`` is not used."""
        axial, lateral = self.scanner.axial * self.shape[0] / self.scanner.depth, self.scanner.lateral
        # Variances of independent scatterers add: these are the renderer's filters as matrices, squared.
        along, across = (
            ndimage.gaussian_filter1d(np.eye(count), width, axis=0, mode="nearest", truncate=3.0) ** 2
            for count, width in zip(self.shape, (axial, lateral), strict=True)
        )
        mean = along @ (scatter * scatter) @ across.T * (4 * np.pi * axial * lateral)
        power = mean * _POWERS[:, None, None]
        smooth = ndimage.gaussian_filter1d(specular, 0.8, axis=1, mode="nearest")
        grain = np.sqrt(power) / (scatter + 1e-6)
        smooth = smooth * (0.65 + 0.35 * np.clip(grain, 0.0, 2.0))
        return np.sqrt(power + smooth * smooth)

    def compress(self, envelope: Array) -> Array:
        """Return the mean gray values over the nodes."""
        return np.asarray(np.tensordot(_WEIGHTS, super().compress(envelope), axes=1))


def expected_image(
    subject: PhantomSubject,
    pose: Any = None,
    *,
    size: tuple[int, int] = (128, 160),
    spacing: float = 0.875,
    num_seeds: int = 16,
) -> Array:
    """Image a phantom with the speckle averaged out.

    For a ``FetalHead`` the integral is exact; any other phantom is rendered ``num_seeds`` times and averaged, which
    divides the speckle's standard deviation by the square root of that number.

    Args:
        subject: the phantom.
        pose: the pose to image; None for the standard pose.
        size: rows and columns of the image.
        spacing: pixel spacing in mm.
        num_seeds: number of renderings to average without a closed form.

    Returns:
        Gray values (H, W) in [0, 1].
    """
    if not isinstance(subject, FetalHead):
        images = [subject.render(pose, seed=seed, size=size, spacing=spacing).image for seed in range(num_seeds)]
        return np.mean(np.stack(images), axis=0, dtype=np.float64)
    pose = HeadPose() if pose is None else pose
    grid = _ExpectedGrid(subject.scanner, subject.apex)
    unused = np.random.default_rng(0)
    gray = subject._beams(grid, subject._plane(pose), pose, unused)
    return grid.scan_convert(gray, *pixel_grid(size, spacing))


@dataclass(frozen=True)
class TrueChange:
    """What truly changes from an input to the same subject's standard plane, on the network's grid (H, W).

    Attributes:
        difference: expected image of the standard plane minus that of the input, in units of images in [-1, 1].
        appearance: where the difference exceeds the threshold.
        structure: where a label in ``STRUCTURES`` is present in only one of the two.
        organ: the filled head, in either of the two.
    """

    difference: NDArray[np.float32]
    appearance: NDArray[np.bool_]
    structure: NDArray[np.bool_]
    organ: NDArray[np.bool_]


def true_change(
    name: str,
    split: str,
    index: int,
    *,
    seed: int = 0,
    label: int | None = 0,
    size: Sequence[int] = (64, 80),
    spacing: float = 1.75,
    threshold: float = 0.1,
) -> TrueChange:
    """Compute the true change for one case of ``PairedPhantomDataset``; depends only on the arguments.

    Args:
        name: phantom in ``PHANTOMS``.
        split: a key of ``SPLITS``.
        index: number of the case.
        seed: seed of the set.
        label: class of the input.
        size: rows and columns of the grid.
        spacing: pixel spacing in mm.
        threshold: fraction of the dynamic range by which expected gray values must differ.

    Returns:
        The change.

    Raises:
        ValueError: if the threshold is not a fraction.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold} is a fraction of the dynamic range: use a value between 0 and 1.")
    grid = (int(size[0]), int(size[1]))
    native, native_spacing = native_size(grid, spacing)
    render: dict[str, Any] = {"size": native, "spacing": native_spacing}
    subject, sample = draw_case(name, split, index, seed=seed, label=label, **render)
    before = shrink(expected_image(subject, sample.pose, **render), grid)
    after = shrink(expected_image(subject, None, **render), grid)
    labels = on_grid(sample, grid)[1], on_grid(subject.render(seed=1, **render), grid)[1]
    difference = ((after - before) * _RANGE).astype(np.float32)
    changed = [(labels[0] == value) != (labels[1] == value) for value in STRUCTURES]
    organ = [ndimage.binary_fill_holes(each > 0) for each in labels]
    return TrueChange(
        difference=difference,
        appearance=np.abs(difference) > threshold * _RANGE,
        structure=np.logical_or.reduce(changed),
        organ=np.asarray(organ[0] | organ[1]),
    )


class TrueChangeDataset(Dataset[dict[str, Any]]):
    """The true change for every case of the ``PairedPhantomDataset`` with the same arguments, in the same order.

    An item holds ``difference`` float32, ``appearance``, ``structure`` and ``organ`` bool, all (1, H, W) as in
    ``TrueChange``, and ``case`` (string).

    Args:
        name: phantom in ``PHANTOMS``.
        split: "train", "val", "oracle", "test" or "demo".
        count: number of cases.
        label: class of the inputs; 0 is non-standard, None draws it.
        seed: seed of the set.
        size: rows and columns of the grid.
        spacing: pixel spacing in mm.
        threshold: fraction of the dynamic range that counts as a change in appearance.
        cache_file: .npz file, read if it holds exactly this set and written otherwise; None keeps the set in memory.
        progress: whether to show a progress bar.

    Example:
        >>> item = TrueChangeDataset(count=1, progress=False)[0]
        >>> item["appearance"].shape, bool(item["structure"].any())
        (torch.Size([1, 64, 80]), True)
    """

    def __init__(
        self,
        name: str = "fetal_head",
        split: str = "test",
        count: int = 32,
        *,
        label: int | None = 0,
        seed: int = 0,
        size: tuple[int, int] = (64, 80),
        spacing: float = 1.75,
        threshold: float = 0.1,
        cache_file: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        options: dict[str, Any] = {"seed": seed, "label": label, "size": tuple(size), "spacing": float(spacing)}
        options["threshold"] = float(threshold)
        key = repr((_VERSION, name, split, count, sorted(options.items())))

        def row(index: int) -> dict[str, Any]:
            case = f"{split}-{subject_seed(split, index, seed):07d}"
            return {**vars(true_change(name, split, index, **options)), "case": np.array(case)}

        bar: dict[str, Any] = {"title": f"true change of {split}", "unit": "case", "progress": progress}
        self._arrays = cached_arrays(cache_file, key, lambda: make_rows(row, range(count), **bar))

    def __len__(self) -> int:
        """Number of cases."""
        return len(self._arrays["case"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the true change for one case."""
        item: dict[str, Any] = {field: torch.from_numpy(self._arrays[field][index])[None] for field in _FIELDS}
        return {**item, "case": str(self._arrays["case"][index])}
