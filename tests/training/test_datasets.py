# SPDX-License-Identifier: Apache-2.0
"""The datasets of the training configs: phantoms, and the user's own images, named by a table with gaps."""

from __future__ import annotations

import csv
from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged, RandFlipd, Transform
from PIL import Image
from torch.utils.data import DataLoader

from medcf.data import StudyReader, read
from medcf.runtime.errors import UnreadableImage
from medcf.training.datasets import own_dataset, split_of_subject, training_dataset
from medcf.transforms import RemoveOverlaysd, ToGrid, ToGridd

GRID = {"size": (12, 14, 11), "spacing": 8.0}
LOAD = LoadImaged(keys="image", reader=StudyReader, expanduser=False)
PLANE = Compose([LOAD, ToGridd("image", size=(64, 80), spacing=1.75)])
BRAIN = Compose([LOAD, ToGridd("image", **GRID)])


def own(table, split="train", **options):
    return own_dataset(table, split, options.pop("preprocessing", PLANE), **options)


def own_volumes(table, split="train", **options):
    return own(table, split, preprocessing=options.pop("preprocessing", BRAIN), spatial_dims=3, **options)


class Note(Transform):
    """Remembers what is read."""

    reads: ClassVar[list[str]] = []

    def __call__(self, data):
        self.reads.append(str(data["image"]))
        return data


def cause_of(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return error


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
    steps = Compose([PLANE, lambda item: {**item, "image": item["image"] * 0 - 1}])
    dataset = training_dataset(datalist=tmp_path / "t.csv", null_label=2, preprocessing=steps)
    assert len(dataset) == 1
    assert int(dataset[0]["label"]) == 2
    assert float(dataset[0]["image"].max()) == -1.0


def test_a_folder_without_labels_is_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"one folder per class in .*--datalist"):
        training_dataset(dataset_dir=tmp_path, preprocessing=PLANE)


def test_a_table_without_a_way_to_read_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="preprocessing is missing"):
        training_dataset(datalist=tmp_path / "t.csv")


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
    dataset = own(table, null_label=2)
    assert [int(dataset[i]["label"]) for i in range(len(dataset))] == [0, 1, 0, 2, 0]
    batch = next(iter(DataLoader(dataset, batch_size=5)))
    assert batch["image"].shape == (5, 1, 64, 80)
    assert type(batch["image"]) is torch.Tensor
    assert float(batch["image"].min()) >= -1
    assert float(batch["image"].max()) <= 1


def test_images_without_what_the_training_needs_are_left_out(table):
    assert len(own(table)) == 4
    dataset = own(table, targets=["segmentation", "concepts", "quality", "label"])
    assert len(dataset) == 2
    sample = dataset[1]
    assert sample["concepts"].tolist() == pytest.approx([0.1, 0.9])
    assert float(sample["quality"]) == 0.5
    assert sample.keys() == {"image", "case", "subject", "segmentation", "concepts", "quality", "label"}


def test_masks_lie_on_the_images(table):
    steps = Compose([LOAD, ToGridd("image", size=(32, 40))])
    sample = own(table, targets=["segmentation"], preprocessing=steps)[0]
    assert sample["segmentation"].dtype == torch.long
    assert set(sample["segmentation"].unique().tolist()) == {0, 3}
    bright = sample["image"] > sample["image"].median()
    agreement = (bright != (sample["segmentation"] == 3)).float().mean()
    assert agreement > 0.95


def test_a_split_without_usable_images_is_an_error_that_names_the_columns(table):
    with pytest.raises(ValueError, match="has no image in the split 'oracle'"):
        own(table, "oracle")
    with pytest.raises(ValueError, match="fill the columns segmentation"):
        own(table, "val", targets=["segmentation"])
    with pytest.raises(ValueError, match="pose is not one of"):
        own(table, targets=["pose"])


def test_a_score_outside_of_its_range_names_the_case(tmp_path, table):
    bad = write(tmp_path / "bad.csv", [{"file": "image0.png", "quality": "7", "split": "train"}])
    with pytest.raises(RuntimeError) as caught:
        own(bad, targets=["quality"])[0]
    assert "image0: '7' is not a score" in str(cause_of(caught.value))


def test_overlays_are_removed_before_the_grid(tmp_path):
    pixels = np.full((96, 120, 3), 70, np.uint8) + np.random.default_rng(0).integers(0, 20, (96, 120, 3), np.uint8)
    pixels[40:44, 30:90] = (255, 230, 0)
    Image.fromarray(pixels).save(tmp_path / "marked.png")
    table = write(tmp_path / "t.csv", [{"file": "marked.png", "label": 0, "split": "train"}])
    marked = own(table)[0]["image"]
    steps = Compose([LOAD, RemoveOverlaysd("image"), ToGridd("image")])
    clean = own(table, preprocessing=steps)[0]["image"]
    assert float(marked.max()) > 0.3
    assert float(clean.max()) < -0.1


