# SPDX-License-Identifier: Apache-2.0
"""Any transform of torchio in a MONAI pipeline: seeded, in 2D and 3D, with the affine kept, undone where it can be."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Randomizable
from monai.utils import TraceKeys, convert_to_dst_type, optional_import
from torch import Tensor

from medcf.data.image import meta_of, square_affine
from medcf.transforms.images import TORCH

__all__ = ["TorchIO", "TorchIOD", "TorchIODict", "TorchIOd"]

tio, _has_torchio = optional_import("torchio")

#: The seeds that torchio's random numbers may start from.
_SEEDS = 2**31


class TorchIO(InvertibleTransform, Randomizable):
    """Apply a transform of torchio to an image, or to images and label maps together.

    MONAI's own ``TorchIO`` hands plain tensors over: the affine is lost, label maps are interpolated like images, a
    picture is refused, and the random state is torch's. Here what is given goes through the transform as one
    ``torchio.Subject``, each entry keeps its metadata with the affine that torchio leaves, and random numbers come from
    ``set_random_state``.

    Args:
        transform: a transform of torchio, or its name, such as "RandomGhosting".
        options: of the transform, if it is given by name.

    Raises:
        ImportError: if torchio is not installed.
        ValueError: if torchio has no such transform.

    Example:
        >>> flip = TorchIO("Flip", axes=0)
        >>> image = flip(MetaTensor(torch.arange(4.0).view(1, 2, 2)))
        >>> image.tolist(), flip.inverse(image).tolist()
        ([[[2.0, 3.0], [0.0, 1.0]]], [[[0.0, 1.0], [2.0, 3.0]]])
    """

    backend = TORCH

    def __init__(self, transform: str | Callable[[Any], Any], **options: Any) -> None:
        if not _has_torchio:
            raise ImportError("TorchIO needs torchio. Run: python -m pip install 'medcf[degradation]'")
        if isinstance(transform, str):
            found = getattr(tio, transform, None)
            if not (isinstance(found, type) and issubclass(found, tio.Transform)):
                raise ValueError(f"transform={transform!r} is no transform of torchio {tio.__version__}.")
            self.transform: Callable[[Any], Any] = found(**options)
        else:
            self.transform = transform
            if options:
                raise ValueError(f"{', '.join(options)} are options of a transform that is given by its name.")
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of torchio's random numbers."""
        self._seed = int(self.R.randint(_SEEDS, dtype=np.int64))

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Transform an image (C, X, Y) or (C, X, Y, Z).

        Args:
            img: the image.
            randomize: draw anew; False repeats the last draw.
        """
        return self.together({"image": img}, randomize=randomize)["image"]

    def together(
        self, entries: Mapping[str, Any], labels: Sequence[str] = (), randomize: bool = True
    ) -> dict[str, Any]:
        """Transform several entries alike.

        Args:
            entries: images and label maps (C, X, Y) or (C, X, Y, Z).
            labels: those that are label maps: nearest neighbor, and no change of gray values.
            randomize: draw anew; False repeats the last draw.

        Raises:
            ValueError: if an entry is neither a picture nor a volume.
        """
        if randomize:
            self.randomize()
        with torch.random.fork_rng(devices=[]):  # torchio draws from the process's generator
            torch.manual_seed(self._seed)
            changed = self.transform(_subject(entries, labels))
        result = {name: _back(changed[name], before) for name, before in entries.items()}
        for name, after in result.items():
            if isinstance(after, MetaTensor):
                extra = {"history": changed.applied_transforms, "label": name in labels}
                self.push_transform(after, orig_size=entries[name].shape[1:], extra_info=extra)
        return result

    def inverse(self, data: Tensor) -> Tensor:
        """Undo what torchio can undo, such as flips, affine transforms and noise; the rest stays."""
        if not isinstance(data, MetaTensor):
            raise TypeError(f"data must be a MetaTensor that went through TorchIO, got {type(data).__name__}.")
        extra = self.pop_transform(data)[TraceKeys.EXTRA_INFO]
        subject = _subject({"image": data}, ["image"] if extra["label"] else [])
        subject.applied_transforms = list(extra["history"])
        return _back(subject.apply_inverse_transform(warn=False)["image"], data)


class TorchIOd(MapTransform, InvertibleTransform, Randomizable):
    """Dictionary version of `TorchIO`: the entries of a sample are transformed together.

    Args:
        keys: images and label maps.
        transform: see `TorchIO`.
        label_keys: those of ``keys`` that are label maps: nearest neighbor, and no change of gray values.
        allow_missing_keys: whether keys may be missing.
        options: see `TorchIO`.
    """

    backend = TorchIO.backend

    def __init__(
        self,
        keys: KeysCollection,
        transform: str | Callable[[Any], Any],
        label_keys: Sequence[Hashable] = (),
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.adapter = TorchIO(transform, **options)
        self.label_keys = tuple(map(str, label_keys))
        if unknown := set(self.label_keys) - set(map(str, self.keys)):
            raise ValueError(f"label_keys={sorted(unknown)} are none of the keys {self.keys}.")

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> TorchIOd:
        """Seed torchio's random numbers."""
        self.adapter.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Transform the entries of one sample; others are kept."""
        sample = dict(data)
        present = {str(key): key for key in self.key_iterator(sample)}
        changed = self.adapter.together({name: sample[key] for name, key in present.items()}, self.label_keys)
        return sample | {present[name]: value for name, value in changed.items()}

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo what torchio can undo, such as flips, affine transforms and noise; the rest stays."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[key] = self.adapter.inverse(sample[key])
        return sample


def _subject(entries: Mapping[str, Any], labels: Sequence[str]) -> Any:
    images = {}
    for name, entry in entries.items():
        values = torch.as_tensor(entry)
        if values.ndim not in (3, 4):
            raise ValueError(f"{name} is {tuple(values.shape)}: use (C, X, Y) or (C, X, Y, Z).")
        kind = tio.LabelMap if name in labels else tio.ScalarImage
        affine = square_affine(entry.affine) if isinstance(entry, MetaTensor) else np.eye(4)
        images[name] = kind(tensor=_volume(values), affine=affine)
    return tio.Subject(images)


def _volume(values: Tensor) -> Tensor:
    """Return a picture as a volume of one slice."""
    plain = values.as_subclass(Tensor)
    return plain[..., None] if plain.ndim == 3 else plain


def _back(image: Any, before: Any) -> Any:
    """Return a result of torchio in the form of the entry that it was made of."""
    values = image.data[..., 0] if before.ndim == 3 else image.data
    if not torch.as_tensor(before).is_floating_point() and values.is_floating_point():
        values = values.round()
    values = convert_to_dst_type(values, torch.as_tensor(before).as_subclass(Tensor))[0]
    if not isinstance(before, MetaTensor):
        return values if isinstance(before, Tensor) else values.numpy()
    count = len(before.affine) - 1
    affine = np.eye(count + 1)
    affine[:count, :count], affine[:count, -1] = image.affine[:count, :count], image.affine[:count, 3]
    operations = before.applied_operations
    return MetaTensor(values, affine=torch.from_numpy(affine), meta=meta_of(before), applied_operations=operations)


TorchIOD = TorchIODict = TorchIOd
