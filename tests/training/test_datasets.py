# SPDX-License-Identifier: Apache-2.0
"""The datasets of the training configs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from medcf.training.datasets import training_dataset


def test_phantoms_are_rendered_once_and_read_back(tmp_path):
    first = training_dataset(count=3, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    second = training_dataset(count=3, cache_dir=tmp_path)
    assert file.stat().st_mtime_ns == stamp
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert {"segmentation", "label", "concepts", "quality", "case"} <= a.keys()


def test_another_split_or_seed_is_another_cache_with_other_heads(tmp_path):
    images = [
        training_dataset(split, count=1, seed=seed, cache_dir=tmp_path)[0]["image"]
        for split, seed in (("train", 0), ("val", 0), ("train", 1))
    ]
    assert len(list(tmp_path.iterdir())) == 3
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_a_table_replaces_the_phantoms(tmp_path):
    Image.fromarray(np.full((32, 40), 255, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("file,split\na.png,train\n")
    dataset = training_dataset(
        datalist=tmp_path / "t.csv", null_label=2, preprocessing=lambda image: image * 0, size=(32, 32)
    )
    assert len(dataset) == 1
    assert int(dataset[0]["label"]) == 2
    assert float(dataset[0]["image"].max()) == -1.0


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--datalist"):
        training_dataset(dataset_dir=tmp_path)
