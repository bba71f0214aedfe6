# SPDX-License-Identifier: Apache-2.0
"""Networks used only for their gradients with respect to the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["frozen"]


@contextmanager
def frozen(*networks: Any) -> Iterator[None]:
    """Put networks into eval mode without parameter gradients, then restore their exact previous state.

    Unlike ``monai.networks.utils.eval_mode`` it leaves autograd on and remembers the mode of every submodule (a frozen
    segmenter inside a classifier in training stays in eval mode) and of every parameter. Anything that is not an
    ``nn.Module`` is ignored.

    Args:
        networks: denoiser, classifier, feature extractor.
    """
    modules = {module: module.training for net in networks if isinstance(net, nn.Module) for module in net.modules()}
    parameters = {p: p.requires_grad for module in modules for p in module.parameters(recurse=False)}
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modules.items():
            module.training = training
        for parameter, requires_grad in parameters.items():
            parameter.requires_grad_(requires_grad)
