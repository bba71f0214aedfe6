# SPDX-License-Identifier: Apache-2.0
"""Filters of a store in which it is known which images are bad, and how."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from medcf.data import StoreWriter, SyntheticStore
from medcf.metrics.copies import CopyDetector
from medcf.synthesis import CopyFilter, JudgeFilter, RatedFilter, StructureFilter, filter_store, read_ratings
from medcf.transforms import RandSynthetic

SIZE = (1, 16, 16)


def discs(count, label, seed, gray=-0.5, radius=None):
    """Bright discs on gray, of radius 4 (class 0) or 6 (class 1), in noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    edge = (radius or (4, 6)[label]) + 0.5 * torch.rand(count, 1, 1, generator=generator)
    images = torch.where((y - 7.5).hypot(x - 7.5) < edge, 0.6, gray)[:, None]
    return (images + 0.03 * torch.randn(count, *SIZE, generator=generator)).clamp(-1, 1)


@pytest.fixture
def store(tmp_path):
    """Twelve images of each class; of class 0, two are too dark, two have discs of class 1, one is a training image."""
    zero, one = discs(12, 0, 1), discs(12, 1, 2)
    zero[:2] = discs(2, 0, 3, gray=-0.9)
    zero[2:4] = discs(2, 1, 4)
    zero[4] = discs(40, 0, 0)[7]
    rows = [{"label": n % 2} for n in range(24)]
    writer = StoreWriter(
        tmp_path / "store", rows, shape=SIZE, class_names=["small", "large"], shard_size=10, dtype="float16"
    )
    writer.open()
    images = torch.stack([zero, one], 1).flatten(0, 1)
    for number, members in enumerate(writer.shards()):
        writer.write(number, images[members.start : members.stop])
    return writer.close()


def real():
    return torch.cat([discs(40, 0, 0), discs(40, 1, 100)]), torch.arange(80) // 40


def area(images):
    return (images > 0).flatten(1).float().mean(1)


def numbers(folder):
    """Return which of class 0's images are kept."""
    return [row["index"] // 2 for row in SyntheticStore(folder, kept=True).rows if row["label"] == 0]


def test_structure_keeps_what_is_within_the_real_images_range(store):
    found = filter_store(store, {"structure": StructureFilter.fit(*real(), share=1.0)}, batch_size=7)
    assert not {0, 1, 2, 3} & set(numbers(store.folder))
    assert found["images"] == 24
    assert found["rejected"]["structure"] == 24 - found["kept"]
    assert 4 <= found["rejected"]["structure"] <= 8
    with (store.folder / "filtered.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[0]["structure score"]) > 1  # far too dark
    assert all((row["kept"] == "True") == (float(row["structure score"]) == 0) for row in rows)
    keep, _ = StructureFilter.fit(*real())(discs(3, 0, 9), torch.tensor([5, 5, 5]))
    assert not keep.any()  # a class without real images


def test_a_judge_keeps_what_it_takes_for_its_class(store):
    def judge(images):
        share = area(images)
        return torch.stack([0.32 - share, share - 0.32], 1) * 100

    found = filter_store(store, {"judge": JudgeFilter(judge)})
    assert found == {"images": 24, "kept": 22, "rejected": {"judge": 2}}
    assert not {2, 3} & set(numbers(store.folder))


def test_ratings_teach_what_people_call_bad(store, tmp_path):
    dark, good = discs(20, 0, 50, gray=-0.9), discs(20, 0, 51)
    lines = ["case\trating\tcomment"] + [f"c{n}\t{'reject' if n < 20 else 'accept'}\t" for n in range(40)]
    (tmp_path / "ratings.tsv").write_text("\n".join([*lines, "c99\tunsure\t"]) + "\n")
    ratings = read_ratings(tmp_path / "ratings.tsv")
    assert len(ratings) == 40
    images = torch.cat([dark, good])

    def features(batch):
        return torch.stack([batch.flatten(1).mean(1), batch.flatten(1).std(1)], 1)

    learned = RatedFilter.fit(features, images, [ratings[f"c{n}"] for n in range(40)])
    filter_store(store, {"rated": learned})
    assert not {0, 1} & set(numbers(store.folder))
    assert {4, 5, 6, 7} <= set(numbers(store.folder))
    with pytest.raises(ValueError, match="rated alike"):
        RatedFilter.fit(features, images, [True] * 40)
    (tmp_path / "other.tsv").write_text("name,rating\na,accept\n")
    with pytest.raises(ValueError, match="columns case and rating"):
        read_ratings(tmp_path / "other.tsv")


def test_copies_of_training_images_are_dropped(store):
    detector = CopyDetector(lambda images: images.flatten(1) - images.flatten(1).mean(1, keepdim=True), real()[0])
    detector.calibrate(torch.cat([discs(40, 0, 77), discs(40, 1, 78)]), 0.05)
    found = filter_store(store, {"copies": CopyFilter(detector)})
    assert 4 not in numbers(store.folder)
    assert 1 <= found["rejected"]["copies"] <= 5


def test_all_filters_must_keep_an_image_and_pipelines_read_those(store):
    filters = {
        "structure": StructureFilter.fit(*real(), share=1.0),
        "none": lambda images, labels: (labels == 1, labels),
    }
    found = filter_store(store, filters)
    assert found["rejected"]["none"] == 12
    kept = SyntheticStore(store.folder, kept=True)
    assert len(kept) == found["kept"]
    assert set(kept.labels) == {1}
    replaced = RandSynthetic(kept, 1.0)(torch.rand(SIZE), 0)
    assert replaced.max() <= 1  # of class 0 nothing is left, so it stays real
    assert all(torch.equal(item["image"], store[item["index"]]["image"]) for item in kept)


def test_without_a_filter_or_with_that_of_other_images_the_store_says_so(store):
    with pytest.raises(FileNotFoundError, match=r"filtered\.csv is missing: call medcf\.synthesis\.filter_store"):
        SyntheticStore(store.folder, kept=True)
    filter_store(store, {"all": lambda images, labels: (labels >= 0, labels)})
    file = store.folder / "filtered.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"judges other images than .*store holds"):
        SyntheticStore(store.folder, kept=True)
    assert np.isfinite(len(store))
