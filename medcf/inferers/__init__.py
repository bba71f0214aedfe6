# SPDX-License-Identifier: Apache-2.0
"""Counterfactual methods as MONAI inferers, and the denoising loop they share."""

from __future__ import annotations

from typing import Any

from medcf.inferers.counterfactual import Counterfactual
from medcf.inferers.diffice import DiffICEInferer
from medcf.inferers.sampling import Hook, denoise, make_generators
from medcf.registry import METHODS, load_plugins, lookup

__all__ = ["Counterfactual", "DiffICEInferer", "Hook", "create_method", "denoise", "make_generators"]


def create_method(name: str, **kwargs: Any) -> Any:
    """Make a registered counterfactual method, plugins' included.

    Args:
        name: name in ``medcf.registry.METHODS``, for example "diffice".
        kwargs: arguments of that method's constructor: scheduler, classifier, target and its own options.

    Returns:
        The inferer, called as ``inferer(inputs, network)``.

    Raises:
        ValueError: there is no such method (the message lists those that exist), or it does not take an argument.
    """
    load_plugins()
    method = lookup(METHODS, name)
    try:
        return method(**kwargs)
    except TypeError as error:
        raise ValueError(f"The method {name!r} does not fit its arguments: {error}.") from error
