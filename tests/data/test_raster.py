# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG and TIFF as viewers show them: every orientation, every kind of number, the first picture of several."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from medcf.data import find_cases, get_spacing, read
from medcf.data.raster import inspect_raster
from medcf.runtime.errors import UnreadableImage

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
RAMP[:10] = 255 - RAMP[:10]


def shown(path) -> np.ndarray:
    """Rows and columns, as a viewer shows them."""
    return read(path).numpy()[0].T


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[274] = orientation
    return data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_picture_is_turned_as_exif_asks(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RAMP).save(path, exif=exif(orientation), **({"quality": 100} if suffix == "jpg" else {}))
    plain = Image.fromarray(RAMP)
    plain.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain)) / 255
    tolerance = 0.06 if suffix == "jpg" else 1e-6
    np.testing.assert_allclose(shown(path), expected, atol=tolerance)


def test_the_spacing_of_a_turned_picture_is_turned_with_it(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("medcf_spacing_mm", "0.5 0.25")  # between rows, between columns
    Image.fromarray(RAMP).save(tmp_path / "a.png", pnginfo=info, exif=exif(6))
    image = read(tmp_path / "a.png")
    assert image.shape == (1, 48, 64)
    assert get_spacing(image) == (0.5, 0.25)  # between columns, between rows


def test_the_first_picture_of_a_file_is_read(tmp_path):
    first, second = Image.fromarray(RAMP), Image.fromarray(np.zeros((8, 8), np.uint8))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second], quality=100)
    first.save(tmp_path / "moving.png", save_all=True, append_images=[Image.fromarray(255 - RAMP)])
    cases, failures = find_cases(tmp_path, frame="all")
    assert (len(cases), failures) == (2, [])
    for case in cases:
        np.testing.assert_allclose(shown(case), RAMP / 255, atol=0.03)


def test_pages_of_a_tiff_are_frames_and_a_thumbnail_is_not(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RAMP)
        file.write(RAMP[::4, ::4], subfiletype=1)
        file.write(255 - RAMP)
    assert inspect_raster(tmp_path / "a.tif") == (2, (64, 48))
    np.testing.assert_allclose(read(tmp_path / "a.tif", 1).numpy()[0].T, (255 - RAMP) / 255, atol=1e-6)


WIDE = RAMP.astype(np.float64)
STRETCHED = (WIDE - WIDE.min()) / (WIDE.max() - WIDE.min())
KINDS = {
    "8 bits": (RAMP, {}, RAMP / 255),
    "8 bits, white is zero": (RAMP, {"photometric": "miniswhite"}, 1 - RAMP / 255),
    "16 bits": (RAMP.astype("u2") * 257, {}, RAMP / 255),
    "16 bits, big endian": (RAMP.astype("u2") * 257, {"byteorder": ">"}, RAMP / 255),
    "16 bits, white is zero": (RAMP.astype("u2") * 257, {"photometric": "miniswhite"}, 1 - RAMP / 255),
    "12 bits in 16": (RAMP.astype("u2") * 16, {}, RAMP * 16.0 / 4095),
    "32 bits": (RAMP.astype("u4") * 16843009, {}, RAMP / 255),
    "32 bits, white is zero": (RAMP.astype("u4") * 16843009, {"photometric": "miniswhite"}, 1 - RAMP / 255),
    "signed 8 bits": ((RAMP // 2).astype("i1") - 60, {}, (RAMP // 2) / (RAMP // 2).max()),
    "signed 16 bits": (RAMP.astype("i2") * 100 - 12800, {}, STRETCHED),
    "signed 32 bits": (RAMP.astype("i4") * 1000 - 128000, {}, STRETCHED),
    "Hounsfield units": ((WIDE * 10 - 1000).astype("f4"), {}, STRETCHED),
    "-1 to 1": ((WIDE / 128 - 1).astype("f4"), {}, STRETCHED),
    "0 to 1": ((WIDE / 255).astype("f4"), {}, RAMP / 255),
    "half precision": ((WIDE / 128 - 1).astype("f2"), {}, STRETCHED),
    "double precision": (WIDE / 128 - 1, {}, STRETCHED),
    "BigTIFF": (RAMP, {"bigtiff": True}, RAMP / 255),
    "BigTIFF, big endian": (RAMP.astype("u2") * 257, {"bigtiff": True, "byteorder": ">"}, RAMP / 255),
    "deflated": (RAMP.astype("i2") * 100 - 12800, {"compression": "zlib"}, STRETCHED),
    "colored": (np.stack([RAMP] * 3, -1), {"photometric": "rgb"}, RAMP / 255),
    "tiled": (RAMP.astype("u2") * 257, {"tile": (16, 16)}, RAMP / 255),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tiff_is_read(tmp_path, kind):
    array, options, expected = KINDS[kind]
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    (case,), _ = find_cases(tmp_path)
    np.testing.assert_allclose(shown(case), expected, atol=2e-3 if kind == "half precision" else 1e-5)


def test_a_compression_that_only_pillow_reads(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_allclose(shown(tmp_path / "a.tif"), RAMP / 255, atol=1e-6)


def test_what_neither_library_reads_rightly_is_refused(tmp_path):
    wide = RAMP.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_allclose(shown(tmp_path / "a.tif"), RAMP / 255, atol=1e-6)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        offset = file.pages[0].tags["PhotometricInterpretation"].valueoffset
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    raw[offset : offset + 2] = b"\0\0"  # white is zero, which Pillow forgets in 16 bits
    (tmp_path / "a.tif").write_bytes(bytes(raw))
    with pytest.raises(UnreadableImage, match=r"a\.tif: cannot be decoded"):
        read(tmp_path / "a.tif")


def test_colors_of_16_bits_in_separate_planes(tmp_path):
    planes = np.stack([RAMP.astype(np.uint16) * 257, RAMP.astype(np.uint16), RAMP.astype(np.uint16) * 100])
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_allclose(read(tmp_path / "a.tif").numpy(), planes.swapaxes(1, 2) / 65535, atol=1e-6)
