# SPDX-License-Identifier: Apache-2.0
"""Images from noise: a sampler for prompts or classes, the job that fills a store with them, and filters for it."""

from __future__ import annotations

from medcf.synthesis.filters import (
    CopyFilter,
    JudgeFilter,
    RatedFilter,
    StructureFilter,
    at_device,
    filter_store,
    read_ratings,
)
from medcf.synthesis.generation import Generation
from medcf.synthesis.sampler import Request, Sample, Sampler, spread_requests

__all__ = [
    "CopyFilter",
    "Generation",
    "JudgeFilter",
    "RatedFilter",
    "Request",
    "Sample",
    "Sampler",
    "StructureFilter",
    "at_device",
    "filter_store",
    "read_ratings",
    "spread_requests",
]
