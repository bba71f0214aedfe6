# SPDX-License-Identifier: Apache-2.0
"""A control: the input itself, which every distance to the input rewards although it is not a counterfactual."""

from __future__ import annotations

import torch

from medcf.inferers.base import CounterfactualInferer
from medcf.inferers.counterfactual import BatchState
from medcf.networks.denoiser import Network
from medcf.registry import METHODS
from medcf.runtime.progress import Progress

__all__ = ["UnchangedInferer"]


class UnchangedInferer(CounterfactualInferer):
    """Return the input as the counterfactual: no flip, no cost, perfect similarity.

    Accepts classifier and target like every method, and the options of ``CounterfactualInferer``.
    """

    title = "unchanged"
    needs_gradients = False
    needs_network = False

    def _iterate(self, state: BatchState, network: Network, bar: Progress) -> None:
        state.record(torch.zeros_like(state.unchanged))  # no pass has run

    def _run_pass(self, state: BatchState, indices: torch.Tensor, number: int, network: Network, bar: Progress) -> None:
        """Leave everything unchanged."""


METHODS.add("unchanged", "Control: the input itself", UnchangedInferer)
