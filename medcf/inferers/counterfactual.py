# SPDX-License-Identifier: Apache-2.0
"""The result of a counterfactual method, and the state of a batch while it runs: images, trajectory and cost."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from monai.utils import convert_to_dst_type

__all__ = ["BatchState", "Counterfactual"]


@dataclass(frozen=True)
class Counterfactual:
    """The counterfactuals of a batch of B images after at most L passes.

    Attributes:
        image: counterfactuals (B, C, *spatial) in [-1, 1]; a MetaTensor if the input was one.
        trajectory: (B, L + 1, C, *spatial), starting with the input; an image that left early repeats its last iterate.
        confidences: the classifier's probability of the target at each iterate (B, L + 1).
        target: target class per image (B,).
        num_function_evaluations: evaluations of the denoising network per image (B,), including those for scale search.
        flipped: images (B,) that were not in the target class before and are now.
        unchanged: images (B,) that were in the target class from the start and were returned as they were.
        scale: classifier scale of each image's last pass (B,); NaN if none ran.
        iterations: number of passes run for each image (B,).
        scales: classifier scale kept in each pass (B, L); NaN if none ran.
        extras: values that only one method reports, by name, (B,) each; see the method's page.
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

    def rows(self, index: slice) -> Counterfactual:
        """Return the counterfactuals of some images of the batch."""
        parts = {each.name: getattr(self, each.name)[index] for each in fields(self) if each.name != "extras"}
        return Counterfactual(**parts, extras={name: value[index] for name, value in self.extras.items()})

    def like(self, inputs: torch.Tensor) -> Counterfactual:
        """Return the same with images of the inputs' type: a MetaTensor keeps its metadata."""
        return replace(self, image=convert_to_dst_type(self.image, inputs, dtype=torch.float32)[0])

    @property
    def difference(self) -> torch.Tensor:
        """Counterfactual minus input (B, C, *spatial), in [-2, 2]."""
        return self.image - self.trajectory[:, 0]

    @property
    def total_function_evaluations(self) -> int:
        """Evaluations of the denoising network over all images of the batch."""
        return int(self.num_function_evaluations.sum())


@dataclass(eq=False)
class BatchState:
    """The current state of a batch of B images, and every iterate so far.

    Args:
        original: inputs (B, C, *spatial).
        target: target class per image (B,).
        ids: one identity per image.
        confidence: the classifier's probability of the target (B,) at the inputs.
        unchanged: inputs (B,) that are already in the target class.
    """

    original: torch.Tensor
    target: torch.Tensor
    ids: Sequence[Hashable]
    confidence: torch.Tensor
    unchanged: torch.Tensor
    #: phi of the originals, a list of (B, ...), for methods that compute it once for all passes.
    features: list[torch.Tensor] | None = field(default=None, init=False)
    #: Where the images may change (B, 1, *spatial); None means everywhere.
    region: torch.Tensor | None = field(default=None, init=False)
    #: One seed per image.
    seeds: Sequence[int] = field(default=(), init=False)
    #: Further values of a method, (B,) each, by name; users find them in ``Counterfactual.extras``.
    extras: dict[str, torch.Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Start at the inputs."""
        self._images, self._confidences = [self.original], [self.confidence]
        self._scales: list[torch.Tensor] = []
        self.current, self.confidence = self.original.clone(), self.confidence.clone()
        self.flipped = torch.zeros_like(self.unchanged)
        self.scale = torch.full_like(self.confidence, float("nan"))
        self.evaluations, self._iterations = torch.zeros_like(self.target), torch.zeros_like(self.target)

    def inputs(self, index: torch.Tensor) -> torch.Tensor:
        """Return which image of the caller's batch each of the images ``index`` is."""
        return self.extras["source"][index] if "source" in self.extras else index

    def count(self, index: torch.Tensor, evaluations: torch.Tensor) -> None:
        """Add the network evaluations of the images ``index`` (N,), one number each or one for all."""
        added = evaluations.to(index.device).expand(len(index)).contiguous()
        self.evaluations.index_add_(0, index, added)

    def record(self, active: torch.Tensor) -> None:
        """Record the iterates after a pass over the images ``active`` (B,)."""
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
