# SPDX-License-Identifier: Apache-2.0
"""Two sites: their scanners' pulse, gain and gray map, what part of the sector they show, and what they write on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medcf.phantoms.shapes import Array
from medcf.phantoms.ultrasound import Scanner

__all__ = ["SITES", "Layout", "Machine", "Site", "pixel_centers", "writing"]

_CANVAS = 448  # pixels per side on which text is drawn, as on a screen, before it is shrunk to the picture
_BEAMS = 120  # across a sector: the unit of a pulse's width
_SETTINGS = ("gain", "dynamic_range", "gamma", "tgc", "axial", "lateral", "bone", "haze")
_Range = tuple[float, float]

#: Radius of curvature in mm and half the opening angle in degrees, for probes that are not a site's own.
_PROBES: dict[str, tuple[_Range, _Range]] = {
    "endocavity": ((10.0, 13.0), (56.0, 68.0)),
    "linear": ((380.0, 420.0), (3.2, 3.8)),
}


@dataclass(frozen=True)
class Layout:
    """Where a picture shows what.

    Attributes:
        apex: image position (row, column) in mm of the center of the probe's face; the anatomy is near (0, 0).
        depth: imaged depth in mm.
        center: image position (row, column) in mm of the picture's center.
        side: height of the picture in mm.
        radius: radius of curvature of the probe in mm.
        half_angle: half the opening angle of the sector in radians.
    """

    apex: tuple[float, float]
    depth: float
    center: tuple[float, float]
    side: float
    radius: float
    half_angle: float


@dataclass(frozen=True)
class Machine:
    """A scanner as it is set for one subject.

    Attributes:
        values: quantities of `Scanner` by name, except ``depth``, and ``below``, mm imaged behind the anatomy.
        looks: see `Scanner`.
        whole: share of planes of which the whole sector is shown; the others are enlarged.
        captions: "column" for a gray scale and lines of text, "mark" for the maker's mark, "none".
        number: shown in its text.
    """

    values: dict[str, float]
    looks: int
    whole: float
    captions: str
    number: int

    def scanner(self, layout: Layout, beams: int) -> Scanner:
        """Return the scanner with the probe and depth of a layout, and a pulse as wide with any number of beams."""
        used = {name: value for name, value in self.values.items() if name in _SETTINGS}
        used["lateral"] *= beams / _BEAMS
        probe = {"radius": layout.radius, "half_angle": layout.half_angle, "depth": layout.depth}
        return Scanner(**probe, **used, looks=self.looks)

    def layout(self, half: tuple[float, float], cover: float, probe: str, framing: float, zoom: float) -> Layout:
        """Fit a picture around the anatomy.

        Args:
            half: half the anatomy's height and width in mm.
            cover: mm between the probe and the anatomy.
            probe: "curved", "endocavity" or "linear".
            framing: from 0 to 1; below ``whole`` the whole sector is shown.
            zoom: relative size of the anatomy.

        Returns:
            The layout.
        """
        radius, angle = self.values["radius"], self.values["half_angle"]
        if probe in _PROBES:
            share = self.values["close"]
            (r0, r1), (a0, a1) = _PROBES[probe]
            radius, angle = r0 + share * (r1 - r0), float(np.deg2rad(a0 + share * (a1 - a0)))
        apex = (-half[0] - cover, 0.0)
        depth = cover + 2.0 * half[0] + self.values["below"] * (0.25 if probe != "curved" else 1.0)
        top, bottom = apex[0] - radius * (1.0 - np.cos(angle)), apex[0] + depth
        width = 2.0 * (radius + depth) * float(np.sin(angle))
        if framing < self.whole or probe != "curved":
            # Wide sectors are cut at the sides by many pictures.
            side = max(bottom - top, min(width, (bottom - top) * (1.0 + 0.35 * self.values["close"]))) * 1.03
            return Layout(apex, depth, (float(top + bottom) / 2, 0.0), float(side), radius, angle)
        side = 2.0 * max(half) * (1.06 + 0.36 * self.values["close"]) / zoom
        return Layout(apex, depth, (0.0, 0.0), float(side), radius, angle)


@dataclass(frozen=True)
class Site:
    """What the machines of a site have in common: ranges from which each subject's settings are drawn.

    Attributes:
        name: "A" or "B".
        ranges: lowest and highest value of each quantity in `Machine.values`; ``half_angle`` in degrees.
        looks: views that its scanners average.
        whole: share of planes of which the whole sector is shown.
        captions: styles of text and their probabilities.
    """

    name: str
    ranges: dict[str, _Range]
    looks: int
    whole: float
    captions: dict[str, float]

    def machine(self, seed: int) -> Machine:
        """Draw the settings for a subject."""
        number = list(SITES).index(self.name)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x517E, int(seed), number])))
        values = {name: float(rng.uniform(*limits)) for name, limits in self.ranges.items()}
        values["half_angle"] = float(np.deg2rad(values["half_angle"]))
        style = tuple(self.captions)[int(rng.choice(len(self.captions), p=tuple(self.captions.values())))]
        return Machine(values, self.looks, self.whole, style, int(rng.integers(1000)))


#: The sites: A enlarges the anatomy and has a fine, dark picture; B shows whole sectors, brighter, coarser and hazier.
SITES: dict[str, Site] = {
    "A": Site(
        "A",
        {
            "radius": (40.0, 58.0),
            "half_angle": (27.0, 37.0),
            "gain": (-2.5, 4.0),
            "dynamic_range": (54.0, 64.0),
            "gamma": (1.25, 1.7),
            "tgc": (-0.02, 0.09),
            "axial": (0.30, 0.45),
            "lateral": (0.6, 0.85),
            "bone": (1.0, 1.6),
            "haze": (0.005, 0.012),
            "below": (6.0, 30.0),
            "close": (0.0, 1.0),
        },
        2,
        0.4,
        {"column": 0.75, "none": 0.25},
    ),
    "B": Site(
        "B",
        {
            "radius": (44.0, 66.0),
            "half_angle": (29.0, 37.0),
            "gain": (-5.0, 4.0),
            "dynamic_range": (60.0, 76.0),
            "gamma": (1.25, 1.75),
            "tgc": (0.0, 0.12),
            "axial": (0.44, 0.70),
            "lateral": (0.8, 1.25),
            "bone": (0.7, 1.2),
            "haze": (0.006, 0.020),
            "below": (10.0, 45.0),
            "close": (0.0, 1.0),
        },
        3,
        0.55,
        {"mark": 0.4, "none": 0.6},
    ),
}


@lru_cache(maxsize=512)
def writing(style: str, number: int, size: tuple[int, int]) -> Array:
    """Return what a machine writes over a picture.

    Args:
        style: see `Machine`.
        number: number that the text shows.
        size: rows and columns of the picture.

    Returns:
        Gray values in [0, 1], shrunk from a screen's resolution; a picture shows the brighter of the two.
    """
    side = max(_CANVAS, *size)
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    draw.fontmode = "1"  # no antialiasing: identical pixels with every build of FreeType
    font = ImageFont.load_default_imagefont()
    if style == "column":
        lines = [
            f"{number % 26 + 14}Hz",
            f"{number / 100 + 9:.1f}cm",
            f"TIs 0.{number % 9}",
            f"{number % 40 + 20}",
            "OB",
        ]
        for index, text in enumerate(lines):
            draw.text((side - 46, 10 + 11 * index), text, fill=200, font=font)
        for row in range(side // 10, side // 2):
            draw.line((5, row, 11, row), fill=int(255 * (1.0 - (row - side / 10) / (0.4 * side))))
        for index in range(12):
            row = side // 10 + index * side // 13
            draw.line((15, row, 18 if index % 5 else 21, row), fill=150)
    elif style == "mark":
        middle = side * (42 + number % 12) // 100
        draw.rectangle((middle, 6, middle + 13, 17), fill=210)
        draw.text((middle + 4, 6), "M", fill=0, font=font)
    shrunk = canvas.resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(shrunk, np.float64) / 255.0


def pixel_centers(layout: Layout, spacing: float, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return rows and columns in mm of a picture's pixel centers."""
    row = layout.center[0] + (np.arange(size[0]) + 0.5 - size[0] / 2) * spacing
    col = layout.center[1] + (np.arange(size[1]) + 0.5 - size[1] / 2) * spacing
    grid_row, grid_col = np.meshgrid(row, col, indexing="ij")
    return grid_row, grid_col
