# SPDX-License-Identifier: Apache-2.0
"""Diff-ICE with one pass: the paper's method before its iterations."""

from __future__ import annotations

from typing import Any, ClassVar

from medcf.inferers.diffice import DiffICEInferer
from medcf.registry import METHODS

__all__ = ["DiffICESingleInferer"]


class DiffICESingleInferer(DiffICEInferer):
    """``DiffICEInferer`` with L = 1 (Diff-ICE, section 3.2, before the iterations are introduced).

    Its result is bit-identical to the first iterate of ``DiffICEInferer``.

    Args:
        args: see ``DiffICEInferer``.
        options: see ``DiffICEInferer``, also for errors; without ``num_iterations``.
    """

    title = "Diff-ICE, one pass"
    fixed_options: ClassVar[frozenset[str]] = frozenset({"num_iterations"})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, num_iterations=1, **options)


METHODS.add("diffice_single", "Diff-ICE with a single pass", DiffICESingleInferer)
