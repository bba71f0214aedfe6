# SPDX-License-Identifier: Apache-2.0
"""Images of a store as files that other programs read."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import load_decathlon_datalist
from PIL import Image

from medcf.data import StoreWriter, read
from medcf.data.export_store import export_store, main


@pytest.fixture
def stored(tmp_path):
    """Write a store of two classes; every image has its brightest pixel in row 1, column 3."""

    def write(*shape):
        names = ["Fetal brain", "Femur"]
        rows = [{"label": n % 2, "class_name": names[n % 2], "caption": f"image {n}"} for n in range(4)]
        writer = StoreWriter(tmp_path / "store", rows, shape=(1, *shape), class_names=names)
        writer.open()
        images = torch.linspace(-1, 0.5, int(np.prod(shape))).view(1, 1, *shape).repeat(4, 1, *(1,) * len(shape))
        images[:, :, 1, 3] = 1.0
        writer.write(0, images)
        return writer.close()

    return write


def test_pictures_become_png_that_say_what_they_are(stored, tmp_path):
    store = stored(4, 6)
    main([str(store.folder), str(tmp_path / "out")])
    with (tmp_path / "out" / "datalist.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["label"], row["class_name"], row["synthetic"]) for row in rows[:2]] == [
        ("0", "Fetal brain", "True"),
        ("1", "Femur", "True"),
    ]
    for index, row in enumerate(rows):
        picture = Image.open(tmp_path / "out" / row["file"])
        assert picture.info["Description"].startswith("SYNTHETIC")
        np.testing.assert_allclose(np.asarray(picture) / 127.5 - 1, store[index]["image"][0], atol=1 / 127)
    assert (tmp_path / "out" / "Fetal_brain").is_dir()
    found = load_decathlon_datalist(tmp_path / "out" / "datalist.json", data_list_key="training")
    assert [item["label"] for item in found] == [0, 1, 0, 1]
    assert json.loads((tmp_path / "out" / "datalist.json").read_text())["training"][0]["synthetic"] is True


def test_nifti_has_the_picture_s_rows_and_columns_and_a_volume_s_axes(stored, tmp_path):
    export_store(stored(4, 6), tmp_path / "flat", "nii.gz")
    file = next((tmp_path / "flat").glob("*/*.nii.gz"))
    image = nib.load(file)
    assert image.shape == (6, 4, 1)
    assert np.unravel_index(image.get_fdata().argmax(), image.shape) == (3, 1, 0)
    assert bytes(image.header["descrip"]).startswith(b"SYNTHETIC")
    assert tuple(read(file).shape) == (1, 6, 4)  # as any picture, columns first


def test_volumes_are_written_as_nifti_and_not_as_png(stored, tmp_path):
    store = stored(4, 6, 5)
    with pytest.raises(ValueError, match="holds volumes, which a PNG cannot"):
        export_store(store, tmp_path / "png")
    export_store(store, tmp_path / "out", "nii.gz")
    image = nib.load(next((tmp_path / "out").glob("*/*.nii.gz")))
    np.testing.assert_allclose(image.get_fdata(), store[0]["image"][0], atol=1e-2)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    with pytest.raises(ValueError, match="out is not empty"):
        export_store(store, tmp_path / "out", "nii.gz")
