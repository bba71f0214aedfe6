# SPDX-License-Identifier: Apache-2.0
"""What a denoiser reads, and what stands in for an argument that is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from monai.networks.blocks.crossattention import CrossAttentionBlock
from torch import Tensor, nn

from medcf.networks.checks import size_divisor, spatial_dims
from medcf.networks.denoiser import unwrap

__all__ = ["Completed", "Signature", "complete"]


@dataclass(frozen=True, eq=False)
class Signature:
    """Sizes and conditions of a denoiser that is called as ``network(x, timesteps, context, class_labels)``.

    Attributes:
        channels: channels of x.
        spatial_dims: number of spatial dimensions.
        divisor: each side of x is a multiple of it.
        num_classes: number of class indices with the null class, which is the last; None if it reads no classes.
        features: features of a context token; None if it reads no context.
        null_context: embedding (1, tokens, features) of "no prompt"; None if it knows none.
    """

    channels: int
    spatial_dims: int
    divisor: int
    num_classes: int | None
    features: int | None
    null_context: Tensor | None

    @classmethod
    def of(cls, network: Any) -> Signature:
        """Read the signature of a network.

        Raises:
            ValueError: if it does not tell its channels or dimensions, as MONAI's diffusion networks do.
        """
        network = unwrap(network)
        channels = getattr(network, "in_channels", getattr(getattr(network, "unet", None), "in_channels", None))
        dims = spatial_dims(network)
        if not isinstance(channels, int) or dims is None:
            raise ValueError(
                f"{type(network).__name__} does not tell its in_channels, or has no convolution: only a network of the "
                "kind of MONAI's DiffusionModelUNet can be exported."
            )
        features = _features(network) if getattr(network, "with_conditioning", False) else None
        encoder, null = getattr(network, "text_encoder", None), None
        if features is not None and hasattr(encoder, "embed"):
            with torch.no_grad():
                null = encoder.embed([""]).detach().float().cpu()  # type: ignore[union-attr]
        classes = getattr(network, "num_class_embeds", None)
        return cls(channels, dims, size_divisor(network), classes, features, null)

    def names(self) -> list[str]:
        """List the arguments that the network reads, in order."""
        read = {"context": self.features, "class_labels": self.num_classes}
        return ["x", "timesteps", *(name for name, value in read.items() if value is not None)]

    def example(self, batch: int, sides: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
        """Return random arguments of the network.

        Args:
            batch: number of rows B.
            sides: length of each side, in multiples of the divisor.
            seed: seed of the values.

        Returns:
            The arguments that it reads, by name, in order.
        """
        generator = torch.Generator().manual_seed(seed)
        size = [self.divisor * side for side in sides]
        given = {"x": torch.randn(batch, self.channels, *size, generator=generator)}
        given["timesteps"] = torch.randint(1000, (batch,), generator=generator)
        if self.features is not None:
            tokens = 4 + batch if self.null_context is None else self.null_context.shape[1]
            given["context"] = torch.randn(batch, tokens, self.features, generator=generator)
        if self.num_classes is not None:
            given["class_labels"] = torch.arange(batch) % self.num_classes
        return given


class Completed(nn.Module):
    """Calls a network with all four arguments, whichever were given; ``torch.jit.script`` compiles it.

    Args:
        network: called with x, timesteps, context and class_labels by position.
        signature: what it reads.
    """

    if TYPE_CHECKING:  # torch.jit.script does not read it
        null_context: Tensor | None

    def __init__(self, network: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("null_context", signature.null_context, persistent=False)
        self.reads_context = signature.features is not None
        self.classes = signature.num_classes or 0

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the network's prediction; see `complete`."""
        x, steps, tokens, labels = complete(
            x, timesteps, context, class_labels, self.null_context, self.reads_context, self.classes
        )
        prediction: Tensor = self.network(x, steps, tokens, labels)
        return prediction


def complete(
    x: Tensor,
    timesteps: Tensor | None,
    context: Tensor | None,
    class_labels: Tensor | None,
    null_context: Tensor | None,
    reads_context: bool,
    classes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put the defaults of `medcf.networks.BundleUNet` and `PromptUNet` in place of arguments that are left out.

    Args:
        x: (B, C, *spatial).
        timesteps: (B,) or (1,) integers; None means 0.
        context: (B, tokens, features) or (1, ...); None means ``null_context``.
        class_labels: (B,) or (1,) integers; None means the last class.
        null_context: (1, tokens, features), or None.
        reads_context: whether the network has cross-attention.
        classes: number of the network's classes; 0 if it has none.

    Returns:
        x, timesteps (B,), context (B, tokens, features) and class labels (B,); of what it does not read, a stand-in.
    """
    # compiled by torch.jit.script, which knows no f-strings with formats and no `x or y` of tensors
    rows = x.shape[0]
    steps = torch.zeros(1, dtype=torch.long, device=x.device) if timesteps is None else timesteps
    if steps.is_floating_point():
        raise ValueError("timesteps must be integers: an exported network was made for them.")
    tokens = torch.zeros(1, 1, 1, device=x.device)
    if reads_context:
        if context is not None:
            tokens = context
        elif null_context is not None:
            tokens = null_context
        else:
            raise ValueError("The network takes a context and knows no 'no prompt': give context.")
        if not tokens.is_floating_point():
            raise ValueError("context holds token ids: give embedded prompts (B, tokens, features).")
    elif context is not None:
        raise ValueError("The network takes no context: leave it out.")
    labels = torch.full([1], max(classes - 1, 0), dtype=torch.long, device=x.device)
    if class_labels is not None and classes > 0:
        labels = class_labels.to(torch.long)
    return x, steps.to(torch.long).expand(rows), tokens.to(x.dtype).expand(rows, -1, -1), labels.expand(rows)


def _features(network: nn.Module) -> int:
    """Return the features of a context token."""
    blocks = (module for module in network.modules() if isinstance(module, CrossAttentionBlock))
    first = next(blocks, None)
    if first is not None:
        return int(first.to_k.in_features)
    known = getattr(network, "cross_attention_dim", None)
    if known is None:
        raise ValueError(f"{type(network).__name__} takes a context of unknown size: give it cross_attention_dim.")
    return int(known)
