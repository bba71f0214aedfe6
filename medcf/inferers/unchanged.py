# SPDX-License-Identifier: Apache-2.0
"""A control: the input itself, which every distance to the input rewards and no counterfactual is."""

from __future__ import annotations

from typing import Any

import torch

from medcf.inferers.base import CounterfactualInferer
from medcf.inferers.counterfactual import Iterates
from medcf.registry import METHODS

__all__ = ["UnchangedInferer"]


class UnchangedInferer(CounterfactualInferer):
    """Returns the input as the counterfactual: nothing is flipped, nothing is spent, all is alike.

    Takes the classifier and the target of every method and the options of ``CounterfactualInferer``.
    """

    title = "unchanged"
    needs_gradients = False
    needs_network = False

    def _iterate(self, state: Iterates, network: Any, bar: Any) -> None:
        state.record(torch.zeros_like(state.unchanged))  # no pass has run

    def _run_pass(self, state: Iterates, indices: torch.Tensor, number: int, network: Any, bar: Any) -> None:
        """Leave everything as it is."""


METHODS.add("unchanged", "Control: the input itself", UnchangedInferer)
