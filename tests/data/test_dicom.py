# SPDX-License-Identifier: Apache-2.0
"""DICOM: every color model and compression gives the same picture; what is no picture is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import convert_color_space
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, UltrasoundImageStorage

from medcf.data import find_cases, get_spacing, read, to_luminance
from medcf.data.dicom import decoder
from medcf.runtime.errors import UnreadableImage

LUMA = np.array([0.299, 0.587, 0.114])


def bundled(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return Path(str(path))


def ultrasound(pixels: np.ndarray, photometric: str, **fields: object) -> Dataset:
    """An Ultrasound Image of (H, W), (H, W, 3), (F, H, W) or (F, H, W, 3) pixels."""
    color = pixels.shape[-1] == 3
    frames = pixels.ndim - 2 - color
    dataset = Dataset()
    dataset.SOPClassUID = UltrasoundImageStorage
    dataset.SOPInstanceUID, dataset.Modality = "1.2.3.4", "US"
    dataset.PatientName = "Secret^Patient"
    dataset.Rows, dataset.Columns = pixels.shape[frames : frames + 2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3 if color else 1), photometric
    if color:
        dataset.PlanarConfiguration = 0
    if frames:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name, value in fields.items():
        setattr(dataset, name, value)
    return dataset


def region(box: tuple[int, int, int, int], delta: tuple[float, float], **fields: int) -> Dataset:
    """An ultrasound region: box is (top, left, bottom, right), inclusive; delta is (row, column) in cm."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 0
    item.RegionLocationMinY0, item.RegionLocationMinX0, item.RegionLocationMaxY1, item.RegionLocationMaxX1 = box
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaY, item.PhysicalDeltaX = delta
    for name, value in fields.items():
        setattr(item, name, value)
    return item


def luminance(path: Path) -> np.ndarray:
    """Rows and columns of a picture as a viewer shows it."""
    return to_luminance(read(path)).numpy()[0].T


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def gray() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 30), dtype=np.uint8)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def test_color_is_kept_columns_first_and_collapses_to_luminance(tmp_path: Path, rgb: np.ndarray) -> None:
    path = save(ultrasound(rgb, "RGB"), tmp_path / "a")
    np.testing.assert_allclose(read(path).numpy(), rgb.transpose(2, 1, 0) / 255, atol=1e-6)
    np.testing.assert_allclose(luminance(path), rgb @ LUMA / 255, atol=1e-5)


def test_planar_configuration_does_not_matter(tmp_path: Path, rgb: np.ndarray) -> None:
    dataset = ultrasound(rgb, "RGB", PlanarConfiguration=1)
    dataset.PixelData = np.moveaxis(rgb, -1, 0).tobytes()
    image = read(save(dataset, tmp_path / "a"))
    np.testing.assert_allclose(image.numpy(), rgb.transpose(2, 1, 0) / 255, atol=1e-6)


def test_ybr_is_converted(tmp_path: Path, rgb: np.ndarray) -> None:
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    found = luminance(save(ultrasound(ybr, "YBR_FULL"), tmp_path / "a"))
    np.testing.assert_allclose(found, rgb @ LUMA / 255, atol=2 / 255)


def test_monochrome1_is_inverted(tmp_path: Path, gray: np.ndarray) -> None:
    image = read(save(ultrasound(gray, "MONOCHROME1"), tmp_path / "a"))
    np.testing.assert_allclose(image.numpy()[0].T, 1 - gray / 255, atol=1e-6)
    assert tuple(image.meta["value_range"]) == (255.0, 0.0)


def test_palette_is_looked_up(tmp_path: Path, gray: np.ndarray) -> None:
    dataset = ultrasound(gray, "PALETTE COLOR")
    tables = {"Red": np.arange(256)[::-1], "Green": np.arange(256), "Blue": np.full(256, 40)}
    for name, table in tables.items():
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{name}PaletteColorLookupTableData", (table * 257).astype("<u2").tobytes())
    image = read(save(dataset, tmp_path / "a"))
    expected = np.stack([tables[name][gray.T] for name in tables]) / 255
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-4)


def test_color_file_without_color_is_one_channel(tmp_path: Path, gray: np.ndarray) -> None:
    path = save(ultrasound(np.stack([gray] * 3, axis=-1), "RGB"), tmp_path / "a")
    assert read(path).shape == (1, 30, 24)


def test_window_is_applied(tmp_path: Path) -> None:
    pixels = np.arange(0, 4096, 8, dtype=np.uint16).reshape(16, 32)
    dataset = ultrasound(pixels, "MONOCHROME2", WindowCenter=1000, WindowWidth=401)
    image = read(save(dataset, tmp_path / "a")).numpy()[0].T
    np.testing.assert_allclose(image, np.clip((pixels - 799.5) / 400, 0, 1), atol=1e-5)


