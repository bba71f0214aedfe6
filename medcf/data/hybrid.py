# SPDX-License-Identifier: Apache-2.0
"""Real and synthetic images in one training set, and never one whose generator saw the validation's subjects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from medcf.data.labels import label_like
from medcf.data.matched import matched
from medcf.data.synthetic_store import SyntheticStore
from medcf.runtime.subjects import subject_key

__all__ = ["HybridDataset", "check_leak", "choose_synthetic"]

Counts = int | Mapping[int, int] | Literal["balance"]


def check_leak(store: SyntheticStore, validation: Iterable[object], *, unknown: bool = False) -> None:
    """Refuse synthetic images for a model that is validated on subjects whom their generator saw.

    Args:
        store: the synthetic images; its manifest names the subjects, hashed.
        validation: names of the subjects of validation and test sets, as the generator's training named them.
        unknown: accept a store that does not say whom its generator saw.

    Raises:
        ValueError: if the generator saw one of them, or does not say whom it saw; names the subject and the store.
    """
    seen = store.subjects
    if seen is None:
        if unknown:
            return
        raise ValueError(
            f"{store.folder} does not say whom its generator saw, so the validation may be among them: train the "
            "generator with subjects in its table, or accept it by unknown=True."
        )
    both = sorted({str(name) for name in validation if subject_key(name) in seen})
    if both:
        more = f" and {len(both) - 1} more subjects" if len(both) > 1 else ""
        raise ValueError(
            f"The generator of {store.folder} saw {both[0]!r}{more} of the validation set: what is measured there "
            "would be too good. Validate on other subjects, or train the generator without them."
        )


def choose_synthetic(
    store: SyntheticStore,
    labels: Sequence[int],
    *,
    ratio: float | None = None,
    count: Counts | None = None,
    seed: int = 0,
) -> list[int]:
    """Choose synthetic images to put beside real ones, class by class.

    Args:
        store: the synthetic images.
        labels: classes of the real images.
        ratio: synthetic images for each real one of the class.
        count: synthetic images of each class, of each class by its index, or "balance": as many as it takes to give
            every class as many images as the largest has.
        seed: of the choice.

    Returns:
        Indices into the store, in the order of the classes.

    Raises:
        ValueError: if not one of ``ratio`` and ``count`` is given, or the store has too few images of a class.
    """
    if (ratio is None) == (count is None):
        raise ValueError("Give ratio or count: one of them says how many synthetic images there are.")
    real, members = Counter(labels), store.members
    wanted = _wanted(real, sorted(set(real) | set(members)), ratio, count)
    generator, chosen = np.random.default_rng(seed), []
    for label, number in wanted.items():
        found = members.get(label, [])
        if number > len(found):
            raise ValueError(
                f"{number} synthetic images of class {label} are asked for, and {store.folder} has {len(found)}: "
                "generate more, or ask for fewer."
            )
        chosen += [found[place] for place in generator.permutation(len(found))[:number]]
    return chosen


class HybridDataset(Dataset):
    """Real images, then synthetic ones beside them.

    A synthetic item has the keys ``image_key``, ``label_key`` and ``synthetic``, and other words of the first real one
    empty (such as ``subject``); a real one gets ``synthetic`` as well. If the real items are pairs of image and label,
    so are the synthetic ones. A synthetic image and its label take the form of the first real ones: axes, size,
    channels, range of gray values, type (`medcf.data.matched`).

    Args:
        real: dataset of real images, its own transforms included.
        store: the synthetic images.
        ratio, count, seed: see `choose_synthetic`.
        labels: classes of the real images; None reads them from ``real.data``, as MONAI's datasets have it, or asks
            every item.
        validation: names of the subjects that the model is validated on, see `check_leak`; None does not check.
        transform: applied to a synthetic item after that.
        intensity: gray values that black and white become; None takes those of the first real image.
        image_key, label_key: keys of image and class.

    Example:
        ``HybridDataset(train, SyntheticStore("planes"), ratio=1.0, validation=val_patients)``
    """

    def __init__(
        self,
        real: Any,
        store: SyntheticStore,
        *,
        ratio: float | None = None,
        count: Counts | None = None,
        labels: Sequence[int] | None = None,
        validation: Iterable[object] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        intensity: tuple[float, float] | None = None,
        image_key: str = "image",
        label_key: str = "label",
        seed: int = 0,
    ) -> None:
        if validation is not None:
            check_leak(store, validation)
        self.real, self.store, self.transform, self.intensity = real, store, transform, intensity
        self._first: Any = None
        self.image_key, self.label_key = image_key, label_key
        known = _labels(real, label_key) if labels is None else [int(label) for label in labels]
        self.chosen = choose_synthetic(store, known, ratio=ratio, count=count, seed=seed)
        self.labels = known + [int(store.rows[index]["label"]) for index in self.chosen]

    def __len__(self) -> int:
        """Number of images, real and synthetic."""
        return len(self.real) + len(self.chosen)

    def __getitem__(self, index: int) -> Any:
        """Return an item; the real ones come first."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if index < len(self.real):
            item = self.real[index]
            return {**item, "synthetic": False} if isinstance(item, Mapping) else item
        if self._first is None:
            self._first = self.real[0]
        paired = not isinstance(self._first, Mapping)
        like, label = self._first[:2] if paired else (self._first[self.image_key], self._first[self.label_key])
        made = self.store[self.chosen[index - len(self.real)]]
        image = matched(made["image"], like, self.intensity)
        item = {
            **({} if paired else {key: "" for key, value in self._first.items() if isinstance(value, str)}),
            self.image_key: image,
            self.label_key: label_like(int(made["label"]), label, self.store.class_names),
            "synthetic": True,
        }
        item = item if self.transform is None else self.transform(item)
        return (item[self.image_key], item[self.label_key]) if paired else item


def _wanted(real: Counter[int], classes: Sequence[int], ratio: float | None, count: Counts | None) -> dict[int, int]:
    """Return how many synthetic images of each class are asked for."""
    if ratio is not None:
        if ratio < 0:
            raise ValueError(f"ratio={ratio} must not be negative.")
        return {label: round(ratio * number) for label, number in sorted(real.items())}
    if count == "balance":
        return {label: max(real.values()) - real[label] for label in classes}
    if isinstance(count, Mapping):
        return {int(label): int(number) for label, number in count.items()}
    assert isinstance(count, int)
    return dict.fromkeys(classes, count)


def _labels(real: Any, key: str) -> list[int]:
    """Return the classes of a dataset, without reading images where it says them."""
    items = getattr(real, "data", ())
    if len(items) != len(real) or not all(isinstance(item, Mapping) and key in item for item in items):
        items = [real[index] for index in range(len(real))]
    return [int(item[key] if isinstance(item, Mapping) else item[1]) for item in items]
