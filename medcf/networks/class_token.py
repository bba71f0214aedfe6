# SPDX-License-Identifier: Apache-2.0
"""A diffusion U-Net whose class is a context token, with a learned null token (ControlCG, section 3)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import SpatialTransformer
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from medcf.networks.attention_injection import SameInjection

__all__ = ["ClassTokenUNet", "memory_layout"]


class ClassTokenUNet(nn.Module):
    """MONAI's `DiffusionModelUNet`, unmodified, with one learned context token per class and one null token.

    The null token is trained whenever a class is dropped (p_uncond); classifier-free guidance compares with it. The
    network counts it as its last class, so `medcf.networks.Denoiser` takes it as ``null_class_labels``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the prediction.
        num_classes: number of classes without the null class, whose index is ``num_classes``.
        cross_attention_dim: features of a token.
        patch_size: side of the pixel blocks that become channels before the U-Net and pixels again after it. Values
            above 1 make the U-Net run on a coarser grid: at 2, a volume costs about an eighth.
        attention_init: standard deviation of the initial weights with which the attention blocks add to their input.
            MONAI starts them at 0, and after a short training attention, and with it injection, then has no effect.
        gradient_checkpointing: recompute the U-Net's blocks in the backward pass instead of keeping their activations.
        rows_at_once: if no gradients are recorded, run blocks without attention on this many batch rows at a time, so
            that the largest activations exist for these rows only. None runs all rows together.
        **unet: further arguments of `DiffusionModelUNet`: ``channels``, ``attention_levels``, ``num_res_blocks``, ...

    Raises:
        ValueError: if a size is invalid.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        num_classes: int = 2,
        cross_attention_dim: int = 64,
        patch_size: int = 1,
        attention_init: float = 0.0,
        gradient_checkpointing: bool = False,
        rows_at_once: int | None = None,
        **unet: Any,
    ) -> None:
        super().__init__()
        if num_classes < 1 or patch_size < 1:
            raise ValueError(f"num_classes={num_classes} and patch_size={patch_size} must be at least 1.")
        if rows_at_once is not None and rows_at_once < 1:
            raise ValueError(f"rows_at_once={rows_at_once}: give 1 or more, or null for all.")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_class_embeds = num_classes + 1
        self.patch_size = patch_size
        pixels = patch_size**spatial_dims
        self.unet = DiffusionModelUNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels * pixels,
            out_channels=out_channels * pixels,
            with_conditioning=True,
            cross_attention_dim=cross_attention_dim,
            use_flash_attention=True,
            **unet,
        )
        self.embedding = nn.Embedding(self.num_class_embeds, cross_attention_dim)
        if attention_init > 0:
            for module in self.unet.modules():
                if isinstance(module, SpatialTransformer):
                    weight = module.proj_out.get_parameter("conv.weight")
                    nn.init.normal_(weight, std=attention_init)
        down, up = self.unet.down_blocks, self.unet.up_blocks
        if gradient_checkpointing:
            for block in (*down, self.unet.middle_block, *up):
                block.forward = _Checkpointed(block, block.forward)
        if rows_at_once is not None:
            for block in (*down, *up):  # blocks without attention never mix rows
                if not any(isinstance(module, SABlock) for module in block.modules()):
                    block.forward = _RowWise(block.forward, rows_at_once)

    def forward(
        self,
        image: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Predict whatever the scheduler's ``prediction_type`` specifies.

        Args:
            image: (B, C, *spatial), each side divisible by ``patch_size`` times 2 ** (levels - 1).
            timesteps: (B,); None means 0.
            context: (B, tokens, features), instead of the class's token.
            class_labels: (B,) class indices; None means the null class.

        Returns:
            Prediction (B, out_channels, *spatial).
        """
        if timesteps is None:
            timesteps = torch.zeros(image.shape[0], dtype=torch.long, device=image.device)
        if context is None:
            if class_labels is None:
                class_labels = torch.full_like(timesteps, self.num_class_embeds - 1, dtype=torch.long)
            context = self.embedding(class_labels)[:, None]
        predicted = self.unet(self._fold(image), timesteps, context)
        return predicted if self.patch_size == 1 else pixelshuffle(predicted, self.spatial_dims, self.patch_size)

    def _fold(self, image: Tensor) -> Tensor:
        """Move the pixels of each block to channels: (B, C p^d, *spatial / p)."""
        p = self.patch_size
        if p == 1:
            return image
        if any(n % p for n in image.shape[2:]):
            raise ValueError(f"image is {tuple(image.shape[2:])}: each side must be divisible by patch_size={p}.")
        return pixelunshuffle(image, self.spatial_dims, p).contiguous(memory_format=memory_layout(image))


class _RowWise:
    """A forward that processes a few batch rows at a time if no gradients are recorded."""

    def __init__(self, forward: Any, rows: int) -> None:
        self.forward = forward
        self.rows = rows

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # an exporter would record the number of parts of the batch that it sees
        if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_exporting():
            return self.forward(*args, **kwargs)
        given, form = tree_flatten((args, kwargs))
        count = max(len(leaf) for leaf in given if isinstance(leaf, Tensor))
        if count <= self.rows:
            return self.forward(*args, **kwargs)
        parts: list[list[Any]] = []
        for start in range(0, count, self.rows):
            split = slice(start, start + self.rows)
            some = [leaf[split] if isinstance(leaf, Tensor) and len(leaf) == count else leaf for leaf in given]
            part_args, part_kwargs = tree_unflatten(some, form)
            leaves, made = tree_flatten(self.forward(*part_args, **part_kwargs))
            parts.append(leaves)
        first = [id(leaf) for leaf in parts[0]]  # a block may return the same tensor twice
        joined: dict[int, Any] = {}
        for number, leaf in enumerate(parts[0]):
            if id(leaf) not in joined:
                joined[id(leaf)] = torch.cat([part[number] for part in parts])
        return tree_unflatten([joined[key] for key in first], made)


class _Checkpointed:
    """A forward that keeps its inputs instead of its activations if gradients are recorded.

    Attention injection is recomputed as it was, even if ``backward`` runs after its ``with`` block.
    """

    def __init__(self, block: nn.Module, forward: Any) -> None:
        self.block = block
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        contexts = nullcontext(), SameInjection(self.block)
        return checkpoint(self.forward, *args, use_reentrant=False, context_fn=lambda: contexts, **kwargs)


def memory_layout(image: Tensor) -> torch.memory_format:
    """Return the image's memory layout; a single-channel image counts as channels-last if it matches that layout."""
    last = torch.channels_last_3d if image.ndim == 5 else torch.channels_last
    return last if image.is_contiguous(memory_format=last) else torch.contiguous_format
