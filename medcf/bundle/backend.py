# SPDX-License-Identifier: Apache-2.0
"""Which runtime computes a bundle's denoiser: torch, or onnxruntime from an exported file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from monai.utils import ensure_tuple
from torch import nn

from medcf.networks.export import OnnxNetwork
from medcf.runtime.choices import check_choice

__all__ = ["Backend", "with_backend"]

logger = logging.getLogger(__name__)

Backend = Literal["eager", "onnxruntime"]


def with_backend(
    network: nn.Module,
    backend: Backend,
    files: str | Path | Sequence[str | Path],
    bundle: str | Path,
    inferer: Any = None,
) -> nn.Module:
    """Return the denoiser as a backend computes it.

    A method that needs more of the network than its predictions (gradients through it, its attention, a mask to follow)
    runs eager, with a warning; a method without a network does so silently.

    Args:
        network: the denoiser with its weights.
        backend: "eager" is the network itself; "onnxruntime" computes it on the CPU in float32.
        files: where ``python -m medcf.bundle export BUNDLE --format onnx`` may have written it; the first one of the
            network's weights is used.
        bundle: folder of the bundle, for the command that an error names.
        inferer: the method that calls the network.

    Raises:
        FileNotFoundError: if none of the files exists.
        ImportError: if onnxruntime is not installed.
        ValueError: if the backend is unknown, the files are of other weights, or the network is on another device.
    """
    check_choice("backend", backend, Backend)
    if backend == "eager" or not getattr(inferer, "needs_network", True):
        return network
    if reason := getattr(inferer, "eager_reason", lambda: None)():
        name = getattr(inferer, "title", type(inferer).__name__)
        logger.warning("backend='onnxruntime': %s %s, so the network runs eager.", name, reason)
        return network
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    if device.type != "cpu":
        raise ValueError(f"backend='onnxruntime' runs on the CPU, and the network is on {device}: give --device cpu.")
    paths = [Path(file) for file in ensure_tuple(files)]
    remedy = (
        f"Run: python -m medcf.bundle export {bundle} --format onnx (with the run's options for weights, such as "
        "--models_dir or --adapter, if any; --overwrite replaces a file), or give its file as onnx_file."
    )
    problems = []
    for path in paths:
        if path.is_file():
            try:
                return OnnxNetwork(path, network)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise ValueError(f"{' '.join(problems)} {remedy}")
    places = " or ".join(str(path) for path in paths)
    raise FileNotFoundError(f"The network was not exported to {places}. {remedy}")
