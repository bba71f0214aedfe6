# SPDX-License-Identifier: Apache-2.0
"""Which layers of a network an adapter changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from medcf.networks.text_encoder import TextEncoder

__all__ = ["Part", "Targets", "adapted_parts", "plain_name", "target_layers"]

Targets = Literal["cross-attention", "all attention and feed-forward"]
_TARGETS = ("cross-attention", "all attention and feed-forward")
#: Classes of MONAI and diffusers whose every projection is attention, feed-forward, or the way in and out of both.
_TRANSFORMERS = ("SpatialTransformer", "SpatialAttentionBlock", "Transformer2DModel", "Attention")


@dataclass(frozen=True)
class Part:
    """A module that peft adapts as a whole.

    Attributes:
        name: "unet" or "text_encoder", as the pipelines of diffusers name it.
        module: MONAI's or diffusers' U-Net, or a text model of transformers.
        inner: what files insert between the part and its modules: CLIP's were once in a submodule ``text_model``, and
            the files of diffusers and kohya still say so.
    """

    name: str
    module: nn.Module
    inner: str = ""


def adapted_parts(network: nn.Module) -> list[Part]:
    """Return the U-Net and the text model of a network, without what wraps them.

    Args:
        network: a U-Net, `PromptUNet`, or `TextEncoder`.
    """
    parts, unet = [], network
    while isinstance(getattr(unet, "unet", None), nn.Module):
        unet = unet.unet  # type: ignore[assignment]
    if not isinstance(network, TextEncoder):
        parts.append(Part("unet", unet))
    encoder = network if isinstance(network, TextEncoder) else getattr(network, "text_encoder", None)
    if isinstance(encoder, TextEncoder):
        flattened = type(encoder.model).__name__.startswith("CLIPText") and not hasattr(encoder.model, "text_model")
        parts.append(Part("text_encoder", encoder.model, "text_model." if flattened else ""))
    return parts


def target_layers(part: Part, targets: Targets) -> list[str]:
    """List the linear layers and convolutions of 1 x 1 that an adapter changes.

    "cross-attention" is the paper's set: query, key, value and output of the U-Net's cross-attention. "all attention
    and feed-forward" is its trainer's: self-attention, feed-forward, and the projections in and out of the transformer
    blocks, too, and all attention and feed-forward layers of the text model.

    Args:
        part: the U-Net or the text model.
        targets: one of the two sets.

    Returns:
        Names of modules of the part; empty if it has none.

    Raises:
        ValueError: if ``targets`` is unknown.
    """
    if targets not in _TARGETS:
        raise ValueError(f"targets={targets!r} is unknown: give {' or '.join(map(repr, _TARGETS))}.")
    modules = {plain_name(name): module for name, module in part.module.named_modules() if ".lora_" not in name}
    layers = [name for name, module in modules.items() if isinstance(module, nn.Linear) or _is_pointwise(module)]
    if part.name == "text_encoder":  # transformers' attention and feed-forward have all linear layers of a text model
        return layers if targets == _TARGETS[1] else []
    if targets == _TARGETS[0]:
        return [name for name in layers if ".attn2." in f".{name}"]
    blocks = tuple(f"{name}." for name, module in modules.items() if type(module).__name__ in _TRANSFORMERS)
    return [name for name in layers if name.startswith(blocks)]


def plain_name(name: str) -> str:
    """Return a module's name without what peft inserts."""
    return name.removesuffix(".base_layer")


def _is_pointwise(module: Any) -> bool:
    return isinstance(module, nn.Conv2d | nn.Conv3d) and set(module.kernel_size) == {1}
