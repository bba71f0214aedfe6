# SPDX-License-Identifier: Apache-2.0
"""Overlays are found and filled in, and echoes are left alone; measured on phantoms, where the truth is known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from medcf.phantoms import FetalHead
from medcf.phantoms.head.overlays import burn_in
from medcf.transforms import RemoveOverlays, RemoveOverlaysd

COUNT = 12


@cache
def phantoms() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Clean image (H, W), and the same with gray and with colored overlays, (1, H, W) and (3, H, W), in [0, 1]."""
    found = []
    for seed in range(COUNT):
        head = FetalHead(3_500_000 + seed)
        sample = head.render(head.sample_pose(np.random.default_rng(seed), seed % 2), seed=seed)
        gray = burn_in(sample)[None].astype(np.float32) / 255
        color = np.moveaxis(burn_in(sample, color=True), -1, 0).astype(np.float32) / 255
        found.append((sample.image, gray, color))
    return found


def large_screen() -> tuple[np.ndarray, np.ndarray]:
    """A 600 x 800 screen: clean, and with header, text beside and inside, a dotted line and a depth scale."""
    image = np.asarray(Image.fromarray(np.uint8(phantoms()[1][0] * 255)).resize((600, 480), Image.Resampling.BICUBIC))
    clean = np.zeros((600, 800), dtype=np.uint8)
    clean[90:570, 110:710] = image
    canvas = Image.fromarray(clean)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(16)
    draw.rectangle((0, 0, 799, 40), fill=60)
    draw.text((10, 10), "CLINIC 12  2026/01/01", fill=255, font=font)
    draw.text((10, 120), "Gn 60", fill=255, font=font)
    draw.text((420, 300), "BPD 8.1 cm", fill=220, font=font)
    for step in range(0, 160, 8):
        draw.rectangle((300 + step, 330 + step // 3, 301 + step, 331 + step // 3), fill=255)
    for row in range(100, 560, 40):
        draw.line((780, row, 790, row), fill=180, width=2)
    return clean.astype(np.float32) / 255, np.asarray(canvas, dtype=np.float32) / 255


def psnr(image: np.ndarray, clean: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((image - clean) ** 2)))


def columns_first(image: np.ndarray) -> torch.Tensor:
    """(C, X, Y) of (H, W) or (C, H, W)."""
    planes = image[None] if image.ndim == 2 else image
    return torch.from_numpy(np.ascontiguousarray(planes.swapaxes(1, 2)))


def rows_first(image: torch.Tensor) -> np.ndarray:
    return image.numpy()[0].T


def mask_of(image: MetaTensor) -> np.ndarray:
    return rows_first(image.meta["overlay_mask"])


@pytest.mark.parametrize("kind", [1, 2], ids=["gray", "colored"])
def test_overlays_are_found_and_the_clean_image_comes_back(kind: int) -> None:
    remove = RemoveOverlays()
    true_positives = false_positives = false_negatives = 0
    for case in phantoms():
        clean, burned = case[0], case[kind]
        result = remove(columns_first(burned))
        luminance = burned[0] if kind == 1 else np.tensordot([0.299, 0.587, 0.114], burned, 1)
        truth = np.abs(burned - clean).max(axis=0) > 0.05
        mask = mask_of(result)
        true_positives += int((mask & truth).sum())
        false_positives += int((mask & ~truth).sum())
        false_negatives += int((~mask & truth).sum())
        assert psnr(rows_first(result), clean) > psnr(luminance, clean) + 10
        assert psnr(rows_first(result), clean) > 33
    assert true_positives / (true_positives + false_negatives) > 0.95
    assert true_positives / (true_positives + false_positives) > 0.9


def test_clean_images_are_left_alone() -> None:
    remove = RemoveOverlays()
    fractions = []
    for clean, _, _ in phantoms():
        result = remove(columns_first(clean))
        fractions.append(result.meta["overlay_fraction"])
        untouched = ~mask_of(result)
        np.testing.assert_array_equal(rows_first(result)[untouched], clean[untouched])
    assert np.mean(fractions) < 0.002
    assert max(fractions) < 0.01


@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_speckle_of_any_grain_is_no_overlay(blur: float) -> None:
    rng = np.random.default_rng(0)
    field = rng.normal(size=(2, 300, 400))
    amplitude = np.hypot(*(ndimage.gaussian_filter(part, (1 + blur, 2 + blur)) for part in field))
    speckle = np.clip(0.35 * amplitude / amplitude.mean(), 0, 1).astype(np.float32)
    assert RemoveOverlays()(columns_first(speckle)).meta["overlay_fraction"] < 0.001


def test_bright_thick_arc_is_no_overlay() -> None:
    row, column = np.mgrid[:256, :320]
    radius = np.hypot(row - 128, (column - 160) / 1.3)
    skull = np.clip(0.15 + 0.95 * np.exp(-(((radius - 90) / 2.2) ** 2)), 0, 1).astype(np.float32)
    result = RemoveOverlays()(columns_first(skull))
    assert result.meta["overlay_fraction"] == 0
    np.testing.assert_array_equal(rows_first(result), skull)


def test_large_screen_is_cleaned_inside_and_beside_the_picture() -> None:
    clean, burned = large_screen()
    result = RemoveOverlays()(columns_first(burned))
    truth = np.abs(burned - clean) > 0.1
    assert (mask_of(result) & truth).sum() / truth.sum() > 0.95
    assert psnr(rows_first(result), clean) > psnr(burned, clean) + 12
    assert psnr(rows_first(result), clean) > 35


def test_region_of_the_header_bounds_the_picture() -> None:
    clean, burned = large_screen()
    meta = {"region": (110, 90, 710, 570)}
    result = RemoveOverlays()(MetaTensor(columns_first(burned), meta=meta))
    beside = np.ones_like(clean, dtype=bool)
    beside[90:570, 110:710] = False
    assert float(rows_first(result)[beside].max()) == 0


def test_tint_of_the_whole_image_is_no_mark() -> None:
    clean, _, color = phantoms()[0]
    sepia = np.stack([clean, 0.85 * clean, 0.6 * clean])
    assert RemoveOverlays()(columns_first(sepia)).meta["overlay_fraction"] < 0.01
    marked = sepia.copy()
    marked[:, 60:64, 70:90] = np.array([0.0, 0.9, 0.2], dtype=np.float32)[:, None, None]
    mask = mask_of(RemoveOverlays()(columns_first(marked)))
    assert mask[60:64, 70:90].all()
    assert mask.sum() < 4 * 20 * 2
    assert color.shape[0] == 3


def test_colored_mark_is_filled_from_around() -> None:
    image = torch.full((3, 100, 120), 0.4)
    image[:, 40:44, 30:90] = torch.tensor([1.0, 0.9, 0.1])[:, None, None]
    np.testing.assert_allclose(RemoveOverlays()(image).numpy(), 0.4, atol=1e-4)


def test_geometry_and_other_meta_are_kept() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(phantoms()[0][1]), affine=affine, meta={"filename_or_obj": "a.png"})
    data = RemoveOverlaysd(keys="image")({"image": image, "label": 1})
    assert data["label"] == 1
    assert data["image"].meta["filename_or_obj"] == "a.png"
    torch.testing.assert_close(data["image"].affine, affine)
    torch.testing.assert_close(image.as_tensor(), torch.from_numpy(phantoms()[0][1]))  # the input is not changed


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (3, 3, 3), (1, 1, 200)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_tiny_and_uniform_images_do_not_break_it(shape: tuple[int, ...], value: float) -> None:
    assert RemoveOverlays()(torch.full(shape, value)).shape == (1, *shape[1:])


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.zeros(2, 8, 8), "image must"),
        (torch.zeros(8), "image must"),
        (torch.full((1, 8, 8), torch.nan), "not finite"),
    ],
)
def test_wrong_shape_or_values_are_refused(image: torch.Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RemoveOverlays()(image)


def test_the_range_of_the_values_does_not_matter() -> None:
    image = torch.from_numpy(phantoms()[0][1]).clone()
    image[0, 0, 0], image[0, 0, 1] = 0.0, 1.0
    expected = RemoveOverlays()(image)
    assert expected.meta["overlay_mask"].any()
    for other in (255 * image, 900 * image - 100):
        cleaned = RemoveOverlays()(other)
        assert torch.equal(cleaned.meta["overlay_mask"], expected.meta["overlay_mask"])
        torch.testing.assert_close(cleaned.as_tensor(), expected.as_tensor(), atol=1e-5, rtol=0)
    assert torch.isfinite(RemoveOverlays()(-torch.ones(1, 8, 8))).all()


def test_missing_key_is_an_error_unless_allowed() -> None:
    with pytest.raises(KeyError, match="image"):
        RemoveOverlaysd(keys="image")({"label": 1})
    assert RemoveOverlaysd(keys="image", allow_missing_keys=True)({"label": 1}) == {"label": 1}


@pytest.mark.parametrize("color", [False, True])
def test_a_letter_on_a_faint_echo_beside_the_picture_leaves_no_black_shape(color: bool) -> None:
    """Such a shape can be read after windowing, though it is nearly as dark as what is around it."""
    for clean, *marked in phantoms():
        ink = np.abs(marked[0][0] - clean) > 0.02
        ink[12:-13] = False  # text stands at the top and at the bottom
        faint = ink & (clean > 0.03)
        found = RemoveOverlays()(columns_first(marked[color]))[0].numpy().T
        assert faint.sum() > 30
        assert (found[faint] < 0.01).mean() < 0.02


@pytest.mark.parametrize("gray", [70, 140, 255])
def test_nothing_of_a_name_on_black_is_left_for_a_viewers_window(gray: int) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:240, :320]
    fan = (rows > 60) & (np.abs(columns - 160) < 0.6 * rows)
    picture = np.where(fan, rng.integers(30, 160, (240, 320)), 0).astype(np.uint8)
    drawn = Image.fromarray(picture)
    ImageDraw.Draw(drawn).text((4, 4), "DOE JOHN 1970", fill=gray, font=ImageFont.load_default(14))
    cleaned = RemoveOverlays()(columns_first(np.asarray(drawn, dtype=np.float32)[None] / 255))[0].numpy().T
    assert np.abs(cleaned[:30, :120]).max() < 0.005
