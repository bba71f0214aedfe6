# SPDX-License-Identifier: Apache-2.0
"""From the network's grid back to the study's matrix: the original plus what the network changed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Transform

from medcf.data import from_grid, grid_record, to_luminance

__all__ = ["NativeCounterfactual", "NativeCounterfactuald"]


class NativeCounterfactual(Transform):
    """Add what changed on the network's grid to the original image.

    The original keeps its resolution, so detail that the grid cannot hold never looks like a finding.

    Args:
        intensity: the network's values of black and white.
    """

    def __init__(self, intensity: tuple[float, float] = (-1.0, 1.0)) -> None:
        self.range = float(intensity[1] - intensity[0])

    def __call__(  # type: ignore[override]
        self, original: torch.Tensor, trajectory: torch.Tensor, record: Mapping[str, object]
    ) -> dict[str, torch.Tensor]:
        """Bring a trajectory to the original's matrix.

        Args:
            original: (1 or 3, H, W) in [0, 1]; color becomes luminance.
            trajectory: (L + 1, 1, rows, columns) on the grid: the input, then the iterates.
            record: where the grid lies, from `medcf.data.to_grid`.

        Returns:
            ``original`` (H, W) in [0, 1]; ``counterfactual`` (H, W), original plus difference, clipped to [0, 1];
            ``difference`` (H, W), last iterate minus input in fractions of the full intensity range, not clipped;
            ``trajectory`` (L + 1, H, W) in [0, 1].
        """
        plane = torch.as_tensor(to_luminance(original)).as_subclass(torch.Tensor)[0].float()
        steps = trajectory.as_subclass(torch.Tensor).detach().cpu().float()[:, 0]
        differences = from_grid(steps - steps[:1], record) / self.range
        images = (plane + differences).clamp(0, 1)
        return {"original": plane, "counterfactual": images[-1], "difference": differences[-1], "trajectory": images}


class NativeCounterfactuald(Transform):
    """Dictionary version of `NativeCounterfactual`, for the postprocessing of `CounterfactualEvaluator`.

    Args:
        image_key: the image on the grid, which carries the grid's record.
        original_key: the image as it was read; the result is written under ``native``.
        trajectory_key: the trajectory on the grid.
        intensity: the network's values of black and white.
    """

    def __init__(
        self,
        image_key: str = "image",
        original_key: str = "original",
        trajectory_key: str = "trajectory",
        intensity: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        self.keys = (image_key, original_key, trajectory_key)
        self.transform = NativeCounterfactual(intensity)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with the images on the native matrix under ``native``."""
        image, original, trajectory = (data[key] for key in self.keys)
        return {**data, "native": self.transform(original, trajectory, grid_record(image))}
