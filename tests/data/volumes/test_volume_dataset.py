# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from medcf.data.volumes import VolumeDataset, dataset, read_volume, to_volume_grid
from medcf.training.datasets import training_dataset

GRID = {"size": (12, 14, 11), "spacing": 8.0}


@pytest.fixture
def table(heads, tmp_path):
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


def test_items_are_the_volumes_on_the_grid_with_their_labels(table):
    data = VolumeDataset(table, "train", **GRID)
    assert [data[i]["case"] for i in range(len(data))] == ["n0", "series"]
    assert [int(data[i]["label"]) for i in range(len(data))] == [0, 1]
    assert data[1]["subject"] == "p3"

    image = read_volume(table.parent / "n0.nii.gz")
    expected, _ = to_volume_grid(image, **GRID, mask=image.as_tensor() > 0)
    torch.testing.assert_close(data[0]["image"], expected.as_tensor(), atol=5e-4, rtol=0)
    assert torch.equal(data[0]["image"] == -1, expected.as_tensor() == -1)


def test_the_null_label_keeps_unlabelled_volumes(table, caplog):
    assert len(VolumeDataset(table, "train", **GRID)) == 2
    assert "1 volumes of" in caplog.text
    data = VolumeDataset(table, "train", **GRID, null_label=2)
    assert [int(item["label"]) for item in data] == [0, 2, 1]


def test_segmentations_come_onto_the_same_voxels(table):
    data = VolumeDataset(table, "train", **GRID, targets=("segmentation",))
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


def test_a_cache_saves_the_reading_and_is_not_used_for_another_set(table, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "volumes.npz"
    first = VolumeDataset(table, "train", **GRID, cache_file=cache, progress=False)
    reads = []
    monkeypatch.setattr(dataset, "read_volume", lambda path: reads.append(path) or read_volume(path))

    again = VolumeDataset(table, "train", **GRID, cache_file=cache, progress=False)
    assert reads == []
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["image"], other["image"])
    VolumeDataset(table, "train", size=(10, 12, 10), spacing=8.0, cache_file=cache, progress=False)
    assert len(reads) == 2
    cache.write_bytes(b"damaged")
    assert len(VolumeDataset(table, "train", **GRID, cache_file=cache, progress=False)) == 2


def test_a_transform_never_touches_what_is_kept(table):
    def erase(item):
        item["image"].zero_()
        return item

    data = VolumeDataset(table, "train", **GRID, transform=erase)
    assert float(data[0]["image"].abs().max()) == 0
    data.transform = None
    assert float(data[0]["image"].min()) == -1


def test_mistakes_in_the_table_are_named(table, tmp_path):
    with pytest.raises(ValueError, match="none of label, segmentation"):
        VolumeDataset(table, "train", **GRID, targets=("quality",))
    with pytest.raises(ValueError, match="no volume of the split 'test'"):
        VolumeDataset(table, "test", **GRID)
    other = tmp_path / "other.csv"
    other.write_text("file,label,split\nlist.csv,0,train\n")
    with pytest.raises(ValueError, match=r"list\.csv is no NIfTI or DICOM file"):
        VolumeDataset(other, "train", **GRID)


def test_training_configs_get_volumes_where_the_grid_has_three_sizes(table, tmp_path):
    data = training_dataset("val", datalist=table, size=GRID["size"], spacing=8.0, cache_dir=tmp_path / "kept")
    assert isinstance(data, VolumeDataset)
    assert data[0]["image"].shape == (1, 12, 14, 11)
    assert int(data[0]["label"]) == 1
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["list_val_12x14x11_8mm.npz"]
