# SPDX-License-Identifier: Apache-2.0
"""Augmentation by synthetic images: a sample is replaced by one of its class that a generator made before."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform

from medcf.data.labels import index_of_label
from medcf.data.matched import matched
from medcf.data.synthetic_store import SyntheticStore
from medcf.transforms.images import TORCH

__all__ = ["RandSynthetic", "RandSyntheticD", "RandSyntheticDict", "RandSyntheticd"]


class RandSynthetic(RandomizableTransform):
    """Replace an image by a synthetic one of its class, with some probability; no network runs.

    The synthetic image takes the replaced one's axes, size, number of channels, range of gray values, type and position
    (`medcf.data.matched`), so that this can stand anywhere after an image is loaded, before or after scaling and
    resizing. An image of a class that
    the store has no images of is never replaced.

    Args:
        store: folder of a `medcf.data.SyntheticStore`, or the store.
        prob: probability that an image is replaced.
        classes: class here, an index or a name, to the store's class, an index or a name, if they differ; other names
            stay real then.
        intensity: gray values that black and white become; None takes the replaced image's darkest and brightest.

    Raises:
        FileNotFoundError: if the folder holds no store.
        ValueError: if the store has no labels, or no class of a name.
    """

    backend = TORCH

    def __init__(
        self,
        store: str | Path | SyntheticStore,
        prob: float = 0.5,
        classes: Mapping[int | str, int | str] | None = None,
        intensity: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(prob)
        self.store = store if isinstance(store, SyntheticStore) else SyntheticStore(store)
        self.intensity = intensity
        self._members = _members(self.store, classes)
        self._translated = any(isinstance(each, str) for each in classes or ())
        self._index: int | None = None

    def randomize(self, data: Any) -> None:
        """Draw whether an image of a class is replaced, and by which image.

        Args:
            data: the label, see `medcf.data.labels.index_of_label`.
        """
        super().randomize(None)
        members = self._members_of(data) if self._do_transform else []
        self._index = members[self.R.randint(len(members))] if members else None

    def _members_of(self, label: Any) -> list[int]:
        """Return the images of a label's class; none if ``classes`` does not name it."""
        if isinstance(label, str) and (label in self._members or self._translated):
            return self._members.get(label, [])
        return self._members.get(index_of_label(label, self.store.class_names), [])

    @property
    def replaced(self) -> bool:
        """Whether the last image was replaced."""
        return self._index is not None

    def __call__(  # type: ignore[override]  # a label beside the image
        self, img: NdarrayOrTensor, label: Any, randomize: bool = True
    ) -> NdarrayOrTensor:
        """Replace an image.

        Args:
            img: (C, *spatial), in any range.
            label: its class.
            randomize: draw anew; False repeats the last draw.

        Raises:
            ValueError: if the image has not as many dimensions as the store's.
        """
        if randomize:
            self.randomize(label)
        if self._index is None:
            return img
        item = self.store[self._index]
        try:
            result = matched(item["image"], img, self.intensity)
        except ValueError as error:
            remedy = "put EnsureChannelFirstd before this transform, or give another store"
            raise ValueError(f"{error} {self.store.folder} does not fit: {remedy}.") from error
        if hasattr(result, "meta"):
            result.meta |= {"filename_or_obj": str(self.store.folder / item["case"]), "synthetic": True}
        return result


class RandSyntheticd(RandomizableTransform, MapTransform):
    """Dictionary version of `RandSynthetic`.

    Args:
        keys: images of one subject; all are replaced by the same synthetic image.
        store, prob, classes, intensity: see `RandSynthetic`.
        label_key: key of the class.
        synthetic_key: gets whether the sample is synthetic, in every sample.
        allow_missing_keys: whether keys may be missing.
    """

    backend = RandSynthetic.backend

    def __init__(
        self,
        keys: KeysCollection,
        store: str | Path | SyntheticStore,
        prob: float = 0.5,
        classes: Mapping[int | str, int | str] | None = None,
        intensity: tuple[float, float] | None = None,
        label_key: str = "label",
        synthetic_key: str = "synthetic",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.replace = RandSynthetic(store, 1.0, classes, intensity)
        self.label_key, self.synthetic_key = label_key, synthetic_key

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandSyntheticd:
        """Set the random state, here and of the array transform."""
        super().set_random_state(seed, state)
        self.replace.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the images of a sample, or leave them."""
        sample = dict(data)
        self.randomize(None)
        if self._do_transform:
            self.replace.randomize(sample[self.label_key])
            for key in self.key_iterator(sample):
                sample[key] = self.replace(sample[key], sample[self.label_key], randomize=False)
        sample[self.synthetic_key] = self._do_transform and self.replace.replaced
        return sample


def _members(store: SyntheticStore, classes: Mapping[int | str, int | str] | None) -> dict[Any, list[int]]:
    """Return which images of a store stand for each class."""
    found = store.members
    if not found:
        raise ValueError(f"{store.folder} holds images without labels: generate them by class, not by prompt.")
    if classes is None:
        return found
    return {here: found.get(index_of_label(there, store.class_names), []) for here, there in classes.items()}


RandSyntheticD = RandSyntheticDict = RandSyntheticd
