# SPDX-License-Identifier: Apache-2.0
"""Maps results from the network's grid to the image's own matrix: the original plus the network's changes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type

from medcf.data import Grid, GridRecord, grid_record
from medcf.data.image import meta_of
from medcf.transforms.images import TORCH, check_range

__all__ = ["AddDifference", "AddDifferenceD", "AddDifferenceDict", "AddDifferenced", "shown_original"]


class AddDifference(Transform):
    """Add changes on the network's grid to the original, in its own values and on its own pixels or voxels.

    The original keeps its resolution, so detail that the grid cannot represent never looks like a finding. Voxels
    without a difference stay bit-identical. Results never fall below the original's smallest value or black, and a
    picture never exceeds white. Overlays that `RemoveOverlays` was told to keep are put back over the result.
    """

    backend = TORCH

    def __call__(self, pred: NdarrayOrTensor, image: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Map a prediction to the original's matrix.

        Args:
            pred: (C, *grid) in [-1, 1], a MetaTensor with the grid's record; C single-channel images, such as a
                method's iterates.
            image: the image on the grid from which ``pred`` was made, (1, *grid); None resamples the original again.

        Returns:
            The C predictions (C, *native) in the original's values, and their signed differences from the image as
            fractions of the full intensity range, not clipped; plain tensors.

        Raises:
            ValueError: if there is no record, or an image is far outside [-1, 1].
        """
        record = grid_record(torch.as_tensor(pred) if image is None else image)
        if record.image is None:
            raise ValueError("the grid_record holds no image to add to: apply medcf.transforms.ToGrid to one")
        source = _plain(_on_grid(record) if image is None else image)
        edited = _plain(pred)
        check_range("pred", edited)
        check_range("image", source)
        differences = record.back(edited - source) / 2
        original = record.image.as_subclass(torch.Tensor).float()
        low, high = record.intensity
        # in place, because clinical volumes are large
        changed = (differences * (high - low)).add_(original).clamp_(min=min(low, float(original.min())))
        if original.ndim == 3:
            changed.clamp_(max=max(high, float(original.max())))
        changed = torch.where(differences == 0, original, changed, out=changed)
        return _with_overlays(record.image, changed), differences


class AddDifferenced(MapTransform):
    """Dictionary version of `AddDifference`: a bundle's postprocessing. The prediction alone is sufficient.

    Args:
        keys: predictions (1, *grid), which become the counterfactual (1, *native).
        image_key: the image on the grid, if present.
        difference_key: key for the signed difference (1, *native).
        allow_missing_keys: whether keys of ``keys`` may be missing.
    """

    backend = AddDifference.backend

    def __init__(
        self,
        keys: KeysCollection = "pred",
        image_key: str = "image",
        difference_key: str = "difference",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.difference_key = difference_key
        self.transform = AddDifference()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with predictions and differences on the original's matrix, as MetaTensors with its affine."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result.get(self.image_key)
            record = grid_record(result[key] if image is None else image)
            pred, difference = self.transform(result[key], image)
            affine = None if record.image is None else record.image.affine
            for name, values in ((key, pred), (self.difference_key, difference)):
                result[name] = MetaTensor(values, affine=affine, meta=meta_of(record.image))
        return result


AddDifferenceD = AddDifferenceDict = AddDifferenced


def shown_original(record: GridRecord) -> MetaTensor | None:
    """Return the image (C, *native) that written results are compared with: cleaned, or with the overlays it keeps."""
    if record.image is None:
        return None
    return convert_to_dst_type(_with_overlays(record.image, record.image.as_subclass(torch.Tensor)), record.image)[0]


def _with_overlays(image: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    meta = meta_of(image)
    if "overlay_pixels" not in meta:
        return values
    return torch.where(meta["overlay_mask"], meta["overlay_pixels"].to(values.dtype), values)


def _on_grid(record: GridRecord) -> torch.Tensor:
    spec = Grid(record.grid, 1.0, "screen" if len(record.grid) == 2 else "RAS")
    return spec.to(record.image, record)  # type: ignore[arg-type]  # not None here


def _plain(image: NdarrayOrTensor) -> torch.Tensor:
    return torch.as_tensor(image).as_subclass(torch.Tensor).detach().cpu().float()
