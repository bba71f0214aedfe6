# SPDX-License-Identifier: Apache-2.0
"""Networks of the methods, and the one face of their denoisers."""

from __future__ import annotations

from medcf.networks.denoiser import Denoiser

__all__ = ["Denoiser"]
