# SPDX-License-Identifier: Apache-2.0
"""Hybrid training sets: counts by class, and no leak from a generator to a validation set."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
import torch
from monai.data import CacheDataset, Dataset
from torch.utils.data import TensorDataset

from medcf.data import HybridDataset, StoreWriter, SyntheticStore, check_leak
from medcf.runtime.subjects import subject_key


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Six images of each of three classes; its generator saw patients 1 and 2."""
    folder = tmp_path_factory.mktemp("store") / "planes"
    rows = [{"label": n % 3} for n in range(18)]
    writer = StoreWriter(folder, rows, shape=(1, 4, 4), subjects=[subject_key(1), subject_key("patient 2")])
    writer.open()
    writer.write(0, torch.stack([torch.full((1, 4, 4), n / 9 - 1) for n in range(18)]))
    return writer.close()


def real(*labels):
    return Dataset(
        [
            {"image": torch.linspace(-1, 1, 16).view(1, 4, 4), "label": label, "case": str(n)}
            for n, label in enumerate(labels)
        ]
    )


def test_a_ratio_holds_in_each_class_and_every_item_says_what_it_is(store):
    hybrid = HybridDataset(real(0, 0, 0, 0, 1, 1), store, ratio=1.5)
    assert Counter(hybrid.labels) == {0: 4 + 6, 1: 2 + 3}
    items = [hybrid[n] for n in range(len(hybrid))]
    assert [item["synthetic"] for item in items] == [False] * 6 + [True] * 9
    assert [int(item["label"]) for item in items] == hybrid.labels
    made = [round((float(item["image"].mean()) + 1) * 9) for item in items[6:]]
    assert len(set(made)) == 9  # none twice
    assert [n % 3 for n in made] == hybrid.labels[6:]
    assert torch.equal(hybrid[-1]["image"], items[-1]["image"])
    with pytest.raises(IndexError):
        hybrid[len(hybrid)]


def test_counts_are_of_each_class_of_some_or_to_balance(store):
    train = real(0, 0, 0, 0, 0, 1)
    assert Counter(HybridDataset(train, store, count=2).labels) == {0: 7, 1: 3, 2: 2}
    assert Counter(HybridDataset(train, store, count={2: 4}).labels) == {0: 5, 1: 1, 2: 4}
    assert Counter(HybridDataset(train, store, count="balance").labels) == {0: 5, 1: 5, 2: 5}
    first, again, other = (HybridDataset(train, store, count=3, seed=seed).chosen for seed in (0, 0, 1))
    assert first == again != other


def test_pairs_of_image_and_label_stay_pairs_and_labels_are_read_without_images(store):
    pairs = TensorDataset(torch.linspace(-1, 1, 48).view(3, 1, 4, 4), torch.tensor([1, 1, 2]))
    hybrid = HybridDataset(pairs, store, ratio=1)
    image, label = hybrid[3]
    assert (image.shape, int(label)) == ((1, 4, 4), 1)
    assert hybrid.labels == [1, 1, 2, 1, 1, 2]

    def never(item):
        raise AssertionError

    train = Dataset(real(0, 1).data, never)
    assert HybridDataset(train, store, ratio=1).labels == [0, 1, 0, 1]
    cached = CacheDataset(real(0, 1).data, (), progress=False)
    assert len(pickle.loads(pickle.dumps(HybridDataset(cached, store, ratio=1, labels=[0, 1])))) == 4


def test_synthetic_items_pass_their_own_transform(store):
    hybrid = HybridDataset(real(0), store, count={0: 1}, transform=lambda item: {**item, "image": item["image"] + 5})
    assert float(hybrid[1]["image"].mean()) > 3.9


def test_a_leak_is_named_with_subject_and_store(store):
    with pytest.raises(ValueError, match=r"generator of .*planes saw '1' and 1 more subjects of the validation set"):
        HybridDataset(real(0), store, ratio=1, validation=["patient 3", 1, "patient 2"])
    check_leak(store, ["patient 3", 4])
    assert len(HybridDataset(real(0), store, ratio=1, validation=["patient 3"])) == 2


def test_a_store_that_does_not_say_whom_it_saw_is_refused_unless_accepted(tmp_path):
    writer = StoreWriter(tmp_path / "unknown", [{"label": 0}], shape=(1, 4, 4))
    writer.open()
    writer.write(0, torch.zeros(1, 1, 4, 4))
    unknown = writer.close()
    with pytest.raises(ValueError, match="unknown does not say whom its generator saw"):
        check_leak(unknown, [])
    check_leak(unknown, ["anyone"], unknown=True)


def test_too_few_images_and_unclear_wishes_are_refused(store):
    with pytest.raises(ValueError, match=r"7 synthetic images of class 1 are asked for, and .*planes has 6"):
        HybridDataset(real(1), store, ratio=7)
    for wish in ({}, {"ratio": 1, "count": 2}):
        with pytest.raises(ValueError, match="Give ratio or count"):
            HybridDataset(real(1), store, **wish)
    with pytest.raises(ValueError, match=r"ratio=-1 must not be negative"):
        HybridDataset(real(1), SyntheticStore(store.folder), ratio=-1)


@pytest.mark.parametrize("paired", [False, True])
def test_a_shuffled_loader_collates_whole_numbers_and_words_of_real_items(store, paired):
    from torch.utils.data import DataLoader

    items = [{"image": torch.rand(1, 4, 4), "label": n % 2, "subject": f"patient {n}"} for n in range(8)]
    real = [(item["image"], item["label"]) for item in items] if paired else items
    mixed = HybridDataset(real, store, count=2)
    for batch in DataLoader(mixed, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)):
        label = batch[1] if paired else batch["label"]
        assert label.dtype == torch.int64
    assert type(mixed[len(mixed) - 1][1] if paired else mixed[len(mixed) - 1]["label"]) is int


def test_patient_15_is_not_the_phantom_of_that_number():
    from medcf.runtime.subjects import names_of

    class Phantoms:
        subjects = (15, 16)

    assert names_of(Phantoms()) == ["phantom 15", "phantom 16"]
