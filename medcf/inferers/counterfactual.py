# SPDX-License-Identifier: Apache-2.0
"""What a counterfactual method returns: the image, the way there and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["Counterfactual"]


@dataclass(frozen=True)
class Counterfactual:
    """The counterfactuals of a batch of B images after at most L passes.

    Attributes:
        image: counterfactuals (B, C, *spatial) in [-1, 1]; a MetaTensor where the input was one.
        trajectory: (B, L + 1, C, *spatial), the input first; an image that left early repeats its last iterate.
        confidences: the classifier's probability of the target at each iterate (B, L + 1).
        target: wanted class per image (B,).
        num_function_evaluations: forwards of the denoising network per image (B,), searched scales included.
        flipped: images (B,) that were not of the target class and now are.
        unchanged: images (B,) that were of the target class from the start and came back as they were.
        scale: classifier scale of the last pass of each image (B,); NaN where none ran.
        iterations: passes that ran for each image (B,).
        scales: classifier scale kept in each pass (B, L); NaN where none ran.
        extras: what only one method tells, by name, (B,) each: its page says what.
    """

    image: torch.Tensor
    trajectory: torch.Tensor
    confidences: torch.Tensor
    target: torch.Tensor
    num_function_evaluations: torch.Tensor
    flipped: torch.Tensor
    unchanged: torch.Tensor
    scale: torch.Tensor
    iterations: torch.Tensor
    scales: torch.Tensor
    extras: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def difference(self) -> torch.Tensor:
        """Counterfactual minus input (B, C, *spatial), in [-2, 2]."""
        return self.image - self.trajectory[:, 0]

    @property
    def total_function_evaluations(self) -> int:
        """Forwards of the denoising network over all images of the batch."""
        return int(self.num_function_evaluations.sum())
