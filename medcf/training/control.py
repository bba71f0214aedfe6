# SPDX-License-Identifier: Apache-2.0
"""Gives the mask of each image to the training of a ControlNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from monai.engines import PrepareBatch

from medcf.training.prepare_batch import Batch, Device

__all__ = ["ControlPrepareBatch"]


@dataclass(eq=False)
class ControlPrepareBatch(PrepareBatch):
    """What another ``prepare_batch`` of a diffusion model prepares, and what the ControlNet follows.

    Args:
        prepare_batch: such as `medcf.training.prepare_batch.ClassConditionalPrepareBatch`.
        key: key of the mask (B, channels, *spatial), in [0, 1].
    """

    prepare_batch: PrepareBatch
    key: str = "mask"

    def __call__(self, batchdata: Batch, device: Device = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        """Prepare a batch, with ``control`` among the arguments by keyword.

        Raises:
            ValueError: if the batch has no such key.
        """
        if self.key not in batchdata:
            raise ValueError(f"The batch has no {self.key!r}, which the ControlNet follows: give the images masks.")
        images, target, args, arguments = self.prepare_batch(batchdata, device, non_blocking, **kwargs)
        control = batchdata[self.key].to(device=device, non_blocking=non_blocking, dtype=images.dtype)
        return images, target, args, {**arguments, "control": control}