def test_sixteen_bits_without_a_window_are_stretched(tmp_path: Path) -> None:
    pixels = np.linspace(500, 3000, 24 * 30).astype(np.uint16).reshape(24, 30)
    image = read(save(ultrasound(pixels, "MONOCHROME2"), tmp_path / "a")).numpy()[0].T
    np.testing.assert_allclose(image, (pixels - 500) / 2500, atol=1e-5)


@pytest.mark.parametrize(("frame", "index"), [("first", 0), ("middle", 2), ("last", 4), (3, 3), ("3", 3), (-1, 4)])
def test_frame_of_a_loop(tmp_path: Path, frame: int | str, index: int) -> None:
    frames = np.stack([np.full((8, 8), 40 * i, dtype=np.uint8) for i in range(5)])
    image = read(save(ultrasound(frames, "MONOCHROME2"), tmp_path / "a"), frame)
    assert image.meta["frame"] == index
    assert image.meta["num_frames"] == 5
    np.testing.assert_allclose(image.numpy(), 40 * index / 255, atol=1e-6)


def test_missing_frame_names_the_ones_there_are(tmp_path: Path) -> None:
    path = save(ultrasound(np.zeros((5, 8, 8), dtype=np.uint8), "MONOCHROME2"), tmp_path / "loop")
    with pytest.raises(UnreadableImage, match=r"loop: has 5 frames.*from 0 to 4"):
        read(path, 5)
    with pytest.raises(ValueError, match="frame must be"):
        read(path, "some")


def test_rle_equals_uncompressed(tmp_path: Path, rgb: np.ndarray) -> None:
    dataset = ultrasound(rgb, "RGB")
    plain = read(save(dataset, tmp_path / "plain"))
    dataset.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(read(save(dataset, tmp_path / "rle")), plain)


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm"],
)
def test_lossless_syntaxes_equal_uncompressed(name: str) -> None:
    np.testing.assert_array_equal(read(bundled(name)), read(bundled("MR_small.dcm")))


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_jpeg_gdcm.dcm",  # JPEG lossless, process 14
        "SC_rgb_dcmtk_+eb+cr.dcm",  # JPEG baseline, RGB
        "SC_rgb_dcmtk_+eb+cy+np.dcm",  # JPEG baseline, YBR_FULL_422
        "SC_rgb_jls_lossy_line.dcm",  # JPEG-LS near-lossless
        "SC_ybr_full_422_uncompressed.dcm",
    ],
)
def test_compressed_color_shows_the_same_bars(name: str) -> None:
    expected = read(bundled("SC_rgb_rle.dcm"))
    image = read(bundled(name))
    assert float((image - expected).abs().mean()) < 0.02


def test_jpeg_2000_and_jpeg_loops_of_ultrasound_are_decoded() -> None:
    still = read(bundled("examples_jpeg2k.dcm"))
    assert still.shape == (3, 640, 480)
    # the power Doppler of this image is yellow to red: much red, hardly any blue
    assert float((still[0] - still[2]).max()) > 0.9
    loop = read(bundled("examples_ybr_color.dcm"))
    assert (loop.meta["frame"], loop.meta["num_frames"]) == (15, 30)
    assert not np.array_equal(loop, read(bundled("examples_ybr_color.dcm"), "first"))


def test_spacing_and_region_come_from_the_largest_tissue_region(tmp_path: Path, gray: np.ndarray) -> None:
    regions = [
        region((0, 0, 5, 5), (0.1, 0.1)),
        region((2, 3, 20, 27), (0.02, 0.03)),
        region((0, 0, 23, 29), (0.5, 0.5), PhysicalUnitsXDirection=4),  # seconds
        region((0, 0, 23, 29), (0.7, 0.7), RegionSpatialFormat=2),  # M-mode
        region((0, 0, 23, 29), (0.9, 0.9), RegionDataType=2),  # color flow
    ]
    dataset = ultrasound(gray, "MONOCHROME2", SequenceOfUltrasoundRegions=regions, PixelSpacing=[9, 9])
    image = read(save(dataset, tmp_path / "a"))
    assert get_spacing(image) == pytest.approx((0.3, 0.2))
    assert tuple(image.meta["region"]) == (3, 2, 28, 21)
    # a step of one column is 0.3 mm to the left (LPS +x), one of a row 0.2 mm backward (LPS +y)
    np.testing.assert_allclose(image.affine.numpy(), np.diag([-0.3, -0.2, 1, 1]))


