# SPDX-License-Identifier: Apache-2.0
"""What a viewer shows of odd headers: tables that lie about their bits, negative slopes, padding, empty attributes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_voi_lut

from medcf.data.dicom.lut import InvalidHeader, padding_of, rescale, to_display

RAMP = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)


def header(bits: int = 12, signed: bool = False, photometric: str = "MONOCHROME2", **fields: object) -> Dataset:
    dataset = Dataset()
    dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation = 8 if bits <= 8 else 16, bits, int(signed)
    dataset.PhotometricInterpretation = photometric
    for name, value in fields.items():
        setattr(dataset, name, value)
    return dataset


def table(entries: np.ndarray, first: int, bits: int, data: object = None, vr: str = "OW") -> Dataset:
    """An item of a sequence of lookup tables; ``data`` overrides how the entries are written."""
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries) % 2**16, first % 2**16, bits])
    item.add_new(0x00283006, vr, entries.astype("<u2").tobytes() if data is None else data)
    return item


@pytest.mark.parametrize("claimed", [10, 12, 14, 16])
@pytest.mark.parametrize("as_words", [False, True])
def test_a_voi_table_has_the_range_of_its_entries_whatever_bits_it_claims(claimed, as_words):
    entries = np.arange(4096)
    item = table(entries, 0, claimed, entries.tolist() if as_words else None, "US" if as_words else "OW")
    shown, _ = to_display(RAMP, header(VOILUTSequence=[item]))
    np.testing.assert_allclose(shown, RAMP / 4095, atol=1e-6)


def test_a_sound_voi_table_is_applied_as_pydicom_does():
    entries = (4095 * np.linspace(0, 1, 4096) ** 2).astype(np.uint16)
    dataset = header(VOILUTSequence=[table(entries, 0, 12)])
    dataset["VOILUTSequence"].value[0]["LUTData"].VR = "US"
    dataset.VOILUTSequence[0].LUTData = entries.tolist()
    shown, _ = to_display(RAMP, dataset)
    np.testing.assert_allclose(shown, apply_voi_lut(RAMP, dataset) / 4095, atol=1e-6)


@pytest.mark.parametrize("as_words", [False, True])
def test_entries_of_8_bits_may_be_packed_two_to_a_word(as_words):
    entries = (np.arange(4096) // 16).astype(np.uint8)
    packed = entries.tobytes()
    data = list(struct.unpack(f"<{len(packed) // 2}H", packed)) if as_words else packed
    item = table(entries, 0, 8, data, "US" if as_words else "OW")
    shown, _ = to_display(RAMP, header(VOILUTSequence=[item]))
    np.testing.assert_allclose(shown, RAMP // 16 / 255, atol=1e-6)


def test_the_first_value_of_signed_pixels_may_be_written_as_unsigned():
    stored = np.arange(-1000, 1000, 250, dtype=np.int16).reshape(2, 4)
    item = table(np.arange(2000), -1000, 11)
    shown, _ = to_display(stored, header(16, signed=True, VOILUTSequence=[item]))
    np.testing.assert_allclose(shown, (stored + 1000) / 2047, atol=1e-6)


@pytest.mark.parametrize("empty", [Dataset(), table(np.array([1]), 0, 12, b"")])
def test_an_empty_table_gives_way_to_the_window(empty):
    window = {"WindowCenter": 2048, "WindowWidth": 1000}
    with_table, _ = to_display(RAMP, header(VOILUTSequence=[empty], **window))
    plain, ends = to_display(RAMP, header(**window))
    np.testing.assert_array_equal(with_table, plain)
    assert ends == (1548, 2548)
    np.testing.assert_allclose(plain, np.clip((RAMP - 2047.5) / 999 + 0.5, 0, 1), atol=1e-6)


@pytest.mark.parametrize("bits", [8, 12])
def test_a_negative_slope_turns_bright_into_dark(bits):
    stored = (RAMP // 16 if bits == 8 else RAMP).astype(np.uint8 if bits == 8 else np.uint16)
    top = 2**bits - 1
    inverted, _ = to_display(stored, header(bits, RescaleSlope=-1, RescaleIntercept=top))
    twin, _ = to_display((top - stored).astype(stored.dtype), header(bits))
    np.testing.assert_allclose(inverted, twin, atol=1e-6)
    assert inverted[0, 0] > inverted[-1, -1]


def test_a_slope_of_zero_and_an_empty_modality_table_are_said():
    with pytest.raises(InvalidHeader, match="RescaleSlope is 0"):
        rescale(RAMP, header(RescaleSlope=0, RescaleIntercept=5))
    with pytest.raises(InvalidHeader, match="lookup table is empty"):
        rescale(RAMP, header(ModalityLUTSequence=[Dataset()]))


def test_a_modality_table_maps_before_the_window():
    entries = np.arange(4096)[::-1]
    dataset = header(ModalityLUTSequence=[table(entries, 0, 16)], WindowCenter=2048, WindowWidth=4096)
    shown, _ = to_display(RAMP, dataset)
    expected, _ = to_display((4095 - RAMP).astype(np.uint16), header(WindowCenter=2048, WindowWidth=4096))
    np.testing.assert_allclose(shown, expected, atol=1e-6)


@pytest.mark.parametrize(("photometric", "background"), [("MONOCHROME2", 0.0), ("MONOCHROME1", 0.0)])
def test_padding_is_background_and_counts_in_no_statistic(photometric, background):
    stored = RAMP.astype(np.int16) - 1000
    padded = stored.copy()
    padded[0, :4] = -2000
    dataset = header(16, signed=True, photometric=photometric)
    dataset.add_new(0x00280120, "US", 2**16 - 2000)  # a signed value, written as unsigned
    shown, ends = to_display(padded, dataset)
    inside = np.ones(stored.shape, bool)
    inside[0, :4] = False
    np.testing.assert_array_equal(padding_of(padded, dataset), ~inside)
    assert shown[0, 0] == background
    assert sorted(ends) == [stored[inside].min(), stored[inside].max()]


def test_a_range_of_padding_is_padding_and_an_image_of_nothing_else_is_black():
    stored = np.array([[-3024, -3000], [0, 100]], np.int16)
    dataset = header(16, signed=True)
    dataset.add_new(0x00280120, "SS", -3024)
    dataset.add_new(0x00280121, "SS", -2000)
    np.testing.assert_array_equal(padding_of(stored, dataset), [[True, True], [False, False]])
    assert padding_of(np.full((2, 2), 7, np.int16), dataset) is None
    assert to_display(np.full((2, 2), -3024, np.int16), dataset)[0].max() == 0


def palette(entries: np.ndarray, bits: int, data: bytes) -> Dataset:
    dataset = header(8, photometric="PALETTE COLOR", SamplesPerPixel=1)
    for name in ("Red", "Green", "Blue"):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [len(entries), 0, bits])
        setattr(dataset, f"{name}PaletteColorLookupTableData", data)
    return dataset


@pytest.mark.parametrize("claimed", [8, 16])
@pytest.mark.parametrize("packed", [False, True])
def test_a_palette_of_8_bits_is_read_by_what_it_holds(claimed, packed):
    entries = np.arange(256)[::-1].astype(np.uint8)
    dataset = palette(entries, claimed, entries.tobytes() if packed else entries.astype("<u2").tobytes())
    stored = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    shown, _ = to_display(stored, dataset)
    np.testing.assert_allclose(shown, (255 - stored) / 255, atol=1e-6)


def test_a_palette_of_16_bits_is_applied_as_pydicom_does():
    entries = (np.linspace(0, 1, 256) ** 2 * 65535).astype("<u2")
    dataset = palette(entries, 16, entries.tobytes())
    stored = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    shown, _ = to_display(stored, dataset)
    np.testing.assert_allclose(shown, apply_color_lut(stored, dataset)[..., 0] / 65535, atol=1e-6)
