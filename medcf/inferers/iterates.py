# SPDX-License-Identifier: Apache-2.0
"""The state of a batch between the passes of an iterative method."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from medcf.inferers.counterfactual import Counterfactual

__all__ = ["Iterates"]


class Iterates:
    """Where each of B images stands, and every iterate so far.

    Args:
        original: inputs (B, C, *spatial).
        target: wanted class per image (B,).
        ids: one identity per image.
        confidence: the classifier's probability of the target (B,) at the inputs.
        unchanged: inputs (B,) that already are of the target class.
    """

    def __init__(
        self,
        original: torch.Tensor,
        target: torch.Tensor,
        ids: Sequence[Hashable],
        confidence: torch.Tensor,
        unchanged: torch.Tensor,
    ) -> None:
        self.original = original
        self.target = target
        self.ids = ids
        self.unchanged = unchanged
        self.current = original.clone()
        self.confidence = confidence.clone()
        self.flipped = torch.zeros_like(unchanged)
        self.scale = torch.full_like(confidence, float("nan"))
        self.evaluations = torch.zeros_like(target)
        #: phi of the originals, a list of (B, ...), where a method computes it once for all its passes.
        self.features: list[torch.Tensor] | None = None
        #: Further values of a method, (B,) each, by name; they reach the user in ``Counterfactual.extras``.
        self.extras: dict[str, torch.Tensor] = {}
        self._iterations = torch.zeros_like(target)
        self._images = [original]
        self._confidences = [confidence]
        self._scales: list[torch.Tensor] = []

    def record(self, active: torch.Tensor) -> None:
        """Note the iterates after a pass in which the images ``active`` (B,) took part."""
        self._iterations += active
        self._images.append(self.current.clone())
        self._confidences.append(self.confidence.clone())
        self._scales.append(torch.where(active, self.scale, float("nan")))

    def result(self) -> Counterfactual:
        """Return the counterfactuals with their trajectories."""
        return Counterfactual(
            image=self.current,
            trajectory=torch.stack(self._images, dim=1),
            confidences=torch.stack(self._confidences, dim=1),
            target=self.target,
            num_function_evaluations=self.evaluations,
            flipped=self.flipped,
            unchanged=self.unchanged,
            scale=self.scale,
            iterations=self._iterations,
            scales=torch.stack(self._scales, dim=1),
            extras=self.extras,
        )