def test_plain_spacing_and_none(tmp_path: Path, gray: np.ndarray) -> None:
    with_spacing = ultrasound(gray, "MONOCHROME2", PixelSpacing=[0.4, 0.5])
    assert get_spacing(read(save(with_spacing, tmp_path / "a"))) == pytest.approx((0.5, 0.4))
    without = read(save(ultrasound(gray, "MONOCHROME2"), tmp_path / "b"))
    assert get_spacing(without) is None
    np.testing.assert_array_equal(without.affine.numpy(), np.eye(4))


def test_region_of_another_matrix_is_not_trusted(tmp_path: Path, gray: np.ndarray, caplog) -> None:
    scaled = ultrasound(gray, "MONOCHROME2", SequenceOfUltrasoundRegions=[region((2, 3, 47, 59), (0.02, 0.02))])
    assert get_spacing(read(save(scaled, tmp_path / "scaled"))) is None
    assert "scaled: its ultrasound region is larger than the image" in caplog.text
    cropped = ultrasound(gray, "MONOCHROME2", SequenceOfUltrasoundRegions=[region((2, 3, 47, 25), (0.02, 0.02))])
    image = read(save(cropped, tmp_path / "cropped"))
    assert get_spacing(image) == pytest.approx((0.2, 0.2))
    assert tuple(image.meta["region"]) == (3, 2, 26, 24)


def test_file_without_preamble_is_read(tmp_path: Path, gray: np.ndarray) -> None:
    whole = save(ultrasound(gray, "MONOCHROME2"), tmp_path / "whole")
    dataset = pydicom.dcmread(whole)
    bare = Dataset({e.tag: e for e in dataset})
    bare.save_as(tmp_path / "bare", implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(read(tmp_path / "bare"), read(whole))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test-SR.dcm", "structured report"),
        ("rtplan.dcm", "radiotherapy plan"),
        ("rtdose.dcm", "dose grid"),
        ("liver_1frame.dcm", "segmentation"),
        ("MR_truncated.dcm", "truncated"),
        ("no_meta.dcm", "not in the format of its name"),
        ("meta_missing_tsyntax.dcm", "missing"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "damaged"),
        ("zipMR.gz", "compressed archive"),
    ],
)
def test_what_is_no_picture_is_refused_with_name_and_reason(name: str, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read(bundled(name))
    assert str(caught.value).startswith(f"{name}: ")
    assert caught.value.remedy in str(caught.value)


def test_dicomdir_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="an index of other files"):
        read(bundled("DICOMDIR"))


def test_multiframe_magnetic_resonance_is_a_volume(tmp_path: Path) -> None:
    path = save(ultrasound(np.zeros((4, 8, 8), dtype=np.uint8), "MONOCHROME2", Modality="MR"), tmp_path / "a")
    with pytest.raises(UnreadableImage, match="does not state the positions of its 4 frames"):
        read(path)
    cases, (failure,) = find_cases(tmp_path)
    assert cases == []
    assert "is a volume of 4 slices" in failure.reason
    assert failure.remedy


def test_other_modalities_are_read_with_a_warning(caplog) -> None:
    assert read(bundled("CT_small.dcm")).shape == (1, 128, 128)
    assert "CT_small.dcm is neither an ultrasound image nor a radiograph (modality CT)" in caplog.text


def test_messages_name_the_file_but_nothing_from_inside(tmp_path: Path, gray: np.ndarray, caplog) -> None:
    dataset = ultrasound(gray, "MONOCHROME2")
    dataset.PixelData = dataset.PixelData[:100]
    folder = tmp_path / "Secret_Patient"
    folder.mkdir()
    with pytest.raises(UnreadableImage, match="study: cannot be decoded") as caught:
        read(save(dataset, folder / "study"))
    assert "Secret" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("length", [0, 1, 100, 131, 132, 200, 400, 700])
def test_truncated_anywhere_is_an_unreadable_image(tmp_path: Path, gray: np.ndarray, length: int) -> None:
    whole = save(ultrasound(gray, "MONOCHROME2"), tmp_path / "whole").read_bytes()
    (tmp_path / "part").write_bytes(whole[:length])
    with pytest.raises(UnreadableImage):
        read(tmp_path / "part")


def test_missing_decoder_is_named(tmp_path: Path, gray: np.ndarray, monkeypatch) -> None:
    (tmp_path / "gdcm").mkdir()
    (tmp_path / "gdcm" / "__init__.py").write_text("raise ImportError")  # as where the plugin is not installed
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    decoder._DECODER.stop()
    with pytest.raises(UnreadableImage, match="python -m pip install python-gdcm"):
        read(bundled("SC_rgb_jpeg_gdcm.dcm"))
    decoder._DECODER.stop()