def test_the_transform_is_applied_anew_to_a_copy(table):
    def double(sample):
        sample["image"].mul_(2)
        return sample

    dataset = own(table, transform=double)
    assert torch.equal(dataset[0]["image"], dataset[0]["image"])


@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_random_steps_are_drawn_anew_each_time(table, tmp_path, kept):
    flip = RandFlipd("image", prob=0.5, spatial_axis=1)
    dataset = own(table, transform=flip, cache_dir=tmp_path / "kept" if kept == "on disk" else None)
    images = [dataset[0]["image"] for _ in range(20)]
    plain = own(table)[0]["image"]
    flipped = [torch.equal(image, plain) for image in images]
    assert any(flipped)
    assert not all(flipped)


def test_subjects_are_never_divided_between_splits():
    names = [f"subject {i}" for i in range(3000)]
    splits = [split_of_subject(name) for name in names]
    assert splits == [split_of_subject(name) for name in names]
    assert splits.count("train") / 3000 == pytest.approx(0.6, abs=0.03)
    assert splits.count("oracle") / 3000 == pytest.approx(0.2, abs=0.03)


def test_the_images_of_a_subject_stay_together(tmp_path, table):
    rows = [{"file": f"image{i}.png", "label": 0, "subject": f"s{i % 3}"} for i in range(6)]
    subjects = {f"s{i}": split_of_subject(f"s{i}") for i in range(3)}
    table = write(tmp_path / "own.csv", rows)
    for split in set(subjects.values()):
        dataset = own(table, split)
        assert {item["subject"] for item in dataset} == {s for s, where in subjects.items() if where == split}


@pytest.fixture
def volumes(heads, tmp_path):
    rows = ["file,label,subject,split,mask,segmentation"]
    for number, codes in enumerate(["RAS", "LPS", "ASR"]):
        shape, affine = heads.geometry(codes, (4, 4, 4))
        values = heads.head(shape, affine)
        values = np.where(values > 0, values + 20 * number, 0).astype(np.int16)
        heads.save_nifti(tmp_path / f"n{number}.nii.gz", values, affine)
        labels = (values > 0).astype(np.uint8) + (values > 500 + 20 * number)
        heads.save_nifti(tmp_path / f"s{number}.nii.gz", labels, affine)
        heads.save_nifti(tmp_path / f"m{number}.nii.gz", (values > 0).astype(np.uint8), affine)
        label = "" if number == 2 else number
        split = "val" if number == 1 else "train"
        rows.append(f"n{number}.nii.gz,{label},p{number},{split},m{number}.nii.gz,s{number}.nii.gz")
    heads.save_series(tmp_path / "series", values, affine)
    rows.append("series,1,p3,train,,")
    path = tmp_path / "list.csv"
    path.write_text("\n".join(rows))
    return path


def test_items_are_the_volumes_on_the_grid_with_their_labels(volumes):
    data = own_volumes(volumes, "train")
    assert [data[i]["case"] for i in range(len(data))] == ["n0", "series"]
    assert [int(data[i]["label"]) for i in range(len(data))] == [0, 1]
    assert data[1]["subject"] == "p3"

    image = read(volumes.parent / "n0.nii.gz")
    expected = ToGrid(**GRID)(image, image.as_tensor() > 0)
    torch.testing.assert_close(data[0]["image"], expected.as_tensor(), atol=5e-4, rtol=0)
    assert type(data[0]["image"]) is torch.Tensor
    assert torch.equal(data[0]["image"] == -1, expected.as_tensor() == -1)


def test_the_null_label_keeps_unlabelled_volumes(volumes, caplog):
    assert len(own_volumes(volumes, "train")) == 2
    assert "1 images of" in caplog.text
    data = own_volumes(volumes, "train", null_label=2)
    assert [int(item["label"]) for item in data] == [0, 2, 1]


def test_segmentations_come_onto_the_same_voxels(volumes):
    data = own_volumes(volumes, "train", targets=("segmentation",))
    item = data[0]
    brain = item["image"] > -1
    assert item["segmentation"].dtype == torch.int64
    # they differ where background, gray and white share a voxel
    assert float(((item["segmentation"] > 0) == brain).float().mean()) > 0.97
    bright = item["image"][item["segmentation"] == 2].mean()
    dark = item["image"][item["segmentation"] == 1].mean()
    assert bright > dark + 0.2
    first, other = data[0]["segmentation"], data[1]["segmentation"]
    assert float((first == other).float().mean()) > 0.95  # the same head in another layout


