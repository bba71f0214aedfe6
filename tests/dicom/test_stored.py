# SPDX-License-Identifier: Apache-2.0
"""The way back to stored values: whatever table the header applies, what is shown again is what was asked for."""

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medcf.data.dicom.lut import rescale, to_display
from medcf.dicom.stored import Scale, picture_scale, volume_scale

RANDOM = np.random.default_rng(0)


def header(bits=12, signed=False, **more):
    made = Dataset()
    made.BitsAllocated, made.BitsStored, made.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    made.PixelRepresentation, made.PhotometricInterpretation = int(signed), "MONOCHROME2"
    for name, value in more.items():
        setattr(made, name, value)
    return made


def table(entries, first=0, bits=8):
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], list(map(int, entries))
    return item


WINDOWS = {
    "a window": {"WindowCenter": "900", "WindowWidth": "700"},
    "a window after rescaling": {
        "WindowCenter": "40",
        "WindowWidth": "400",
        "RescaleSlope": "0.5",
        "RescaleIntercept": "-500",
    },
    "an inverted window": {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": "900", "WindowWidth": "700"},
    "a sigmoid": {"WindowCenter": "900", "WindowWidth": "700", "VOILUTFunction": "SIGMOID"},
    "a table": {"VOILUTSequence": [table(np.sqrt(np.linspace(0, 1, 4096)) * 255)]},
    "no window": {},
    "no window, inverted": {"PhotometricInterpretation": "MONOCHROME1"},
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_shown_again_a_picture_is_what_was_asked_for(kind):
    head, stored = header(**WINDOWS[kind]), RANDOM.integers(0, 4096, (32, 40)).astype(np.uint16)
    stored[0, :2] = 0, 4095  # so that the range of a picture without a window stays
    wanted = to_display(stored, head)[0].astype(np.float64)
    wanted[8:16, 8:16] = RANDOM.uniform(0.1, 0.9, (8, 8))  # a sigmoid reaches neither 0 nor 1
    scale = picture_scale(head, stored)
    codes = scale.nearest(wanted).astype(np.uint16)
    codes[0, :2] = stored[0, :2]
    again = to_display(codes, head)[0]
    step = np.diff(scale.values).max() / 2
    assert step < 0.03
    assert np.abs(again - wanted).max() <= step + 1e-6


def test_black_and_white_are_stored_next_to_the_other_grays():
    head, stored = header(WindowCenter="1000", WindowWidth="100"), np.arange(4096, dtype=np.uint16)[None]
    scale = picture_scale(head, stored)
    dark, bright = scale.nearest(np.array([0.0, 1.0]))
    assert (dark, bright) == (950, 1049)  # and not 0 and 4095, which another window would show as such


def test_padding_is_never_chosen():
    head = header(PixelPaddingValue=0, WindowCenter="100", WindowWidth="200")
    stored = np.array([[0, 10, 200, 4095]], np.uint16)
    assert picture_scale(head, stored).codes.min() > 0


@pytest.mark.parametrize(
    ("slope", "intercept", "signed"), [("1", "-1024", False), ("0.3", "7", False), ("2", "0", True)]
)
def test_units_of_a_volume_come_back_within_half_a_step(slope, intercept, signed):
    head = header(bits=16, signed=signed, RescaleSlope=slope, RescaleIntercept=intercept)
    stored = RANDOM.integers(-500 if signed else 0, 3000, (16, 16)).astype(np.int16 if signed else np.uint16)
    wanted = rescale(stored, head) + RANDOM.uniform(0, 50, (16, 16))
    codes = volume_scale(head, head, stored).nearest(wanted)
    assert np.abs(rescale(codes, head) - wanted).max() <= float(slope) / 2 + 1e-3


def test_values_beyond_the_range_are_stored_as_its_ends():
    scale = Scale.of(np.array([3, 4, 5]), np.array([0.0, 0.5, 1.0]))
    assert scale.nearest(np.array([[-9.0, 9.0]])).tolist() == [[3, 5]]
