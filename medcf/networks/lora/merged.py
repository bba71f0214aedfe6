# SPDX-License-Identifier: Apache-2.0
"""Adapters in a bundle's inference: merged into the network before it is used, as any method expects it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from monai.utils import ensure_tuple
from torch import nn

from medcf.networks.lora.adapters import Adapters

__all__ = ["adapter_files", "with_adapters"]

Network = TypeVar("Network", bound=nn.Module)
Files = str | Path | Sequence[str | Path] | None


def with_adapters(network: Network, files: Files, ratios: float | Sequence[float] = 1.0) -> Network:
    """Merge adapters into a network with its trained weights.

    Args:
        network: see `Adapters`.
        files: one adapter, several to be mixed, or None.
        ratios: the merging ratio, 0 to 1, or one for each adapter.

    Returns:
        The same network; its state dict keeps its names.

    Raises:
        FileNotFoundError: if a file does not exist.
        ImportError: if peft is not installed.
        ValueError: if an adapter was trained on another base, or there are more or fewer ratios than adapters.
    """
    paths = list(adapter_files(files).values())
    try:
        each = [float(ratio) for ratio in ensure_tuple(ratios)]
    except (TypeError, ValueError):
        raise ValueError(f"merging_ratio={ratios!r} is no number: give 0 to 1, or a list of one for each.") from None
    if not paths:
        if each != [1.0]:
            raise ValueError(f"merging_ratio={ratios} is for an adapter: give its file, too.")
        return network
    each = each * len(paths) if len(each) == 1 else each
    if len(each) != len(paths):
        raise ValueError(f"There are {len(paths)} adapters and {len(each)} merging ratios: give one for each.")
    adapters = Adapters(network)
    names = [adapters.load(path, f"adapter_{number}") for number, path in enumerate(paths, 1)]
    adapters.use(dict(zip(names, each, strict=True)))
    adapters.merge()
    adapters.remove()
    return network


def adapter_files(files: Files) -> dict[str, Path]:
    """Name the files of adapters, for the manifest of a run.

    Example:
        >>> sorted(adapter_files(["a.safetensors", "b.safetensors"]))
        ['adapter 1', 'adapter 2']
    """
    return {f"adapter {number}": Path(path) for number, path in enumerate(ensure_tuple(files or ()), 1)}
