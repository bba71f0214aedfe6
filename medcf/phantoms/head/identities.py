# SPDX-License-Identifier: Apache-2.0
"""Several images of each subject, and the subject's parameters visible in all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medcf.phantoms.cache import cached_arrays, make_rows
from medcf.phantoms.head.datasets import native_size, on_grid, subject_seed, to_tensors
from medcf.phantoms.head.fetal_head import FetalHead
from medcf.registry import PHANTOMS, load_plugins, lookup

__all__ = ["CANDIDATES", "HEAD", "RECOVERABLE", "SCANNER", "IdentityDataset", "ParameterSet", "subject_parameters"]

_VERSION = 1  # of the drawing of views; caches from other versions are not used


def _element(field: str, index: int, head: FetalHead) -> float:
    """Return one element of an array of the anatomy."""
    return float(getattr(head.anatomy, field)[index])


#: All parameters of a `FetalHead` that might be visible in more than one plane, with functions to read them.
CANDIDATES: dict[str, Callable[[FetalHead], float]] = {
    "bpd_mm": lambda head: head.anatomy.bpd,
    "ofd_mm": lambda head: head.anatomy.ofd,
    "cephalic_index": lambda head: head.anatomy.bpd / head.anatomy.ofd,
    "height_mm": lambda head: head.anatomy.height,
    "skull_mm": lambda head: head.anatomy.skull,
    "facing": lambda head: head.facing,
    "rotation_deg": lambda head: head.rotation,
    "center_row_mm": lambda head: head.center[0],
    "center_col_mm": lambda head: head.center[1],
    "apex_row_mm": lambda head: head.apex[0],
    "apex_col_mm": lambda head: head.apex[1],
    "probe_radius_mm": lambda head: head.scanner.radius,
    "half_angle_deg": lambda head: float(np.rad2deg(head.scanner.half_angle)),
    "depth_mm": lambda head: head.scanner.depth,
    "gain_db": lambda head: head.scanner.gain,
    "dynamic_range_db": lambda head: head.scanner.dynamic_range,
    "gamma": lambda head: head.scanner.gamma,
    "tgc_db_per_mm": lambda head: head.scanner.tgc,
    "bone_db_per_mm": lambda head: head.scanner.bone,
    "haze": lambda head: head.scanner.haze,
    **{f"outline_{k}": partial(_element, "harmonics", k) for k in range(8)},
    **{f"variation_{k}": partial(_element, "variation", k) for k in range(10)},
}

# : Parameters that a small network can recover from any plane (R² of at least 0.5 on unseen heads): the head itself and
# : its position in the image. A second network for the other candidates reached an R² of 0.8 for the height, which
# follows : from the BPD, and at most 0.1 for skull, outline and brain structures.
HEAD = ("bpd_mm", "ofd_mm", "cephalic_index", "facing", "rotation_deg", "center_row_mm", "center_col_mm")

#: The same for the scanner: probe position and sector width; at most 0.4 for the rest.
SCANNER = ("apex_row_mm", "apex_col_mm", "half_angle_deg")

#: What the bundle's identity network recovers, in output order.
RECOVERABLE = HEAD + SCANNER


def subject_parameters(subject: FetalHead, names: Sequence[str] = RECOVERABLE) -> NDArray[np.float32]:
    """Read the true parameters of a subject.

    Args:
        subject: the head with its scanner.
        names: keys of `CANDIDATES`; lengths in mm of the image, angles in degrees, ``facing`` 1 or -1.

    Returns:
        Their values, (P,) float32.

    Raises:
        ValueError: if a name is unknown.
    """
    unknown = sorted(set(names) - set(CANDIDATES))
    if unknown:
        raise ValueError(f"parameters {unknown} are unknown; choose from {', '.join(CANDIDATES)}")
    return np.array([CANDIDATES[name](subject) for name in names], np.float32)


class ParameterSet:
    """A set whose subjects have ``parameters`` (subjects, P), which give the scale for a network that recovers them."""

    parameters: NDArray[np.float32]

    @property
    def mean(self) -> list[float]:
        """The mean of each parameter over the subjects."""
        return [float(value) for value in self.parameters.mean(0)]

    @property
    def std(self) -> list[float]:
        """The standard deviation of each parameter over the subjects."""
        return [float(value) for value in self.parameters.std(0)]


class IdentityDataset(ParameterSet, Dataset[dict[str, Any]]):
    """Pairs of images of one subject in different poses, with different speckle.

    Each subject is imaged ``views`` times, alternating non-standard and standard planes, so every second pair resembles
    an input and its counterfactual. Any two views of a subject are one item: ``image`` and ``image_pair`` float32 (1,
    H, W) in [-1, 1], ``parameters`` float32 (P,), ``label`` and ``label_pair`` int64 and ``subject`` int64.

    Args:
        split: "train", "val", "oracle", "test" or "demo"; their subjects are disjoint.
        count: number of subjects.
        parameters: names of the parameters, see `CANDIDATES`.
        views: images per subject, at least 2.
        name: phantom in ``PHANTOMS``; its subjects need the attributes of `FetalHead`.
        seed: seed of the set.
        size: rows and columns of the images.
        spacing: pixel spacing in mm.
        cache_dir: folder for caching the rendered images; None renders them each time.
        transform: applied to every item.
        progress: whether to show a progress bar.
    """

    def __init__(
        self,
        split: str = "oracle",
        count: int = 1000,
        parameters: Sequence[str] = RECOVERABLE,
        *,
        views: int = 3,
        name: str = "fetal_head",
        seed: int = 0,
        size: Sequence[int] = (64, 80),
        spacing: float = 1.75,
        cache_dir: str | Path | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        progress: bool = True,
    ) -> None:
        if views < 2:
            raise ValueError(f"views is {views}; a pair needs at least 2.")
        load_plugins()
        self.factory = lookup(PHANTOMS, name)
        self.split, self.seed, self.views, self.transform = split, seed, views, transform
        self.size, self.spacing = (int(size[0]), int(size[1])), float(spacing)
        self.names = tuple(parameters)
        self._pairs = tuple(combinations(range(views), 2))
        key = repr((_VERSION, name, split, count, views, seed, self.size, self.spacing))
        path = None
        if cache_dir is not None:
            shape = f"{self.size[0]}x{self.size[1]}_{self.spacing:g}mm"
            path = Path(cache_dir) / f"{name}_identities_{split}_{count}x{views}_{shape}_seed{seed}.npz"
        bar: dict[str, Any] = {"title": f"rendering {split} identities", "unit": "subject", "progress": progress}
        self.images = cached_arrays(path, key, lambda: make_rows(self._render, range(count), **bar))["images"]
        self.subjects = [subject_seed(split, index, seed) for index in range(count)]
        self.parameters = np.stack([subject_parameters(self.factory(value), self.names) for value in self.subjects])

    def _render(self, index: int) -> dict[str, NDArray[np.uint8]]:
        """Return all views of one subject: ``images`` (views, H, W), gray values."""
        subject = self.factory(subject_seed(self.split, index, self.seed))
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x1DE7, subject.seed, self.seed])))
        native, spacing = native_size(self.size, self.spacing)
        images = []
        for view in range(self.views):
            pose = subject.sample_pose(rng, view % 2)
            sample = subject.render(pose, seed=int(rng.integers(2**31)), size=native, spacing=spacing)
            images.append(on_grid(sample, self.size)[0])
        return {"images": np.stack(images)}

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.subjects) * len(self._pairs)

    def __getitem__(self, index: int) -> Any:
        """Return one pair, after the transform if there is one."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} is outside a set of {len(self)}")
        case, pair = divmod(index, len(self._pairs))
        first, second = self._pairs[pair]
        blank = np.zeros(self.size, np.uint8)
        item = {
            "image": to_tensors(self.images[case, first], blank)[0],
            "image_pair": to_tensors(self.images[case, second], blank)[0],
            "parameters": torch.from_numpy(self.parameters[case]),
            "label": torch.tensor(first % 2),
            "label_pair": torch.tensor(second % 2),
            "subject": torch.tensor(self.subjects[case]),
        }
        return item if self.transform is None else self.transform(item)
