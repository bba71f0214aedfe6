# SPDX-License-Identifier: Apache-2.0
"""Both states of every subject, and the parameters that the disease does not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medcf.phantoms.brain.brain_mri import BrainMRI
from medcf.phantoms.brain.dataset import PairedBrainDataset
from medcf.phantoms.head.identities import ParameterSet

__all__ = ["BRAIN_PARAMETERS", "BrainIdentityDataset", "brain_parameters"]

#: Parameters that identify a brain independently of its disease: the inner skull's width, length and height relative to
#: the mean brain, the depth of its sulci, and the size of its deep nuclei.
BRAIN_PARAMETERS: dict[str, Callable[[BrainMRI], float]] = {
    "width": lambda brain: brain.shape.scale[0],
    "length": lambda brain: brain.shape.scale[1],
    "height": lambda brain: brain.shape.scale[2],
    "sulcus_depth_mm": lambda brain: brain.shape.sulcus_depth,
    "nuclei": lambda brain: brain.shape.nuclei,
}


def brain_parameters(subject: BrainMRI, names: Sequence[str] = tuple(BRAIN_PARAMETERS)) -> NDArray[np.float32]:
    """Read the true parameters of a subject.

    Args:
        subject: the brain.
        names: keys of `BRAIN_PARAMETERS`.

    Returns:
        Their values, (P,) float32: in mm if the name says so, otherwise relative to the mean brain.

    Raises:
        ValueError: if a name is unknown.
    """
    unknown = sorted(set(names) - set(BRAIN_PARAMETERS))
    if unknown:
        raise ValueError(f"parameters {unknown} are unknown; choose from {', '.join(BRAIN_PARAMETERS)}")
    return np.array([BRAIN_PARAMETERS[name](subject) for name in names], np.float32)


class BrainIdentityDataset(ParameterSet, PairedBrainDataset):
    """The items of `PairedBrainDataset` with ``parameters`` (P,), for training a network that recognizes subjects.

    ``image`` and ``image_true`` show one subject in both classes, like a counterfactual and its input.

    Args:
        split: "train", "val", "oracle", "test" or "demo"; their subjects are disjoint.
        count: number of subjects.
        parameters: names of the parameters, see `BRAIN_PARAMETERS`.
        seed: seed of the set.
        size: voxels along x, y and z.
        spacing: voxel spacing in mm.
        cache_dir: folder for caching the rendered pairs; None renders them each time.
        transform: applied to every item.
        progress: whether to show a progress bar.
    """

    def __init__(
        self,
        split: str = "oracle",
        count: int = 160,
        parameters: Sequence[str] = tuple(BRAIN_PARAMETERS),
        *,
        seed: int = 0,
        size: Sequence[int] = (40, 48, 40),
        spacing: float = 4.0,
        cache_dir: str | Path | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        progress: bool = True,
    ) -> None:
        self.names = tuple(parameters)
        grid = "x".join(str(int(n)) for n in size)
        name = f"brain_mri_pairs_{split}_{count}_{grid}_{spacing:g}mm_seed{seed}.npz"
        super().__init__(
            split,
            count,
            seed=seed,
            size=size,
            spacing=spacing,
            cache_file=None if cache_dir is None else Path(cache_dir) / name,
            transform=transform,
            progress=progress,
        )
        seeds = self._arrays["subject"]
        self.parameters = np.stack([brain_parameters(BrainMRI(int(value)), self.names) for value in seeds])

    def _item(self, index: int) -> dict[str, Any]:
        return {**super()._item(index), "parameters": torch.from_numpy(self.parameters[index])}
