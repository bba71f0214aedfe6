# SPDX-License-Identifier: Apache-2.0
"""Reading studies, lists of cases, the network's grid, and phantoms."""

from __future__ import annotations

from medcf.data.datalist import build_datalist, read_case
from medcf.data.grid import GridRecord, apply_difference, from_grid, grid_record, to_grid
from medcf.data.pixels import get_spacing, to_luminance
from medcf.data.readers import inspect_study, read_study, sniff
from medcf.runtime.errors import UnreadableImage

__all__ = [
    "GridRecord",
    "UnreadableImage",
    "apply_difference",
    "build_datalist",
    "from_grid",
    "get_spacing",
    "grid_record",
    "inspect_study",
    "read_case",
    "read_study",
    "sniff",
    "to_grid",
    "to_luminance",
]
