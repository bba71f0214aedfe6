# SPDX-License-Identifier: Apache-2.0
"""Training on the user's own images, named by a table with gaps."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from medcf.training.image_dataset import ImageDataset, split_of_subject
from medcf.transforms import RemoveOverlays


@pytest.fixture
def table(tmp_path):
    """Six images of 32 x 40 pixels, gray 40 to 90; the fourth has no label, only the first two have a mask."""
    rows = []
    for index in range(6):
        pixels = np.full((32, 40), 40 + 10 * index, np.uint8)
        pixels[:, :20] += 5
        Image.fromarray(pixels).save(tmp_path / f"image{index}.png")
        mask = np.zeros((32, 40), np.uint8)
        mask[:, 20:] = 3
        Image.fromarray(mask).save(tmp_path / f"mask{index}.png")
        rows.append(
            {
                "file": f"image{index}.png",
                "label": "" if index == 3 else index % 2,
                "mask": f"mask{index}.png" if index < 2 else "",
                "quality": 0.5 if index < 3 else "",
                "concepts": "0.1 0.9" if index < 3 else "",
                "split": "val" if index == 5 else "train",
            }
        )
    return write(tmp_path / "table.csv", rows)


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_images_without_a_label_get_the_null_class(table):
    dataset = ImageDataset(table, null_label=2)
    assert [int(dataset[i]["label"]) for i in range(len(dataset))] == [0, 1, 0, 2, 0]
    batch = next(iter(DataLoader(dataset, batch_size=5)))
    assert batch["image"].shape == (5, 1, 64, 80)
    assert type(batch["image"]) is torch.Tensor
    assert float(batch["image"].min()) >= -1
    assert float(batch["image"].max()) <= 1


def test_images_without_what_the_training_needs_are_left_out(table):
    assert len(ImageDataset(table)) == 4
    dataset = ImageDataset(table, targets=["segmentation", "concepts", "quality", "label"])
    assert len(dataset) == 2
    sample = dataset[1]
    assert sample["concepts"].tolist() == pytest.approx([0.1, 0.9])
    assert float(sample["quality"]) == 0.5
    assert sample.keys() == {"image", "case", "segmentation", "concepts", "quality", "label"}


def test_masks_lie_on_the_images(table):
    sample = ImageDataset(table, targets=["segmentation"], size=(32, 40))[0]
    assert sample["segmentation"].dtype == torch.long
    assert set(sample["segmentation"].unique().tolist()) == {0, 3}
    bright = sample["image"] > sample["image"].median()
    agreement = (bright != (sample["segmentation"] == 3)).float().mean()
    assert agreement > 0.95


def test_a_split_without_usable_images_is_an_error_that_names_the_columns(table):
    with pytest.raises(ValueError, match="names no image of the split 'oracle'"):
        ImageDataset(table, "oracle")
    with pytest.raises(ValueError, match="fill the columns mask"):
        ImageDataset(table, "val", targets=["segmentation"])
    with pytest.raises(ValueError, match="pose is none of"):
        ImageDataset(table, targets=["pose"])


def test_a_score_outside_of_its_range_names_the_case(tmp_path, table):
    bad = write(tmp_path / "bad.csv", [{"file": "image0.png", "quality": "7", "split": "train"}])
    with pytest.raises(ValueError, match=r"image0: '7' is no score"):
        ImageDataset(bad, targets=["quality"])[0]


def test_overlays_are_removed_before_the_grid(tmp_path):
    pixels = np.full((96, 120, 3), 70, np.uint8) + np.random.default_rng(0).integers(0, 20, (96, 120, 3), np.uint8)
    pixels[40:44, 30:90] = (255, 230, 0)
    Image.fromarray(pixels).save(tmp_path / "marked.png")
    table = write(tmp_path / "t.csv", [{"file": "marked.png", "label": 0, "split": "train"}])
    marked = ImageDataset(table)[0]["image"]
    clean = ImageDataset(table, preprocessing=RemoveOverlays())[0]["image"]
    assert float(marked.max()) > 0.3
    assert float(clean.max()) < -0.1


def test_the_transform_is_applied_anew_to_a_copy(table):
    def double(sample):
        sample["image"].mul_(2)
        return sample

    dataset = ImageDataset(table, transform=double)
    assert torch.equal(dataset[0]["image"], dataset[0]["image"])


def test_subjects_are_never_divided_between_splits():
    names = [f"subject {i}" for i in range(3000)]
    splits = [split_of_subject(name) for name in names]
    assert splits == [split_of_subject(name) for name in names]
    assert splits.count("train") / 3000 == pytest.approx(0.6, abs=0.03)
    assert splits.count("oracle") / 3000 == pytest.approx(0.2, abs=0.03)


def test_the_images_of_a_subject_stay_together(tmp_path, table):
    rows = [{"file": f"image{i}.png", "label": 0, "subject": f"s{i % 3}"} for i in range(6)]
    subjects = {f"s{i}": split_of_subject(f"s{i}") for i in range(3)}
    own = write(tmp_path / "own.csv", rows)
    for split in set(subjects.values()):
        dataset = ImageDataset(own, split)
        assert {case["subject"] for case in dataset.cases} == {s for s, where in subjects.items() if where == split}
