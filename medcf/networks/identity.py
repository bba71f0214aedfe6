# SPDX-License-Identifier: Apache-2.0
"""A network that recognizes the subject: an embedding, and the subject's parameters in physical units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Pool
from torch import nn
from torch.nn.functional import normalize

from medcf.networks.sononet import SonoNet

__all__ = ["IdentityNetwork", "balanced"]

_MEAN = 0.2  # of gray values in [0, 1]: what ultrasound has
_LIMIT, _HALVINGS = 2.0, 12  # powers from exp(-2) to exp(2), to within 0.05 %


@torch.no_grad()
def balanced(image: torch.Tensor) -> torch.Tensor:
    """Raise gray values to the power that gives them a fixed mean: an image and its copy of another gamma become one.

    The mean falls as the power grows, so there is one such power. Unlike ranks (histogram equalization), the result
    hardly changes with a little noise in black regions.

    Args:
        image: tensor of shape (B, C, *spatial) in [-1, 1].

    Returns:
        Tensor of the same shape, in [-1, 1], as far as the powers from 1/7 to 7 get it to that mean.

    Example:
        >>> values = torch.tensor([0.0, 0.1, 0.3, 0.5]).reshape(1, 1, 4, 1)
        >>> torch.allclose(balanced(2 * values - 1), balanced(2 * values**0.7 - 1), atol=0.002)
        True
    """
    # 1e-20 to the least power is still black: half a gray level of 255.
    logarithm = ((image.float() + 1) / 2).clamp(1e-20, 1.0).log().flatten(1)
    low = torch.full_like(logarithm[:, :1], -_LIMIT)
    high = -low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        bright = (middle.exp() * logarithm).exp().mean(1, keepdim=True) > _MEAN
        low, high = torch.where(bright, middle, low), torch.where(bright, high, middle)
    gray = (((low + high) / 2).exp() * logarithm).exp()
    return gray.reshape(image.shape) * 2 - 1


class IdentityNetwork(nn.Module):
    """Recognize the subject of an image: embeddings are close for one subject in any pose, and far apart for two.

    A plane classifier forgets the subject, so its features cannot tell whether a counterfactual still shows the same
    one. This network is trained for the opposite: to know the subject and to forget plane and speckle. Its trunk is
    `SonoNet`; the feature maps are pooled to a coarse grid rather than one value, because size, position and
    orientation of an organ are part of the identity. Embedding: Chen et al., "A simple framework for contrastive
    learning of visual representations", ICML 2020, without the projection head.

    Args:
        num_parameters: number P of subject parameters to recover; 0 for an embedding alone.
        embedding_size: length E of the embedding.
        in_channels: channels of the image.
        spatial_dims: 2 or 3.
        features: width of the trunk's first block, see `SonoNet`.
        max_features: maximum width of the trunk.
        grid: size to which the last feature maps are pooled.
        hidden: width of the layer before the two outputs.
        num_blocks: use only the first of the trunk's five blocks, whose maps are larger: for small images.
        balance_gain: whether an image and the same one of another gain give the same embedding, see `balanced`.
        mirrored: whether an image and its mirror image along the last axis give the same embedding: both are seen, and
            the layer before the outputs is their mean.
        mean: (P,) population mean of the parameters, in physical units; part of the weights.
        std: (P,) population standard deviation of the parameters; part of the weights.

    Example:
        >>> network = IdentityNetwork(2, embedding_size=8, features=4, mean=[76.0, 96.0], std=[8.0, 9.0])
        >>> output = network.eval()(torch.zeros(3, 1, 64, 80))
        >>> output["embedding"].shape, output["parameters"].shape
        (torch.Size([3, 8]), torch.Size([3, 2]))
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        num_parameters: int,
        embedding_size: int = 32,
        in_channels: int = 1,
        spatial_dims: int = 2,
        features: int = 12,
        max_features: int = 48,
        grid: Sequence[int] = (4, 5),
        hidden: int = 128,
        num_blocks: int = 5,
        balance_gain: bool = False,
        mirrored: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if len(grid) != spatial_dims:
            raise ValueError(f"grid is {tuple(grid)}; it needs {spatial_dims} sizes.")
        self.balance_gain, self.mirrored = balance_gain, mirrored
        self.trunk = SonoNet(
            in_channels,
            features=features,
            spatial_dims=spatial_dims,
            num_blocks=num_blocks,
            max_features=max_features,
        )
        self.trunk.head = nn.Identity()  # type: ignore[assignment]  # no class scores, and no unused weights
        self.pool = Pool[Pool.ADAPTIVEAVG, spatial_dims](tuple(grid))
        cells = int(torch.tensor(tuple(grid)).prod())
        self.hidden = nn.Sequential(nn.Linear(self.trunk.num_features * cells, hidden), nn.ReLU())
        self.embedding = nn.Linear(hidden, embedding_size)
        self.parameters_head = nn.Linear(hidden, num_parameters) if num_parameters else None
        for name, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            value = torch.full((num_parameters,), default) if values is None else torch.as_tensor(values).float()
            if value.shape != (num_parameters,):
                raise ValueError(f"{name} has {value.numel()} values; there are {num_parameters} parameters.")
            self.register_buffer(name, value)
        if not bool((self.std > 0).all()):
            raise ValueError("std must be positive: a parameter that does not vary cannot be recovered.")

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Describe the subject.

        Args:
            image: tensor of shape (B, in_channels, *spatial) in [-1, 1].

        Returns:
            ``embedding`` (B, E) with length 1, and ``parameters`` (B, P) in physical units.
        """
        hidden = self._hidden(image)
        found = hidden[:, :0] if self.parameters_head is None else self.parameters_head(hidden)
        parameters = self.mean + self.std * found.float()
        return {"embedding": normalize(self.embedding(hidden).float(), dim=1), "parameters": parameters}

    def _hidden(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the layer before the outputs (B, hidden)."""
        image = balanced(image) if self.balance_gain else image
        seen = torch.cat([image, image.flip(-1)]) if self.mirrored else image
        maps = self.trunk.adaption(self.trunk.feature_maps(seen)[-1])
        hidden = self.hidden(self.pool(maps).flatten(1))
        return hidden.unflatten(0, (-1, len(image))).mean(0)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the embedding (B, E) of an image (B, in_channels, *spatial) in [-1, 1]."""
        return self.forward(image)["embedding"]
