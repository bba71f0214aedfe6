# SPDX-License-Identifier: Apache-2.0
"""The denoising loop shared by all methods, its hooks, the noise of each sample, and the space it runs in."""

from __future__ import annotations

from medcf.sampling.chain import Chain, draw_samples
from medcf.sampling.loop import Hook, denoise
from medcf.sampling.noise import make_generators, noised, standard_noise
from medcf.sampling.space import LatentSpace, PixelSpace, Space

__all__ = [
    "Chain",
    "Hook",
    "LatentSpace",
    "PixelSpace",
    "Space",
    "denoise",
    "draw_samples",
    "make_generators",
    "noised",
    "standard_noise",
]
