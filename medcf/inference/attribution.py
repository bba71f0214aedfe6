# SPDX-License-Identifier: Apache-2.0
"""The map of a finding: the abnormal image minus the normal one, inside an organ (VALD-MD, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Attribution"]

#: Words for the two signs of a map relative to counterfactual minus input.
SIGNS = {1: "counterfactual - input", -1: "input - counterfactual"}


@dataclass(frozen=True)
class Attribution:
    """How a bundle makes its attribution map, M = x^a - x^n.

    The map is positive where the abnormal image x^a is brighter than the normal one x^n, whichever of the two was
    given: an input that the classifier calls abnormal minus its counterfactual, or the counterfactual of a normal input
    minus that input. The paper has this sign in section 3, and the other one in section 4.1.

    Args:
        organ: images (B, C, *spatial) in [-1, 1] to the organ (B, 1, *spatial), in [0, 1], such as
            `medcf.guidance.SegmentedRegion`.
        normal_class: the class of the classifier that has no finding.
    """

    organ: Callable[[Tensor], Tensor]
    normal_class: int = 0

    def columns(self, image: Tensor, labels: list[int]) -> dict[str, list]:
        """Return, for a batch, each image's organ (1, *grid) and sign.

        Args:
            image: the inputs (B, C, *grid).
            labels: the class that the classifier gives each input.
        """
        signs = [1 if label == self.normal_class else -1 for label in labels]
        return {"organ": list(self.organ(image)), "attribution_sign": signs}

    @staticmethod
    def of(difference: NDArray[np.float32], organ: NDArray[np.bool_], sign: int) -> NDArray[np.float32]:
        """Return the map (*spatial): a difference, counterfactual minus input, with a sign, and 0 outside the organ."""
        return np.where(organ, np.float32(sign) * difference, np.float32(0))


def organ_on(organ: Tensor, back: Callable[[Tensor], Tensor]) -> NDArray[np.bool_]:
    """Return an organ (1, *grid) in [0, 1] on an image's own matrix, bool; ``back`` resamples."""
    return (back(organ.as_subclass(torch.Tensor).detach().cpu().float())[0] >= 0.5).numpy()
