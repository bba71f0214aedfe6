# SPDX-License-Identifier: Apache-2.0
"""Cases, the images they point to, and the network's grid."""

from __future__ import annotations

from medcf.data.case import Case
from medcf.data.counterfactual_runs import CounterfactualRuns
from medcf.data.find import find_cases
from medcf.data.grid import Grid, GridRecord, grid_record
from medcf.data.hybrid import HybridDataset, check_leak
from medcf.data.image import get_spacing, to_luminance
from medcf.data.read import StudyReader, read, read_labels
from medcf.data.store_writer import StoreWriter
from medcf.data.synthetic_store import SyntheticStore

__all__ = [
    "Case",
    "CounterfactualRuns",
    "Grid",
    "GridRecord",
    "HybridDataset",
    "StoreWriter",
    "StudyReader",
    "SyntheticStore",
    "check_leak",
    "find_cases",
    "get_spacing",
    "grid_record",
    "read",
    "read_labels",
    "to_luminance",
]