def test_what_is_kept_on_disk_is_read_once_and_not_used_for_another_set(volumes, tmp_path):
    cache, reads = tmp_path / "cache", Note.reads
    reads.clear()

    def dataset(**options):
        steps = Compose([Note(), LOAD, ToGridd("image", **{**GRID, **options})])
        return own_volumes(volumes, preprocessing=steps, cache_dir=cache)

    first = [item["image"] for item in dataset()]
    assert len(reads) == 2
    for one, other in zip(first, dataset(), strict=True):
        assert torch.equal(one, other["image"])
    assert len(reads) == 2
    # another file took the place of one
    image = nib.load(volumes.parent / "n0.nii.gz")
    values = np.asarray(image.dataobj) * 2 + (np.asarray(image.dataobj) > 0)
    values[values > 900] = 100
    nib.save(nib.Nifti1Image(values.astype(np.int16), image.affine), volumes.parent / "n0.nii.gz")
    again = [item["image"] for item in dataset()]
    assert len(reads) == 3
    assert not torch.equal(again[0], first[0])
    assert torch.equal(again[1], first[1])
    # another grid is another set
    assert [item["image"].shape for item in dataset(size=(10, 12, 10))] == [(1, 10, 12, 10)] * 2
    for file in cache.iterdir():
        file.write_bytes(b"damaged")
    assert len(list(dataset())) == 2


@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_a_transform_never_touches_what_is_kept(volumes, tmp_path, kept):
    def erase(item):
        item["image"].zero_()
        return item

    flip = RandFlipd("image", prob=0.0)
    folder = tmp_path / "kept" if kept == "on disk" else None
    data = own_volumes(volumes, "train", transform=Compose([flip, erase]), cache_dir=folder)
    assert float(data[0]["image"].abs().max()) == 0
    plain = own_volumes(volumes, "train", transform=flip, cache_dir=folder)
    assert float(plain[0]["image"].min()) == -1
    data.transform = Compose(data.transform.transforms[:-1])
    assert float(data[0]["image"].min()) == -1


def test_mistakes_in_the_table_are_named(volumes, tmp_path):
    with pytest.raises(ValueError, match="pose is not one of label, segmentation"):
        own_volumes(volumes, "train", targets=("pose",))
    with pytest.raises(ValueError, match="no image in the split 'test'"):
        own_volumes(volumes, "test")
    other = tmp_path / "other.csv"
    other.write_text("file,label,split\nlist.csv,0,train\n")
    with pytest.raises(ValueError, match=r"list\.csv is of an unknown format"):
        own_volumes(other, "train")


def test_a_segmentation_on_other_voxels_is_refused(volumes, heads):
    shape, affine = heads.geometry("RAS", (5, 5, 5))
    labels = (heads.head(shape, affine) > 0).astype(np.uint8)
    heads.save_nifti(volumes.parent / "s0.nii.gz", labels, affine)
    with pytest.raises(RuntimeError) as caught:
        own_volumes(volumes, targets=("segmentation",))[0]
    assert isinstance(cause_of(caught.value), UnreadableImage)
    assert "s0.nii.gz: is a segmentation whose pixels do not match" in str(cause_of(caught.value))


def test_training_configs_get_volumes_where_the_grid_has_three_sizes(volumes, tmp_path):
    options = {"size": GRID["size"], "spacing": 8.0, "preprocessing": BRAIN, "cache_dir": tmp_path / "kept"}
    data = training_dataset("val", datalist=volumes, **options)
    assert data[0]["image"].shape == (1, 12, 14, 11)
    assert int(data[0]["label"]) == 1
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_captions_and_more_than_two_classes_come_from_the_table(tmp_path):
    rows = ["file,split,label,caption"]
    for index, name in enumerate(("normal", "opacity", "covid")):
        Image.fromarray(np.full((32, 40), 100 + index, np.uint8)).save(tmp_path / f"{name}.png")
        rows.append(f'{name}.png,train,{name},"{name}, on the left"')
    (tmp_path / "t.csv").write_text("\n".join(rows))
    dataset = own(tmp_path / "t.csv", targets=["label", "caption"], num_classes=3)
    assert dataset.class_names == ("covid", "normal", "opacity")
    found = {str(item["caption"]): int(item["label"]) for item in dataset}
    assert found == {"normal, on the left": 1, "opacity, on the left": 2, "covid, on the left": 0}
    with pytest.raises(ValueError, match="networks have 2"):
        own(tmp_path / "t.csv", targets=["label", "caption"])


def test_options_of_a_phantom_make_another_set_with_a_cache_of_its_own(tmp_path):
    given = {"phantom": "fetal_planes", "count": 3, "size": (16, 16), "spacing": None, "cache_dir": tmp_path}
    plain, other = (training_dataset("demo", phantom_options=one, **given) for one in (None, {"site": "B"}))
    assert [int(item["site"]) for item in plain] == [0, 0, 0]
    assert [int(item["site"]) for item in other] == [1, 1, 1]
    assert len(list(tmp_path.glob("*.npz"))) == 2
    paired = training_dataset("demo", **{**given, "phantom": "fetal_planes_paired"})
    assert torch.equal(paired[0]["image"], plain[0]["image"])
    assert not torch.equal(paired[0]["image_again"], plain[0]["image"])
