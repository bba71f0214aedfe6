# SPDX-License-Identifier: Apache-2.0
"""Diff-ICE with one pass: the paper's method before its iterations."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcf.inferers.diffice import DiffICEInferer, DiffICEOptions
from medcf.inferers.method import Method
from medcf.inferers.scales import search_scales
from medcf.registry import METHODS

__all__ = ["DiffICESingleInferer"]


@dataclass(frozen=True, kw_only=True)
class DiffICESingleOptions(DiffICEOptions):
    """Options of Diff-ICE without ``num_iterations``, which is 1."""

    num_iterations: int = field(default=1, init=False)


class DiffICESingleInferer(Method):
    """Diff-ICE with L = 1 (section 3.2): bit-identical to the first iterate of ``DiffICEInferer``."""

    title = "Diff-ICE, one pass"
    Options = DiffICESingleOptions
    run_pass = search_scales
    prepared = DiffICEInferer.prepared
    eager_reason = DiffICEInferer.eager_reason
    hooks = DiffICEInferer.hooks


METHODS.add("diffice_single", "Diff-ICE with a single pass", DiffICESingleInferer)
