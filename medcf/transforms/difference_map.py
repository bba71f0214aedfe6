# SPDX-License-Identifier: Apache-2.0
"""Honest difference maps: signed, in fixed units, minus what the method changes anyway, with their spread over seeds.

A diffusion method never returns its input exactly. The floor is what it changes when no other class is requested: the
same method and the same noise, run toward the image's own class or without class guidance. Only what exceeds the floor
is due to the class. Maps are never divided by their own maximum, which would make the reconstruction noise of an image
without a finding as bright as a finding.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type
from torch import Tensor

from medcf.runtime.choices import check_choice
from medcf.transforms.images import TORCH, check_range

__all__ = [
    "DifferenceMap",
    "DifferenceMapD",
    "DifferenceMapDict",
    "DifferenceMapd",
]

Units = Literal["image", "gray_levels"]

#: Meaning of a map's sign; also stored in its metadata.
SIGN = "prediction minus input"
_GRAY_LEVELS = 255.0
_NORMALIZED = 1.5  # images in [0, 1] or [-1, 1] stay below this, even with some overshoot


class DifferenceMap(Transform):
    """Difference maps of an image and its counterfactual, or of the counterfactuals from several seeds.

    The sign is prediction MINUS input: positive where the counterfactual is brighter. With a reconstruction r from the
    same seeds, predictions p and the image x, the maps are

    - ``signed``: mean over seeds of (p - x) - (r - x) = p - r;
    - ``absolute``: max(0, mean over seeds of |p - x| - |r - x|); without r both are those of p - x;
    - ``signed_std``, ``absolute_std``: standard deviation over seeds of the terms before mean and maximum (divided by
      the number of seeds minus one); only with at least two seeds.

    ControlCG and VALD-MD use the signed difference inside an organ as saliency (VALD-MD shows both signs); floor and
    seeds are added here.

    Args:
        units: "image" keeps the image's units; "gray_levels" uses levels of 255, 127.5 per unit of an image in [-1, 1].
        intensity: the image's black and white values, for gray levels.

    Example:
        >>> image = torch.zeros(1, 4, 4)
        >>> maps = DifferenceMap()(image, image - 0.5, reconstruction=image + 0.1)
        >>> round(float(maps["signed"][0, 0, 0]), 3), round(float(maps["absolute"][0, 0, 0]), 3)
        (-0.6, 0.4)
    """

    backend = TORCH

    def __init__(self, units: Units = "image", intensity: tuple[float, float] = (-1.0, 1.0)) -> None:
        check_choice("units", units, Units)
        self.units = units
        self.intensity = intensity
        self.factor = 1.0 if units == "image" else _GRAY_LEVELS / (intensity[1] - intensity[0])

    def __call__(  # type: ignore[override]
        self,
        image: NdarrayOrTensor,
        pred: NdarrayOrTensor,
        reconstruction: NdarrayOrTensor | None = None,
        mask: NdarrayOrTensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the maps.

        Args:
            image: the input x, (C, *spatial).
            pred: counterfactuals p, (C, *spatial), or (seeds, C, *spatial).
            reconstruction: r, like ``pred``, with seeds in the same order; a single one serves all seeds.
            mask: organ, (1 or C, *spatial); maps are 0 where the mask is 0.

        Returns:
            ``signed``, ``absolute`` and, with several seeds, ``signed_std`` and ``absolute_std``, each float32 (C,
            *spatial); MetaTensors with the image's affine and metadata if the image is a MetaTensor.

        Raises:
            ValueError: if shapes do not match, or units differ between images or from ``intensity``.
        """
        image = image if isinstance(image, Tensor) else torch.as_tensor(image)
        original = image.as_subclass(Tensor).float()
        stacks = [_stack("pred", pred, original)]
        self._check_units(original, stacks[0])
        if reconstruction is not None:
            stacks.append(_stack("reconstruction", reconstruction, original))
            if len(stacks[1]) not in (1, len(stacks[0])):
                raise ValueError(
                    f"reconstruction has {len(stacks[1])} seeds and pred has {len(stacks[0])}: give one per seed."
                )
        changes = [(stack - original) * self.factor for stack in stacks]
        signed, absolute = changes[0], changes[0].abs()
        if reconstruction is not None:
            signed, absolute = signed - changes[1], absolute - changes[1].abs()
        maps = {"signed": signed.mean(0), "absolute": absolute.mean(0).clamp(min=0)}
        if len(signed) > 1:
            maps |= {"signed_std": signed.std(0), "absolute_std": absolute.std(0)}
        if mask is not None:
            inside = torch.as_tensor(mask).as_subclass(Tensor).to(original.device) != 0
            if inside.shape[1:] != original.shape[1:] or len(inside) not in (1, len(original)):
                raise ValueError(
                    f"mask has shape {tuple(inside.shape)}: it must be (1 or C, *spatial) like the image's "
                    f"{tuple(original.shape)}."
                )
            maps = {name: each * inside for name, each in maps.items()}
        return {name: self._described(each, image) for name, each in maps.items()}

    def _check_units(self, image: Tensor, pred: Tensor) -> None:
        if self.units == "gray_levels":
            check_range("image", image, *self.intensity)
            check_range("pred", pred, *self.intensity)
        ends = [float(values.abs().max()) for values in (image, pred)]
        if 0 < min(ends) <= _NORMALIZED < max(ends) / 10:
            raise ValueError(
                f"image reaches to {ends[0]:g} and pred to {ends[1]:g}: bring both to the same units first, pred for "
                "example by AddDifferenced."
            )

    def _described(self, values: Tensor, image: Tensor) -> Tensor:
        """Give a map the image's type, affine and metadata, and its own units and sign."""
        result = convert_to_dst_type(values, image, dtype=torch.float32)[0]
        if isinstance(result, MetaTensor):
            result.meta.update({"difference_units": self.units, "difference_sign": SIGN})
        return result


