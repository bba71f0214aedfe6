# SPDX-License-Identifier: Apache-2.0
"""Compressed pixel data: as pydicom decodes them, in a process that may die of them."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array
from torch.utils.data import DataLoader

from medcf.data import get_spacing, read
from medcf.data.dicom import decoder
from medcf.data.dicom.decoder import decode_frame
from medcf.data.dicom.header import open_dicom
from medcf.runtime.errors import UnreadableImage

COMPRESSED = ("SC_rgb_rle.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm")


def bundled(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return Path(str(path))


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Let the decoding process meet a native decoder that does what is asked for, in place of gdcm."""

    def install(code: str) -> None:
        (tmp_path / "gdcm").mkdir(exist_ok=True)
        (tmp_path / "gdcm" / "__init__.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        decoder._DECODER.stop()

    yield install
    decoder._DECODER.stop()


@pytest.mark.parametrize("name", COMPRESSED)
def test_frames_are_those_of_pydicom(name):
    path = bundled(name)
    np.testing.assert_array_equal(decode_frame(path, open_dicom(path), 0), pixel_array(pydicom.dcmread(path), index=0))


def test_one_process_serves_many_files_and_comes_back_when_it_is_killed():
    path = bundled("SC_rgb_rle.dcm")
    first = decode_frame(path, open_dicom(path), 0)
    process = decoder._DECODER._process
    decode_frame(path, open_dicom(path), 0)
    assert decoder._DECODER._process is process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    np.testing.assert_array_equal(decode_frame(path, open_dicom(path), 0), first)


def test_a_decoder_that_aborts_costs_one_error(plugin, monkeypatch):
    plugin("import os; os.abort()")
    path = bundled("SC_rgb_jpeg_dcmtk.dcm")
    with pytest.raises(UnreadableImage, match=r"SC_rgb_jpeg_dcmtk\.dcm: .*crashed its decoder"):
        read(path)
    monkeypatch.delenv("PYTHONPATH")
    assert read(path).shape[1:] == (100, 100)


def test_a_decoder_that_hangs_is_ended(plugin, monkeypatch):
    plugin("import time; time.sleep(600)")
    monkeypatch.setattr(decoder, "TIME_LIMIT", 1.0)
    with pytest.raises(UnreadableImage, match="took more than 1 s"):
        read(bundled("SC_rgb_jpeg_dcmtk.dcm"))


@pytest.mark.skipif(os.name != "posix", reason="Windows knows no such limit")
def test_a_decoder_that_asks_for_gigabytes_gets_none(plugin):
    plugin(f"x = bytearray({decoder.MEMORY_LIMIT})")
    with pytest.raises(UnreadableImage, match=r"damaged pixel data \((MemoryError|crashed)"):
        read(bundled("SC_rgb_jpeg_dcmtk.dcm"))


def test_what_a_native_decoder_prints_does_not_disturb(plugin):
    plugin("import os; os.write(1, b'noise\\n'); os.write(2, b'noise\\n'); raise ImportError")
    assert read(bundled("SC_rgb_jpeg_dcmtk.dcm")).shape[1:] == (100, 100)


def test_workers_of_a_data_loader_decode_by_themselves():
    path = bundled("SC_rgb_rle.dcm")
    expected = read(path)
    pid = decoder._DECODER._process.pid
    for image in DataLoader([path] * 4, num_workers=2, batch_size=None, collate_fn=lambda item: read(item).as_tensor()):
        np.testing.assert_array_equal(image, expected)
    assert decoder._DECODER._process.pid == pid
    assert decoder._DECODER._process.poll() is None


@pytest.mark.parametrize("keyword", ["BitsStored", "PixelRepresentation", "SamplesPerPixel"])
def test_an_attribute_with_one_possible_value_may_be_missing(tmp_path, keyword):
    whole = pydicom.dcmread(bundled("SC_rgb_rle.dcm"))
    expected = read(bundled("SC_rgb_rle.dcm"))
    delattr(whole, keyword)
    whole.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read(tmp_path / "a.dcm"), expected)


@pytest.mark.parametrize("keyword", ["BitsAllocated", "PixelRepresentation", "Rows"])
def test_an_attribute_that_could_be_anything_is_named(tmp_path, keyword):
    whole = pydicom.dcmread(bundled("CT_small.dcm"))
    delattr(whole, keyword)
    whole.save_as(tmp_path / "a.dcm")
    with pytest.raises(UnreadableImage, match=rf"a\.dcm: .*{keyword} missing"):
        read(tmp_path / "a.dcm")


def test_a_relative_path_is_read_wherever_the_process_was_started(tmp_path, monkeypatch):
    expected = read(bundled("SC_rgb_rle.dcm"))
    (tmp_path / "a.dcm").write_bytes(bundled("SC_rgb_rle.dcm").read_bytes())
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(read("a.dcm"), expected)


def test_an_enhanced_frame_is_shown_by_its_functional_groups(tmp_path):
    plain = pydicom.dcmread(bundled("CT_small.dcm"))
    for name in ("RescaleSlope", "RescaleIntercept", "PixelSpacing", "PixelPaddingValue"):
        plain.pop(name, None)
    plain.Modality = "US"
    rescaled, window, measures, groups = (pydicom.Dataset() for _ in range(4))
    rescaled.RescaleSlope, rescaled.RescaleIntercept = -1, 4095
    window.WindowCenter, window.WindowWidth = 3000, 2000
    measures.PixelSpacing = [0.5, 0.7]
    groups.PixelValueTransformationSequence = [rescaled]
    groups.FrameVOILUTSequence = [window]
    groups.PixelMeasuresSequence = [measures]
    enhanced, usual = copy.deepcopy(plain), plain
    enhanced.SharedFunctionalGroupsSequence = [groups]
    for dataset, path in ((enhanced, tmp_path / "e.dcm"), (usual, tmp_path / "u.dcm")):
        if dataset is usual:
            for item in (rescaled, window, measures):
                dataset.update(item)
        dataset.save_as(path)
    np.testing.assert_array_equal(read(tmp_path / "e.dcm"), read(tmp_path / "u.dcm"))
    assert get_spacing(read(tmp_path / "e.dcm")) == (0.7, 0.5)
