# SPDX-License-Identifier: Apache-2.0
"""The denoising loop shared by all methods, its hooks, and the noise of each sample."""

from __future__ import annotations

from medcf.sampling.loop import Chain, Hook, denoise
from medcf.sampling.noise import make_generators, noised, standard_noise

__all__ = ["Chain", "Hook", "denoise", "make_generators", "noised", "standard_noise"]
