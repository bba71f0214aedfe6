# SPDX-License-Identifier: Apache-2.0
"""Inception-v3 up to its last pool, in the variant that FID is defined with, without torchvision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["InceptionV3"]

#: One convolution: the rest of its name after "branch", output channels, and kernel (a square's side, or rows and
#: columns).
Step = tuple[str, int, "int | tuple[int, int]"]
#: Consecutive convolutions; two in a list both read the same input, and their outputs are concatenated.
Chain = list["Step | list[Step]"]

_LOW, _HIGH = (1, 7), (7, 1)  # a 7 x 7 convolution as a row and a column


class _Convolution(nn.Module):
    """Convolution without bias, batch normalization, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], stride: int, padded: bool):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class _Mixed(nn.Module):
    """Parallel chains of convolutions and a pool, concatenated.

    Args:
        in_channels: channels of the input.
        chains: the chains, in the order of their outputs.
        pool: "average" without the padding, or "max": 3 x 3, then a convolution; "halve": maximum with stride 2, for
            which the last convolution of each chain has stride 2, too.
        pooled: channels of the convolution after the pool.
    """

    def __init__(self, in_channels: int, chains: list[Chain], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.chains: list[list[list[str]]] = []
        self.out_channels = pooled or in_channels
        for chain in chains:
            width, names = in_channels, []
            for index, step in enumerate(chain):
                fork = step if isinstance(step, list) else [step]
                halves = pool == "halve" and index == len(chain) - 1
                for name, channels, kernel in fork:
                    convolution = _Convolution(width, channels, kernel, 2 if halves else 1, padded=not halves)
                    self.add_module(f"branch{name}", convolution)
                names.append([f"branch{name}" for name, _, _ in fork])
                width = sum(channels for _, channels, _ in fork)
            self.chains.append(names)
            self.out_channels += width
        if pooled:
            self.branch_pool = _Convolution(in_channels, pooled, 1, 1, padded=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            y = x
            for fork in chain:
                y = torch.cat([self.get_submodule(name)(y) for name in fork], dim=1)
            outputs.append(y)
        if self.pool == "halve":
            return torch.cat([*outputs, functional.max_pool2d(x, 3, 2)], dim=1)
        if self.pool == "max":
            smooth = functional.max_pool2d(x, 3, 1, padding=1)
        else:
            smooth = functional.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False)
        return torch.cat([*outputs, self.branch_pool(smooth)], dim=1)


def _fine(pooled: int, in_channels: int) -> _Mixed:
    """Build a block on the grid of 35 x 35."""
    chains: list[Chain] = [
        [("1x1", 64, 1)],
        [("5x5_1", 48, 1), ("5x5_2", 64, 5)],
        [("3x3dbl_1", 64, 1), ("3x3dbl_2", 96, 3), ("3x3dbl_3", 96, 3)],
    ]
    return _Mixed(in_channels, chains, "average", pooled)


def _medium(width: int) -> _Mixed:
    """Build a block on the grid of 17 x 17."""
    chains: list[Chain] = [
        [("1x1", 192, 1)],
        [("7x7_1", width, 1), ("7x7_2", width, _LOW), ("7x7_3", 192, _HIGH)],
        [
            ("7x7dbl_1", width, 1),
            ("7x7dbl_2", width, _HIGH),
            ("7x7dbl_3", width, _LOW),
            ("7x7dbl_4", width, _HIGH),
            ("7x7dbl_5", 192, _LOW),
        ],
    ]
    return _Mixed(768, chains, "average", 192)


def _coarse(in_channels: int, pool: str) -> _Mixed:
    """Build a block on the grid of 8 x 8."""
    chains: list[Chain] = [
        [("1x1", 320, 1)],
        [("3x3_1", 384, 1), [("3x3_2a", 384, (1, 3)), ("3x3_2b", 384, (3, 1))]],
        [("3x3dbl_1", 448, 1), ("3x3dbl_2", 384, 3), [("3x3dbl_3a", 384, (1, 3)), ("3x3dbl_3b", 384, (3, 1))]],
    ]
    return _Mixed(in_channels, chains, pool, 192)


class InceptionV3(nn.Module):
    """The 2048 features of Inception-v3's last pool, which FID and KID are defined with.

    Layers are named as in ``pt_inception-2015-12-05-6726825d.pth``, pytorch-fid's copy of TensorFlow's network of that
    date. It differs from torchvision's ``inception_v3``: its average pools leave out the padding, and its last block
    has a maximum in place of the average. Other weights, or torchvision's pools, give numbers that are not FID.

    An image is resized to 299 x 299 pixels, bilinearly and without a low-pass filter, as in pytorch-fid. TensorFlow
    sampled at other positions; FID depends on it (Parmar et al., "On aliased resizing and surprising subtleties in GAN
    evaluation", CVPR 2022), so state which program gave a number.

    Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016; Heusel et al., "GANs
    trained by a two time-scale update rule", NeurIPS 2017.

    Args:
        size: rows and columns that an image is resized to; None leaves it as it is (at least 75 pixels per side).
    """

    num_features = 2048

    def __init__(self, size: int | None = 299) -> None:
        super().__init__()
        self.size = size
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, 2, padded=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, 1, padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, 1, padded=True)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1, 1, padded=False)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, 1, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _fine(32, 192), _fine(64, 256), _fine(64, 288)
        steps: Chain = [("3x3dbl_1", 64, 1), ("3x3dbl_2", 96, 3), ("3x3dbl_3", 96, 3)]
        self.Mixed_6a = _Mixed(288, [[("3x3", 384, 3)], steps], "halve")
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_medium, (128, 160, 160, 192))
        steps = [("7x7x3_1", 192, 1), ("7x7x3_2", 192, _LOW), ("7x7x3_3", 192, _HIGH), ("7x7x3_4", 192, 3)]
        self.Mixed_7a = _Mixed(768, [[("3x3_1", 192, 1), ("3x3_2", 320, 3)], steps], "halve")
        self.Mixed_7b, self.Mixed_7c = _coarse(1280, "average"), _coarse(2048, "max")

    def forward(self, image: Tensor) -> Tensor:
        """Compute the features.

        Args:
            image: (B, 1, H, W) or (B, 3, H, W) in [-1, 1]; a single channel is repeated.

        Returns:
            (B, 2048), non-negative.
        """
        x = image.expand(-1, 3, -1, -1)
        if self.size is not None:
            x = functional.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        for name, layer in self.named_children():
            if name in ("Conv2d_3b_1x1", "Mixed_5b"):
                x = functional.max_pool2d(x, 3, 2)
            x = layer(x)
        return x.mean((2, 3))
