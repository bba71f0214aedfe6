# SPDX-License-Identifier: Apache-2.0
"""Perceptual features phi(x) from any network, selected by layer name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medcf.runtime.weights import load_weights

__all__ = ["PerceptualFeatures"]


class _LayersReached(Exception):  # noqa: N818 (not an error: it ends a forward pass early)
    pass


class PerceptualFeatures(nn.Module):
    """Features from named layers of an extractor, for the proximity term of a counterfactual loss.

    The forward pass stops at the last requested layer, so features of a first layer cost one convolution. Hooks exist
    only during the call, so the extractor may be the classifier itself. Early layers preserve the outline of an
    anatomy; deeper layers allow it to move.

    Args:
        extractor: any network, such as a classifier, ``SonoNet`` or a MONAI ``resnet50`` with RadImageNet weights.
        layers: name or names as in ``extractor.named_modules()``; None uses the extractor's own output.
        weights: plain state dict to load into the extractor.
        rename: name in that file to the extractor's, see `medcf.runtime.weights.load_weights`.
        num_channels: channels that the extractor expects; a single-channel image is repeated.
        mean: subtracted from the image in [-1, 1], a number or one per channel.
        std: divides the image after the subtraction, a number or one per channel.

    Raises:
        ValueError: if a layer is unknown (the message lists similar ones) or the weights fit another architecture.
        FileNotFoundError: if the weights file does not exist.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        extractor: nn.Module,
        layers: str | Sequence[str] | None = None,
        *,
        weights: str | Path | None = None,
        rename: Callable[[str], str | None] | None = None,
        num_channels: int | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers or ())
        self.num_channels = num_channels
        self._sees_image_as_it_is = num_channels is None and mean == 0 and std == 1
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32), persistent=False)
        known = dict(extractor.named_modules())
        for layer in self.layers:
            if layer not in known or not layer:
                similar = difflib.get_close_matches(layer, known, n=5, cutoff=0.3) or list(known)[1:9]
                raise ValueError(
                    f"layers: {type(extractor).__name__} has no layer {layer!r}; there are {', '.join(similar)}."
                )
        if weights is not None:
            remedy = "Give a plain state dict for the extractor."
            load_weights(extractor, weights, remedy=remedy, frozen=False, rename=rename)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Compute the features.

        Args:
            image: (B, C, *spatial) in [-1, 1].

        Returns:
            One tensor (B, ...) per layer, in the given order.
        """
        return self._run(image, stop=True)[0]

    def with_output(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Compute the features and the extractor's own output in one forward pass; see ``shares_forward_with``."""
        features, output = self._run(image, stop=False)
        assert output is not None  # the forward pass was not stopped
        return features, output

    def shares_forward_with(self, network: object) -> bool:
        """Return whether ``network`` is the extractor and sees the same image, so that one forward pass serves both."""
        return network is self.extractor and self._sees_image_as_it_is

    def _run(self, image: torch.Tensor, *, stop: bool) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Return the features, and the output unless the forward pass stopped at the last requested layer."""
        image = self._prepare(image)
        found: dict[str, torch.Tensor] = {}
        output = None

        def keep(layer: str, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            found[layer] = output
            if stop and len(found) == len(self.layers):
                raise _LayersReached

        modules = [self.extractor.get_submodule(layer) for layer in self.layers]
        handles = [m.register_forward_hook(partial(keep, name)) for name, m in zip(self.layers, modules, strict=True)]
        try:
            output = self.extractor(image)
        except _LayersReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if not self.layers and output is not None:
            return [output], output
        if missing := [layer for layer in self.layers if layer not in found]:
            raise ValueError(f"layers: {', '.join(missing)} were not used in the extractor's forward pass.")
        return [found[layer] for layer in self.layers], output

    def _prepare(self, image: torch.Tensor) -> torch.Tensor:
        if self.num_channels is not None and image.shape[1] != self.num_channels:
            if image.shape[1] != 1:
                raise ValueError(
                    f"num_channels={self.num_channels}: an image with {image.shape[1]} channels cannot be repeated, "
                    "only one with a single channel."
                )
            image = image.expand(-1, self.num_channels, *image.shape[2:])
        if self._sees_image_as_it_is:
            return image
        shape = (1, -1, *([1] * (image.ndim - 2)))
        return (image - self.mean.reshape(shape)) / self.std.reshape(shape)
