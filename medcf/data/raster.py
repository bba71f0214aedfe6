# SPDX-License-Identifier: Apache-2.0
"""Reads PNG, JPEG, BMP and TIFF.

Millimeters come from a PNG text entry named ``medcf_spacing_mm`` ("row column"), from the datalist, or from a PNG's
pHYs chunk if that names a resolution no screen, printer or plotting library uses: 72, 96, 100, 150 or 300 dots per inch
describe a display, not the patient, and are not taken for a pixel spacing.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medcf.data.image import Pixels, picture_affine
from medcf.runtime.errors import UnreadableImage

__all__ = ["SPACING_ENTRY", "read_raster"]

SPACING_ENTRY = "medcf_spacing_mm"
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_DISPLAY_DPI = (
    *(40, 50, 60, 72, 75, 80, 90, 96, 100, 110, 120, 130, 144, 150, 160, 180, 192, 200, 204, 220, 240),
    *(250, 254, 288, 300, 320, 350, 360, 400, 500),
)
_DPI_RANGE = (5.0, 500.0)


def count_raster_frames(path: Path) -> int:
    """Number of pages of a TIFF, 1 for the other formats.

    Raises:
        UnreadableImage: if the header cannot be parsed.
    """
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            return int(getattr(picture, "n_frames", 1))
    except Exception as error:
        raise UnreadableImage(path, f"is damaged ({type(error).__name__})", "Export it again.") from error


def read_raster(path: Path, frame: int = 0) -> Pixels:
    """Read one picture: greyscale, RGB, palette, with or without transparency, 8 or 16 bits.

    Args:
        path: the file.
        frame: page of a TIFF.

    Raises:
        UnreadableImage: if the picture is damaged, truncated or of an unusual kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as picture:
                num_frames = int(getattr(picture, "n_frames", 1))
                if num_frames > 1:
                    picture.seek(frame)
                picture.load()
                array, top = _decode(picture)
                spacing = _stated_spacing(picture)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, EOFError, struct.error and its own
        raise UnreadableImage(path, f"cannot be decoded ({type(error).__name__})", "Export it again.") from error
    return Pixels(
        array=array[None].swapaxes(1, 2) if array.ndim == 2 else array.transpose(2, 1, 0),
        affine=None if spacing is None else picture_affine(spacing[::-1]),
        source_format="raster",
        value_range=(0.0, top),
        frame=frame,
        num_frames=num_frames,
    )


def _decode(picture: Image.Image) -> tuple[NDArray[np.float32], float]:
    """Return the pixels in [0, 1] and the stored value that became 1."""
    if picture.mode == "1":
        return np.asarray(picture, dtype=np.float32), 1.0
    if picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
        top = max(float(values.max()), 1.0)
        return np.clip(values / top, 0, 1), top
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.float32)
        # 10- and 12-bit detectors are stored in 16 bits without a scale
        top = next(float(2**bits - 1) for bits in (8, 10, 12, 14, 16, 32) if values.max() < 2**bits)
        return np.clip(values / top, 0, 1), top
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
    """Spacing from a PNG's pHYs chunk, unless it is one of the usual resolutions of displays and printers."""
    dpi = picture.info.get("dpi")
    if picture.format != "PNG" or not isinstance(dpi, tuple) or len(dpi) != 2:
        return None
    across, down = float(dpi[0]), float(dpi[1])
    for value in (across, down):
        if not _DPI_RANGE[0] <= value <= _DPI_RANGE[1]:
            return None
        # pHYs counts whole pixels per metre, so a stated resolution comes back within 0.03 dots per inch
        if any(abs(value - usual) < 0.05 for usual in _DISPLAY_DPI):
            return None
    return 25.4 / down, 25.4 / across