class DifferenceMapd(MapTransform):
    """Dictionary version of `DifferenceMap`.

    For a key ``pred`` the maps are written under ``pred_signed``, ``pred_absolute`` and, with several seeds,
    ``pred_signed_std`` and ``pred_absolute_std``.

    Args:
        keys: counterfactuals.
        image_key: the input.
        reconstruction_key: the method's floor; None subtracts nothing.
        mask_key: the organ; None means everywhere.
        allow_missing_keys: whether keys of ``keys`` may be missing.
        options: options of `DifferenceMap`.
    """

    backend = DifferenceMap.backend

    def __init__(
        self,
        keys: KeysCollection = "pred",
        image_key: str = "image",
        reconstruction_key: str | None = None,
        mask_key: str | None = None,
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.reconstruction_key = reconstruction_key
        self.mask_key = mask_key
        self.transform = DifferenceMap(**options)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with the maps of each key."""
        result = dict(data)
        for key in self.key_iterator(result):
            optional = (None if name is None else result[name] for name in (self.reconstruction_key, self.mask_key))
            maps = self.transform(result[self.image_key], result[key], *optional)
            result |= {f"{key}_{name}": each for name, each in maps.items()}
        return result


DifferenceMapD = DifferenceMapDict = DifferenceMapd


def _stack(name: str, images: NdarrayOrTensor, like: Tensor) -> Tensor:
    """Return images as a plain float tensor (seeds, C, *spatial)."""
    plain = torch.as_tensor(images).as_subclass(Tensor).to(like.device).float()
    stack = plain[None] if plain.ndim == like.ndim else plain
    if stack.shape[1:] != like.shape or not len(stack):
        raise ValueError(
            f"{name} has shape {tuple(images.shape)}: it must be the image's {tuple(like.shape)}, or a stack of these."
        )
    return stack
