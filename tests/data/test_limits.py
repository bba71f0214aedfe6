# SPDX-License-Identifier: Apache-2.0
"""Small files that claim gigabytes are refused from their headers, with their claim and the option that allows it."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
import zlib
from functools import partial

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medcf.data import find_cases, read
from medcf.data.dicom import header
from medcf.data.image import Limits
from medcf.runtime.errors import UnreadableImage


def nifti_of_zeros(path, shape):
    """A compressed NIfTI file that would be as large as it claims."""
    head = nib.Nifti1Header()
    head.set_data_shape(shape)
    head.set_data_dtype(np.uint8)
    head.set_zooms((0.01, 0.01, 0.01))
    head["vox_offset"], head["magic"] = 352, b"n+1"
    with gzip.open(path, "wb") as stream:
        stream.write(head.binaryblock + bytes(4))


def png(path, columns, rows):
    """A PNG without pixels, whose header claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    claim = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", claim) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def tiff(path):
    """A TIFF whose size was edited."""
    tifffile.imwrite(path, np.zeros((10, 10), np.uint8))
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for tag in ("ImageWidth", "ImageLength"):
            offset = file.pages[0].tags[tag].valueoffset
            raw[offset : offset + 2] = struct.pack("<H", 60000)
    path.write_bytes(bytes(raw))


def dicom(path, **fields):
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.Modality = "US"
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


BOMBS = {
    "v.nii.gz": (nifti_of_zeros, ((700, 700, 700),), "700 x 700 x 700 voxels", "--max_voxels 343000000"),
    "p.nii.gz": (nifti_of_zeros, ((25000, 25000, 1),), "25000 x 25000 pixels", "--max_pixels 625000000"),
    "p.png": (png, (30000, 2900), "30000 x 2900 pixels", "--max_pixels 87000000"),
    "huge.png": (png, (40000, 40000), "40000 x 40000 pixels", "--max_pixels 1600000000"),
    "p.tif": (tiff, (), "60000 x 60000 pixels", "--max_pixels"),
    "p.dcm": (partial(dicom, Rows=60000, Columns=60000), (), "60000 x 60000 pixels", "--max_pixels"),
    "loop.dcm": (partial(dicom, NumberOfFrames=10**6), (), "states 1000000 frames in", "Export"),
    "more.dcm": (partial(dicom, NumberOfFrames=2**31 - 1), (), "states 2147483647 frames", "Export"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_claims_gigabytes_is_refused_without_allocating_them(tmp_path, name):
    make, sizes, claim, remedy = BOMBS[name]
    make(tmp_path / name, *sizes)
    tracemalloc.start()
    cases, (failure,) = find_cases(tmp_path, spatial_dims=3 if name[0] == "v" else 2, frame="all")
    with pytest.raises(UnreadableImage, match=claim):
        read(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert cases == []
    assert claim in failure.reason
    assert remedy in failure.remedy
    assert peak < 50e6


def test_a_limit_can_be_raised_and_lowered(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((40, 30, 20), np.float32), np.eye(4)), tmp_path / "v.nii")
    _, (failure,) = find_cases(tmp_path, spatial_dims=3, max_voxels=20000)
    assert failure.remedy.endswith("--max_voxels 24000")
    (case,), _ = find_cases(tmp_path, spatial_dims=3, max_voxels=24000)
    assert read(case, limits=Limits(voxels=24000)).shape == (1, 40, 30, 20)


def test_a_deflated_file_is_measured_before_it_is_inflated(tmp_path, monkeypatch):
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.Modality = "US"
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert read(tmp_path / "a.dcm").shape == (1, 128, 128)
    monkeypatch.setattr(header, "_LONGEST_INFLATED", 2**12)
    with pytest.raises(UnreadableImage, match=r"a\.dcm: is deflated and exceeds"):
        read(tmp_path / "a.dcm")


def test_a_series_is_measured_before_it_is_decoded(heads, oblique, tmp_path):
    folder = heads.save_series(tmp_path / "s", *oblique)
    with pytest.raises(UnreadableImage, match="claims 7 x 6 x 5 voxels"):
        read(folder, limits=Limits(voxels=200))
    _, (failure,) = find_cases(folder, spatial_dims=3, max_voxels=200)
    assert "claims 7 x 6 x 5 voxels" in failure.reason
