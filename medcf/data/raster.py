# SPDX-License-Identifier: Apache-2.0
"""Reads PNG, JPEG, BMP and TIFF.

Spacing in mm comes from a PNG text entry named ``medcf_spacing_mm`` ("row column"), from the datalist, or from a PNG's
pHYs chunk, unless that states a common resolution of screens, printers or plotting libraries: 72, 96, 100, 150 or 300
dots per inch describe a display, not the patient, and are not used as pixel spacing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from medcf.data.image import Pixels, to_unit_range
from medcf.runtime.errors import UnreadableImage

__all__ = ["SPACING_ENTRY", "TIFF_MARKS", "inspect_raster", "read_raster"]

SPACING_ENTRY = "medcf_spacing_mm"
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_DISPLAY_DPI = (
    *(40, 50, 60, 72, 75, 80, 90, 96, 100, 110, 120, 130, 144, 150, 160, 180, 192, 200, 204, 220, 240),
    *(250, 254, 288, 300, 320, 350, 360, 400, 500),
)
_DPI_RANGE = (5.0, 500.0)
_FIRST_TURNED = 5  # first TIFF and EXIF orientation that swaps rows and columns
_TURNS: dict[int, Callable[[NDArray], NDArray]] = {
    2: np.fliplr,
    3: lambda array: array[::-1, ::-1],
    4: np.flipud,
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}

Range = tuple[float, float]


def inspect_raster(path: Path) -> tuple[int, tuple[int, int]]:
    """Return the number of pictures in a file, and their columns and rows, from the header.

    Only TIFF pages as large as the first one count; the second picture in a JPEG (a thumbnail or a gain map, as
    appended by phones) and further frames of an animated PNG do not.

    Raises:
        UnreadableImage: if the header cannot be parsed.
    """
    try:
        if not _is_tiff(path):
            with _opened(path) as picture:
                return 1, picture.size
        with tifffile.TiffFile(path) as file:
            pages = _pages(file)
            return len(pages), (pages[0].imagewidth, pages[0].imagelength)
    except Exception as error:
        raise UnreadableImage(path, f"is damaged ({type(error).__name__})", "Export it again.") from error


def read_raster(path: Path, frame: int = 0) -> Pixels:
    """Read one picture as viewers show it: gray, RGB or palette, with or without transparency, 8 to 32 bits.

    Args:
        path: the file.
        frame: page of a TIFF file.

    Raises:
        UnreadableImage: if the picture is damaged, truncated or of an unsupported kind.
    """
    count, index, read = 1, 0, None
    try:
        if _is_tiff(path):
            with tifffile.TiffFile(path) as file:
                pages = _pages(file)
                count, index, read = len(pages), pages[frame].index, _read_page(pages[frame])
        array, value_range, spacing = (*read, None) if read else _read_picture(path, index)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, EOFError, struct.error and its own errors
        raise UnreadableImage(path, f"cannot be decoded ({type(error).__name__})", "Export it again.") from error
    return Pixels.picture(
        array, spacing, source_format="raster", value_range=value_range, frame=frame, num_frames=count
    )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture without Pillow's own limit; `medcf.data.image.Limits` replaces it."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            yield picture
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) in TIFF_MARKS


def _pages(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """List the pages of a TIFF file that are as large as the first; the others are thumbnails."""
    pages = [page.aspage() for page in file.pages]
    return [page for page in pages if page.shape == pages[0].shape]


def _read_page(page: tifffile.TiffPage) -> tuple[NDArray[np.float32], Range] | None:
    """Read a gray or RGB page, because Pillow misreads some kinds of numbers.

    Returns:
        (H, W) or (H, W, 3) in [0, 1], and the values that map to 0 and 1; None for palettes and other colors, and for
        8-bit numbers that only Pillow can decompress.

    Raises:
        ValueError: if neither library reads it rightly.
    """
    inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    known = (tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
    if page.imagedepth > 1:
        raise ValueError("a volume")
    if page.photometric not in known or page.samplesperpixel not in (1, 3) or page.bitspersample < 8:
        return None
    try:
        values = page.asarray()
    except ValueError:  # compressed in a way that takes a further package
        if page.dtype == np.uint8 or (page.dtype == np.uint16 and not inverted and page.samplesperpixel == 1):
            return None
        raise
    if page.samplesperpixel == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        values = np.moveaxis(values, 0, -1)
    shown, (low, high) = to_unit_range(values)
    if inverted:
        shown, low, high = 1 - shown, high, low
    if shown.ndim == 3 and (shown == shown[..., :1]).all():
        shown = shown[..., 0]
    orientation = page.tags.get("Orientation")
    turn = _TURNS.get(int(orientation.value) if orientation else 1, lambda array: array)
    return np.ascontiguousarray(turn(shown)), (low, high)


def _read_picture(path: Path, index: int) -> tuple[NDArray[np.float32], Range, tuple[float, float] | None]:
    """Read a picture with Pillow and apply its EXIF orientation; Pillow does this itself for TIFF."""
    with _opened(path) as picture:
        if index:
            picture.seek(index)
        picture.load()
        spacing = _stated_spacing(picture)
        shown = picture
        if picture.format != "TIFF":
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= _FIRST_TURNED
            spacing = spacing[::-1] if turned and spacing else spacing
            shown = ImageOps.exif_transpose(picture)
        array, top = _decode(shown)
    return array, (0.0, top), spacing


def _decode(picture: Image.Image) -> tuple[NDArray[np.float32], float]:
    """Return the pixels in [0, 1] and the stored value that maps to 1."""
    if picture.mode == "1":
        return np.asarray(picture, dtype=np.float32), 1.0
    if picture.mode == "F" or picture.mode.startswith("I"):
        values, (_, top) = to_unit_range(np.asarray(picture))
        return values, top
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        # what a viewer shows on a black background
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        rgb = np.asarray(Image.alpha_composite(ground, layered).convert("RGB"))
    elif picture.mode == "L":
        return np.asarray(picture, dtype=np.float32) / 255.0, 255.0
    else:
        rgb = np.asarray(picture.convert("RGB"))
    if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all():
        rgb = rgb[..., 0]
    return rgb.astype(np.float32) / 255.0, 255.0


def _stated_spacing(picture: Image.Image) -> tuple[float, float] | None:
    text = picture.info.get(SPACING_ENTRY)
    if not isinstance(text, str):
        return _phys_spacing(picture)
    values = [float(v) for v in text.replace(",", " ").split()]
    row, column = values if len(values) == 2 else values * 2
    return (row, column) if row > 0 and column > 0 else None


def _phys_spacing(picture: Image.Image) -> tuple[float, float] | None:
    """Return the spacing from a PNG's pHYs chunk, unless it is a common resolution of displays and printers."""
    dpi = picture.info.get("dpi")
    if picture.format != "PNG" or not isinstance(dpi, tuple) or len(dpi) != 2:
        return None
    across, down = float(dpi[0]), float(dpi[1])
    for value in (across, down):
        if not _DPI_RANGE[0] <= value <= _DPI_RANGE[1]:
            return None
        # pHYs counts whole pixels per meter, so a stated resolution is recovered within 0.03 dots per inch
        if any(abs(value - usual) < 0.05 for usual in _DISPLAY_DPI):
            return None
    return 25.4 / down, 25.4 / across
