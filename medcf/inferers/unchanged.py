# SPDX-License-Identifier: Apache-2.0
"""A control: the input itself, which every distance to the input rewards although it is not a counterfactual."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcf.inferers.method import Method
from medcf.inferers.options import Options
from medcf.inferers.passes import Pass
from medcf.registry import METHODS

__all__ = ["UnchangedInferer"]


@dataclass(frozen=True, kw_only=True)
class UnchangedOptions(Options):
    """Options of the control: one pass, of nothing."""

    num_iterations: int = field(default=1, init=False)


class UnchangedInferer(Method):
    """Return the input as the counterfactual: no flip, no cost, perfect similarity."""

    title = "unchanged"
    Options = UnchangedOptions
    needs_gradients = False
    needs_network = False

    def run_pass(self, run: Pass) -> None:
        """Leave everything unchanged."""


METHODS.add("unchanged", "Control: the input itself", UnchangedInferer)
