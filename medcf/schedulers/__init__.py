# SPDX-License-Identifier: Apache-2.0
"""Noise schedulers that step along the kept timesteps: drop-in replacements for MONAI's."""

from __future__ import annotations

from medcf.schedulers.adapted import adapt_scheduler
from medcf.schedulers.base import RespacedScheduler
from medcf.schedulers.ddim import RespacedDDIMScheduler
from medcf.schedulers.ddim_inverse import DDIMInverseScheduler
from medcf.schedulers.ddpm import RespacedDDPMScheduler
from medcf.schedulers.diffusers_solver import DiffusersScheduler
from medcf.schedulers.plms import PLMSScheduler
from medcf.schedulers.prediction import Prediction
from medcf.schedulers.selection import create_scheduler
from medcf.schedulers.spacing import Spacing, kept_timesteps
from medcf.schedulers.step import Step

__all__ = [
    "DDIMInverseScheduler",
    "DiffusersScheduler",
    "PLMSScheduler",
    "Prediction",
    "RespacedDDIMScheduler",
    "RespacedDDPMScheduler",
    "RespacedScheduler",
    "Spacing",
    "Step",
    "adapt_scheduler",
    "create_scheduler",
    "kept_timesteps",
]
