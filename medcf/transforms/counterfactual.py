# SPDX-License-Identifier: Apache-2.0
"""Augmentation by counterfactuals: a sample becomes what it would be in another class, and its label follows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import MetaKeys, convert_to_dst_type, convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor

from medcf.data.counterfactual_runs import Counterfactual, CounterfactualRuns
from medcf.data.image import square_affine
from medcf.data.labels import label_like
from medcf.data.resample import resample
from medcf.transforms.images import TORCH

__all__ = [
    "RandCounterfactual",
    "RandCounterfactualD",
    "RandCounterfactualDict",
    "RandCounterfactuald",
]

#: Least correlation of an image with the one that was explained: less means another geometry, or gray values that were
#: not only scaled.
_LEAST_CORRELATION = 0.9


class RandCounterfactual(RandomizableTransform):
    """Turn an image into its own counterfactual, with some probability; no network runs.

    The bundle's inference has explained the training set before. Its change is added to the image as the pipeline has
    it by now: on its pixels, which MONAI's metadata trace back to the file, and in its gray values, of which only a
    linear function of the file's is understood. So it may stand after any loading, reorienting, resampling, cropping
    and scaling, and detail finer than the network's grid stays.

    Args:
        runs: output folder of a bundle's inference, one for each target class; or `CounterfactualRuns`.
        prob: probability that an image is changed. One without a counterfactual never is.
    """

    backend = TORCH

    def __init__(self, runs: str | Path | Sequence[str | Path] | CounterfactualRuns, prob: float = 0.5) -> None:
        super().__init__(prob)
        self.runs = runs if isinstance(runs, CounterfactualRuns) else CounterfactualRuns(runs)
        self.chosen: Counterfactual | None = None

    def randomize(self, data: str | Path) -> None:
        """Draw whether the image of a file is changed, and to which class."""
        super().randomize(None)
        found = self.runs.of(data) if self._do_transform else []
        self.chosen = found[self.R.randint(len(found))] if found else None

    def __call__(
        self, img: NdarrayOrTensor, source: str | Path | None = None, randomize: bool = True
    ) -> NdarrayOrTensor:
        """Change an image; ``chosen`` tells afterwards to what.

        Args:
            img: (C, *spatial) in gray values that are a linear function of the file's.
            source: its file; None takes it from the metadata of MONAI's loaders.
            randomize: draw anew; False repeats the last draw.

        Raises:
            ValueError: if there is no file, or the image does not fit the one that was explained; names both.
        """
        if randomize:
            self.randomize(_source(img) if source is None else source)
        if self.chosen is None:
            return img
        original, changed = self.chosen.read()
        size, matrix = tuple(img.shape[1:]), _to_file(img)
        if len(size) != original.ndim - 1 or (matrix is None and size != tuple(original.shape[1:])):
            raise ValueError(
                f"{self.chosen.source} is now {tuple(img.shape)}, and was explained as {tuple(original.shape)}: put "
                "EnsureChannelFirstd before this transform, and keep MONAI's metadata."
            )
        if matrix is not None:
            original, changed = (
                resample(each, matrix, size, hold_edges=len(size) == 2) for each in (original, changed)
            )
        values: Tensor = convert_to_tensor(img, track_meta=False).float()
        gain = self._gain(original, values)
        result = convert_to_dst_type(values + gain * (changed - original).to(values.device), img)[0]
        if isinstance(result, MetaTensor):
            result.meta = {**result.meta, "synthetic": True}
        return result

    def _gain(self, original: Tensor, values: Tensor) -> float:
        """Return how many of the image's gray values one of the explained image's is, by linear regression."""
        x, y = original[0].double().flatten(), values.mean(0).double().cpu().flatten()
        x, y = x - x.mean(), y - y.mean()
        product, square = float(x @ y), float(x @ x)
        correlation = product / max((square * float(y @ y)) ** 0.5, 1e-12)
        if correlation < _LEAST_CORRELATION:
            assert self.chosen is not None
            raise ValueError(
                f"{self.chosen.source} looks other here than when it was explained (correlation {correlation:.2f}): "
                "put the transform before whatever changes gray values non-linearly, flips without metadata, or draws "
                "at random."
            )
        return product / square


class RandCounterfactuald(RandomizableTransform, MapTransform):
    """Dictionary version of `RandCounterfactual`, which also sets the label.

    Args:
        keys: images of one file.
        runs, prob: see `RandCounterfactual`.
        label_key: key of the class: an index, one-hot or a name. It gets the counterfactual's class.
        source_key: key of the image's file; None takes it from the metadata of MONAI's loaders.
        class_names: names of the bundle's classes, for labels that are names.
        classes: the bundle's class index to the label's, if they differ.
        synthetic_key: gets whether the sample is synthetic, in every sample.
        allow_missing_keys: whether keys may be missing.
    """

    backend = RandCounterfactual.backend

    def __init__(
        self,
        keys: KeysCollection,
        runs: str | Path | Sequence[str | Path] | CounterfactualRuns,
        prob: float = 0.5,
        label_key: str = "label",
        source_key: str | None = None,
        class_names: Sequence[str] = (),
        classes: Mapping[int, int] | None = None,
        synthetic_key: str = "synthetic",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.change = RandCounterfactual(runs, 1.0)
        self.label_key, self.source_key, self.synthetic_key = label_key, source_key, synthetic_key
        self.class_names, self.classes = tuple(class_names), None if classes is None else dict(classes)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Any:
        """Set the random state, here and of the array transform."""
        super().set_random_state(seed, state)
        self.change.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the images of a sample and its label, or leave them."""
        sample = dict(data)
        self.randomize(None)
        chosen = None
        if self._do_transform:
            for place, key in enumerate(self.key_iterator(sample)):
                source = None if self.source_key is None else sample[self.source_key]
                sample[key] = self.change(sample[key], source, randomize=place == 0)
                chosen = self.change.chosen
        if chosen is not None:
            label = chosen.label if self.classes is None else self.classes[chosen.label]
            sample[self.label_key] = label_like(label, sample[self.label_key], self.class_names)
        sample[self.synthetic_key] = chosen is not None
        return sample


def _source(img: Any) -> str:
    source = getattr(img, "meta", {}).get("filename_or_obj")
    if not source:
        raise ValueError("The image does not say of which file it is: give source_key, or load it by LoadImaged.")
    return str(source)


def _to_file(img: Any) -> NDArray[np.float64] | None:
    """Return the matrix (4, 4) from an image's indices to those of its file; None without metadata."""
    if not isinstance(img, MetaTensor):
        return None
    first = img.meta.get(str(MetaKeys.ORIGINAL_AFFINE), np.eye(4))  # readers of pictures have none
    now, first = (square_affine(each) for each in (img.affine, first))
    return np.asarray(np.linalg.solve(first, now), dtype=float)


RandCounterfactualD = RandCounterfactualDict = RandCounterfactuald
