# SPDX-License-Identifier: Apache-2.0
"""Speeds up a network on a device without changing its results beyond rounding."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar

import torch
from torch import nn

__all__ = ["accelerate", "autocast", "half_precision", "has_half_precision"]

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)


def half_precision(device: torch.device | str) -> torch.dtype:
    """Return the 16-bit type that is fast on a device and keeps gradients from vanishing: bfloat16 if available.

    Args:
        device: device for the computation.

    Returns:
        ``torch.bfloat16``, or ``torch.float16`` on GPUs before Ampere.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def has_half_precision(device: torch.device | str) -> bool:
    """Tell whether a device multiplies 16-bit numbers natively: any GPU, and CPUs with AVX512-BF16 or AMX.

    Other CPUs emulate bfloat16 and become slower.
    """
    if torch.device(device).type != "cpu":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device | str, *, enabled: bool | Literal["auto"] = True) -> AbstractContextManager[None]:
    """Return a context in which networks compute in 16 bits; schedule and loss stay in 32 bits.

    Args:
        device: device for the computation.
        enabled: False keeps everything in 32 bits; "auto" does so if 16 bits would be emulated.

    Raises:
        ValueError: if ``enabled`` has another value.
    """
    enabled = {"true": True}.get(str(enabled), enabled)  # spelling on the command line
    if enabled == "auto":
        enabled = has_half_precision(device)
    elif not isinstance(enabled, bool):
        raise ValueError(f"amp={enabled!r} is unknown: use true, false or 'auto'.")
    return torch.autocast(torch.device(device).type, dtype=half_precision(device), enabled=enabled)


def accelerate(network: Module, *, channels_last: bool = False, compile: bool | str = False) -> Module:
    """Prepare a network for inference; with the default options it is returned unchanged.

    Args:
        network: a network on its device, for inference.
        channels_last: store convolution weights channels last; activations follow.
        compile: compile its forward at the first call: True, or a mode of ``torch.compile`` such as
            ``"reduce-overhead"`` (CUDA graphs) or ``"max-autotune"``. The first call takes about a minute; a second
            batch size triggers one more compilation, for all sizes. Without a C++ compiler, or if compilation fails,
            the network runs uncompiled, with a warning.

    Returns:
        The same network; its state dict keeps its names.
    """
    if channels_last:
        spatial = {parameter.ndim for parameter in network.parameters() if parameter.ndim in (4, 5)}
        for ndim, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if spatial == {ndim}:
                network.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stubs lack this form
    if compile:
        if not _has_compiler():
            logger.warning(
                "compile: no C++ compiler was found (CXX, g++, clang++), so %s runs uncompiled; install one, or leave "
                "--compile away.",
                type(network).__name__,
            )
            return network
        _compile_forward(network, None if compile is True else compile)
    return network


def _compile_forward(network: nn.Module, mode: str | None) -> None:
    """Replace a network's forward by a compiled one that reverts permanently if compilation fails."""
    from torch._dynamo.exc import TorchDynamoException

    plain = network.forward
    compiled = torch.compile(plain, mode=mode)

    def forward(*inputs: Any, **options: Any) -> Any:
        try:
            return compiled(*inputs, **options)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            logger.warning("compile: %s runs uncompiled: compilation failed (%s).", type(network).__name__, reason)
            network.forward = plain
            return plain(*inputs, **options)

    network.forward = forward


def _has_compiler() -> bool:
    """Look for the compiler that torch's inductor calls, on GPUs too: Triton builds its launchers with it."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++", "cl")
    return any(shutil.which(name) for name in names if name)
