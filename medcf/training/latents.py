# SPDX-License-Identifier: Apache-2.0
"""A dataset in latents, encoded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.utils import CommonKeys
from torch import Tensor
from torch.utils.data import Dataset

from medcf.sampling import Space

__all__ = ["LatentDataset"]


class LatentDataset(Dataset[dict[str, Any]]):
    """The samples of a dataset with latents in place of images, in memory; masks and other images are left out.

    Encoding an image in every epoch costs about a fifth of a small U-Net's training. With random augmentation it has
    to be: give the images and `medcf.training.prompts.PromptPrepareBatch` the space instead.

    Args:
        dataset: dataset of ``image`` (C, *spatial) in [-1, 1], and texts and numbers beside it.
        space: the latents; its autoencoder is frozen here.
        batch_size: images per call.
        device: device of the autoencoder; the latents are kept on the CPU.
        masks: images (B, C, *spatial) to masks (B, channels, *spatial), such as `medcf.networks.StructureMask`, to keep
            as ``mask`` for `medcf.training.control.ControlPrepareBatch`; None keeps none.

    Example:
        >>> from medcf.sampling import PixelSpace
        >>> images = [{"image": torch.ones(1, 4, 4), "caption": "normal", "segmentation": torch.ones(1, 4, 4)}]
        >>> sorted(map(str, LatentDataset(images, PixelSpace())[0]))
        ['caption', 'image']
    """

    def __init__(
        self,
        dataset: Any,
        space: Space,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        masks: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        for network in space.networks:
            network.eval().requires_grad_(False)
        self.class_names = getattr(dataset, "class_names", None)
        self.digest = getattr(dataset, "digest", None)
        self.items: list[dict[str, Any]] = []
        for start in range(0, len(dataset), batch_size):
            rows = [dict(dataset[index]) for index in range(start, min(start + batch_size, len(dataset)))]
            images = torch.stack([torch.as_tensor(row.pop(CommonKeys.IMAGE)).as_subclass(Tensor) for row in rows])
            with torch.no_grad():
                made: dict[str, Tensor] = {CommonKeys.IMAGE: space.encode(images.to(device)).cpu()}
                if masks is not None:
                    made["mask"] = masks(images.to(device)).cpu()
            for number, row in enumerate(rows):
                self.items.append({**_small(row), **{name: values[number] for name, values in made.items()}})

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample."""
        return dict(self.items[index])


def _small(row: dict[str, Any]) -> dict[str, Any]:
    """Return what is no image."""
    return {name: value for name, value in row.items() if not isinstance(value, Tensor) or value.ndim < 2}
