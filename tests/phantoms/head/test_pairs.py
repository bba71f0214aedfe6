# SPDX-License-Identifier: Apache-2.0
"""A pair is one head twice: as it was scanned, and as it should have been."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from medcf.phantoms import PairedPhantomDataset, PhantomDataset, write_demo
from medcf.phantoms.head.datasets import shrink


def test_the_truth_has_what_a_standard_plane_has() -> None:
    pairs = PairedPhantomDataset(count=6, progress=False)
    for item in pairs:
        found = set(item["segmentation_true"].unique().tolist())
        assert {1, 2, 3} <= found
        assert 4 not in found
        assert item["label"] == 0


def test_inputs_are_those_that_the_demo_writes(tmp_path: Path) -> None:
    records = write_demo(tmp_path, split="demo", count=2, label=0, formats=("png",))
    pairs = PairedPhantomDataset(split="demo", count=2, progress=False)
    for record, item in zip(records, pairs, strict=True):
        written = shrink(np.asarray(Image.open(record["path"])) / 255.0, (64, 80))
        torch.testing.assert_close(item["image"][0], torch.from_numpy(written).float() * 2 - 1, atol=1 / 127, rtol=0)
        assert item["subject"] == record["subject"]
        assert item["case"] == record["case"]


def test_a_standard_plane_paired_with_itself_differs_by_speckle_alone() -> None:
    item = PairedPhantomDataset(count=1, label=1, progress=False)[0]
    same = (item["segmentation"] == item["segmentation_true"]).float().mean()
    assert same > 0.9
    assert (item["image"] != item["image_true"]).float().mean() > 0.3


def test_subjects_are_those_of_the_split() -> None:
    pairs = PairedPhantomDataset(count=2, split="test", progress=False)
    data = PhantomDataset(count=2, split="test", progress=False)
    assert [int(item["subject"]) for item in pairs] == [int(data[i]["subject"]) for i in range(2)]
