# SPDX-License-Identifier: Apache-2.0
"""Attention injection: while a network runs, some batch rows read the tokens of other rows (ControlCG, eq. 8)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

__all__ = ["AttentionInjection", "SameInjection"]

_HEAD_MULTIPLE = 8  # flash kernels require head sizes that are multiples of this


class AttentionInjection:
    """Inside a ``with`` block, let self-attention of batch row i see the tokens of row i AND row ``reference[i]``.

    The network is any module with MONAI's self-attention (``DiffusionModelUNet`` in 2D or 3D, conditional or not,
    wrapped or not). Only the blocks' ``forward`` is replaced; it is restored on exit, even after an exception. Queries
    come from row i; keys and values come from the tokens of both rows, after the same norm and the same projections:

        out_i = (sum_self e v + s sum_reference e v) / (sum_self e + s sum_reference e), with s = ``scale``.

    So a reference equal to its row changes nothing for any s, and s = 0 is the unmodified network. It always runs
    ``scaled_dot_product_attention``; no L x 2L matrix is built. Cross-attention is unaffected. Gradients flow to both
    rows. Source: Liu et al., "Controllable Counterfactual Generation", MICCAI 2024, eqs 6 to 9. Their "channel
    concatenation" of keys and values means tokens, because channels would not match the queries.

    Args:
        network: the denoising network.
        scale: weight s of the reference's tokens, at least 0; the paper uses 1.

    Raises:
        ValueError: if the scale is negative or not finite, or the network has no self-attention that can be injected.

    Example:
        >>> from monai.networks.nets import DiffusionModelUNet
        >>> net = DiffusionModelUNet(2, 1, 1, channels=(8, 8), attention_levels=(False, True), num_res_blocks=1,
        ...     norm_num_groups=4, num_head_channels=8).eval()
        >>> x = torch.zeros(2, 1, 8, 8)
        >>> with torch.no_grad(), AttentionInjection(net) as injection:
        ...     injection.reference = [1, 1]  # row 0 reads row 1, which reads only itself
        ...     net(x, torch.tensor([5, 5])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, network: nn.Module | Callable[..., Tensor], scale: float = 1.0) -> None:
        if not 0 <= scale < math.inf:
            raise ValueError(f"scale={scale}: the weight of the reference's tokens must be at least 0.")
        self.scale = float(scale)
        self.blocks = _self_attention(network)
        if not self.blocks:
            raise ValueError(
                f"{type(network).__name__} has no self-attention of MONAI (SABlock) to inject into: give a "
                "DiffusionModelUNet whose attention_levels are not all False."
            )
        for block in self.blocks:
            if block.causal or block.rel_positional_embedding is not None or block.save_attn:
                raise ValueError(
                    "Causal attention, relative positions and saved attention matrices do not support injection."
                )
        self._reference: tuple[int, ...] | None = None
        self._forwards = {block: partial(self._attend, block) for block in self.blocks}  # one per block, see `covers`
        self._indices: dict[tuple[tuple[int, ...], torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def reference(self) -> tuple[int, ...] | None:
        """The row that each batch row reads; its own index means plain self-attention. None: all rows are plain."""
        return self._reference

    @reference.setter
    def reference(self, rows: Sequence[int] | Tensor | None) -> None:
        if rows is None:
            self._reference = None
            return
        reference = tuple(int(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows))
        if not reference or min(reference) < 0 or max(reference) >= len(reference):
            raise ValueError(f"reference={list(reference)}: give one row index, from 0, for each row of the batch.")
        self._reference = reference
        if self.scale != 0:  # do it here: a forward that copies lists to the device waits and compiles twice
            self._rows(reference, next(self.blocks[0].parameters()).device)

    def covers(self, network: nn.Module | Callable[..., Tensor]) -> bool:
        """Tell whether this is an injection into the network; entering it again keeps the compiled code."""
        blocks = _self_attention(network)
        return len(blocks) == len(self.blocks) and all(map(operator.is_, blocks, self.blocks))

    def __enter__(self) -> AttentionInjection:
        """Replace the blocks' ``forward``."""
        if any(_injection_of(vars(block).get("forward")) for block in self.blocks):
            raise RuntimeError("This network is already inside an AttentionInjection: leave that one first.")
        self._originals = {block: vars(block).get("forward") for block in self.blocks}
        _set_forwards(self._forwards)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the blocks' own ``forward``."""
        _set_forwards(self._originals)

    def _attend(self, block: SABlock, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Stand in for ``SABlock.forward``."""
        if attn_mask is not None:
            raise ValueError("Attention injection does not support attn_mask.")
        return self._read(block, self._reference, x)

    def _read(self, block: SABlock, reference: tuple[int, ...] | None, x: Tensor) -> Tensor:
        """Run ``SABlock.forward`` on tokens (N, L, C) with the reference's keys and values added."""
        query, key, value = _project(block, x)
        attend = partial(
            scaled_dot_product_attention, dropout_p=block.dropout_rate if block.training else 0.0, scale=block.scale
        )
        if reference is not None and len(reference) != len(x):
            raise ValueError(f"reference has rows for a batch of {len(reference)}, but the network got {len(x)}.")
        if reference is None or self.scale == 0 or all(row == i for i, row in enumerate(reference)):
            mixed = attend(query, key, value)
        else:
            mixed = torch.empty_like(query)
            readers, read, others = self._rows(reference, x.device)
            own = query.index_select(0, readers), key.index_select(0, readers), value.index_select(0, readers)
            given = key.index_select(0, read), value.index_select(0, read)
            width = own[0].shape[-1]
            injected = attend(*_weighted(own, given, self.scale, block.scale))[..., :width]
            mixed = mixed.index_copy(0, readers, injected)
            if len(others):
                alone = attend(*(each.index_select(0, others) for each in (query, key, value)))
                mixed = mixed.index_copy(0, others, alone)
        tokens = block.out_rearrange(mixed)
        if block.include_fc:
            tokens = block.out_proj(tokens)
        return block.drop_output(tokens)

    def _rows(self, reference: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows that read another one, the rows they read, and the others; moved to the device only once."""
        key = reference, device
        if key not in self._indices:
            readers = [row for row, source in enumerate(reference) if source != row]
            lists = readers, [reference[row] for row in readers], [r for r, s in enumerate(reference) if s == r]
            first, second, third = (torch.tensor(rows, dtype=torch.long, device=device) for rows in lists)
            self._indices[key] = first, second, third
        return self._indices[key]


class SameInjection:
    """A context that restores a network's self-attention as of its creation: the same injection, the same rows.

    For activation checkpointing, which repeats a forward in the backward pass, when the injection may have ended or may
    read other rows. It is entered each time the forward is repeated.

    Args:
        network: network whose forward will be repeated.
    """

    def __init__(self, network: nn.Module) -> None:
        self._forwards: dict[SABlock, Callable[..., Tensor] | None] = {}
        for block in _self_attention(network):
            forward = vars(block).get("forward")
            injection = _injection_of(forward)
            if injection is not None:
                forward = partial(injection._read, block, injection._reference)
            self._forwards[block] = forward
        self._later: list[dict[SABlock, Callable[..., Tensor] | None]] = []

    def __enter__(self) -> SameInjection:
        """Restore the ``forward`` as of creation."""
        self._later.append({block: vars(block).get("forward") for block in self._forwards})
        _set_forwards(self._forwards)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the current ``forward``."""
        _set_forwards(self._later.pop())


def _self_attention(network: Any) -> list[SABlock]:
    """List the network's self-attention blocks."""
    modules = network.modules() if isinstance(network, nn.Module) else ()
    return [module for module in modules if isinstance(module, SABlock)]


def _set_forwards(forwards: Mapping[SABlock, Callable[..., Tensor] | None]) -> None:
    """Set the blocks' own ``forward``; None restores their class's."""
    for block, forward in forwards.items():
        if forward is not None:
            block.forward = forward  # type: ignore[method-assign]
        else:
            vars(block).pop("forward", None)


def _injection_of(forward: Any) -> AttentionInjection | None:
    """Return the injection that a block's ``forward`` belongs to."""
    owner = getattr(forward.func, "__self__", None) if isinstance(forward, partial) else None
    return owner if isinstance(owner, AttentionInjection) else None


def _project(block: SABlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (N, heads, L, D)."""
    if block.use_combined_linear:
        query, key, value = block.input_rearrange(block.qkv(x))
    else:
        query, key, value = (block.input_rearrange(to(x)) for to in (block.to_q, block.to_k, block.to_v))
    if block.attention_dtype is not None:
        query, key, value = (each.to(block.attention_dtype) for each in (query, key, value))
    return query, key, value


def _weighted(
    own: tuple[Tensor, Tensor, Tensor], given: tuple[Tensor, Tensor], weight: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Append the reference's keys and values; an extra feature adds log(weight) to the reference's logits."""
    query, key, value = own
    keys, values = torch.cat([key, given[0]], dim=2), torch.cat([value, given[1]], dim=2)
    if weight == 1:
        return query, keys, values
    width = query.shape[-1]
    extra = -(-(width + 1) // _HEAD_MULTIPLE) * _HEAD_MULTIPLE - width
    query, keys, values = (pad(each, (0, extra)) for each in (query, keys, values))
    query[..., width] = 1.0
    keys[:, :, key.shape[2] :, width] = math.log(weight) / scale
    return query, keys, values
