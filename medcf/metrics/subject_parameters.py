# SPDX-License-Identifier: Apache-2.0
"""Identity preserved: do the subject's own parameters, recovered from the counterfactual, stay the same?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from medcf.metrics.base import CaseMetric, collected
from medcf.metrics.bootstrap import interval_of_entered
from medcf.registry import METRICS

__all__ = ["SubjectParameters"]


class SubjectParameters(CaseMetric):
    """Error of the subject parameters that a network recovers from the counterfactual.

    The value of a case is the mean over the parameters of ``|recovered - true| / std``: errors in units of the
    variation between subjects. This also includes the network's own error, so there are two anchors: the floor, the
    error of what the network recovers from a true image of the same subject (``reference``), and ``chance``, the error
    of the other subjects' references. ``lost_identity`` locates the error between them: 0 is as close as can be
    measured, 1 is anybody else. A counterfactual that is mirrored, resized or taken from another subject fails here
    even if it is realistic and flips the classifier.

    Args:
        names: names of the P parameters, with their units.
        std: (P,) standard deviation of each over the population, in the same units.

    Example:
        >>> metric = SubjectParameters(["bpd_mm", "ofd_mm"], std=[8.0, 10.0])
        >>> true = torch.tensor([[70.0, 90.0], [86.0, 110.0]])
        >>> _ = metric(torch.tensor([[74.0, 90.0], [86.0, 100.0]]), true)
        >>> metric.aggregate(), metric.mean_absolute_error()
        (0.375, {'bpd_mm': 2.0, 'ofd_mm': 5.0})
    """

    higher_is_better = False
    needs: ClassVar = {"y_pred": "{of}({on})", "y": "parameters", "reference": "{of}(image_true)"}
    quantity = "parameters"
    left_out_reason = "a recovered parameter is not finite"

    def __init__(self, names: Sequence[str], std: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.names = tuple(names)
        self.std = torch.as_tensor(std).double().cpu()
        if self.std.shape != (len(self.names),) or not bool((self.std > 0).all()):
            raise ValueError(f"std must hold {len(self.names)} positive numbers, one per name.")

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Collect recovered, true (``y``) and, optionally, ``reference`` parameters, (B, P) each in physical units."""
        if y is None:
            raise ValueError("SubjectParameters needs the subjects' true parameters as y.")
        reference = kwargs.get("reference")
        columns = [y_pred, y, torch.full_like(y_pred, torch.nan) if reference is None else reference]
        for name, values in zip(("y_pred", "y", "reference"), columns, strict=True):
            if values.shape != (len(y_pred), len(self.names)):
                raise ValueError(f"{name} has the shape {tuple(values.shape)}, not (B, {len(self.names)}).")
        return torch.cat([values.double().cpu() for values in columns], dim=1)

    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return recovered, true and reference parameters, each (N, P); rows with non-finite values are NaN."""
        found, true, reference = collected(self).chunk(3, dim=1)
        broken = ~found.isfinite().all(1, keepdim=True)
        return found.masked_fill(broken, torch.nan), true, reference

    def _error(self, found: Tensor, true: Tensor) -> Tensor:
        return ((found - true).abs() / self.std).mean(1)

    def per_case(self) -> Tensor:
        """Return the normalized error of each case, (N,)."""
        found, true, _ = self._columns()
        return self._error(found, true)

    def mean_absolute_error(self) -> dict[str, float]:
        """Return the mean absolute error of each parameter, in its units."""
        found, true, _ = self._columns()
        return dict(zip(self.names, (found - true).abs().nanmean(0).tolist(), strict=True))

    def chance(self) -> float:
        """Return the mean normalized error of other subjects' references (truths without one); NaN if none."""
        return float(self._chance_per_case().nanmean())

    def lost_identity(self) -> float:
        """Return (error - floor) / (chance - floor): 0 is as close as can be measured, 1 is anybody else.

        Without a reference the floor is 0.
        """
        return float(_lost(self.per_case(), self._floor_per_case(), self._chance_per_case()))

    def lost_identity_interval(
        self, *, groups: Sequence[Hashable] | None = None, **options: Any
    ) -> tuple[float, float]:
        """Return the bootstrap interval of ``lost_identity``; ``groups`` gives the subject of each case."""
        values = torch.stack([self.per_case(), self._floor_per_case(), self._chance_per_case()], dim=1)
        return interval_of_entered(
            lambda rows: float(_lost(*torch.as_tensor(rows).unbind(1))),
            values.numpy(),
            entered=values.isfinite().all(1).numpy(),
            groups=groups,
            **options,
        )

    def _floor_per_case(self) -> Tensor:
        _, true, reference = self._columns()
        floor = self._error(reference, true)
        return torch.zeros_like(floor) if bool(floor.isnan().all()) else floor

    def _chance_per_case(self) -> Tensor:
        """Return the mean error of other subjects' references for each case; equal truths belong to one subject."""
        _, true, reference = self._columns()
        images = true if bool(reference.isnan().all()) else reference
        return torch.stack([self._error(images[(true != own).any(1)], own).nanmean() for own in true])


def _lost(error: Tensor, floor: Tensor, chance: Tensor) -> Tensor:
    error, floor, chance = error.nanmean(), floor.nanmean(), chance.nanmean()
    return (error - floor) / (chance - floor)


METRICS.add("subject_parameters", "error of subject parameters recovered from the counterfactual", SubjectParameters)
