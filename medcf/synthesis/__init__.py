# SPDX-License-Identifier: Apache-2.0
"""Images from noise: a sampler for prompts or classes, and the job that fills a store with them."""

from __future__ import annotations

from medcf.synthesis.generation import Generation
from medcf.synthesis.sampler import Request, Sample, Sampler, spread_requests

__all__ = ["Generation", "Request", "Sample", "Sampler", "spread_requests"]
