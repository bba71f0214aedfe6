# SPDX-License-Identifier: Apache-2.0
"""Schedulers by name."""

from __future__ import annotations

from typing import Any

from medcf.registry import SCHEDULERS, create

__all__ = ["create_scheduler"]


def create_scheduler(name: str, **kwargs: Any) -> Any:
    """Create a registered scheduler, including plugins', so that a config changes the solver by name only.

    Args:
        name: name in ``medcf.registry.SCHEDULERS``: "ddpm", "ddim", "ddim_inverse", ...
        kwargs: arguments of that scheduler's constructor.

    Returns:
        The scheduler.

    Raises:
        ValueError: if there is no such scheduler (the message lists the known ones), or it rejects an argument.

    Example:
        >>> create_scheduler("ddim", num_train_timesteps=100, eta=0.5).num_train_timesteps
        100
    """
    return create(SCHEDULERS, name, **kwargs)
