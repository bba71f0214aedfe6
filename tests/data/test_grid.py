# SPDX-License-Identifier: Apache-2.0
"""The network's grid, checked with shapes whose image is known analytically."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcf.data import apply_difference, from_grid, to_grid
from medcf.data.pixels import Pixels


def study(array: np.ndarray, spacing: tuple[float, float] | None, **fields: object) -> MetaTensor:
    pixels = Pixels(array.astype(np.float32), spacing, "raster", "L", **fields)  # type: ignore[arg-type]
    return pixels.to_tensor("a.png")


def disc(
    shape: tuple[int, int], spacing: tuple[float, float], center: tuple[float, float], radius: float
) -> np.ndarray:
    """A disc with soft pixel edges; center and radius in mm from the outer corner of the image."""
    row = (np.arange(shape[0])[:, None] + 0.5) * spacing[0] - center[0]
    column = (np.arange(shape[1])[None] + 0.5) * spacing[1] - center[1]
    return np.clip((radius - np.hypot(row, column)) / min(spacing) + 0.5, 0, 1)


def waves(shape: tuple[int, int]) -> np.ndarray:
    row, column = np.meshgrid(*(np.linspace(0, 2 * np.pi, n) for n in shape), indexing="ij")
    return 0.5 + 0.2 * np.sin(row + 0.3) * np.cos(column) + 0.2 * np.cos(1.5 * column)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((300, 400), (0.3, 0.3)), ((220, 610), (0.5, 0.2)), ((40, 50), (2.5, 2.6))]
)
def test_disc_keeps_its_size_in_millimetres(shape: tuple[int, int], spacing: tuple[float, float]) -> None:
    extent = (shape[0] * spacing[0], shape[1] * spacing[1])
    image = study(disc(shape, spacing, (extent[0] / 2, extent[1] / 2), 30.0), spacing)
    grid, record = to_grid(image, (64, 80), 1.75)
    area = float(((grid.as_tensor() + 1) / 2).sum()) * 1.75**2
    assert np.sqrt(area / np.pi) == pytest.approx(30.0, rel=0.01)
    assert record["metric"] == 1
    # the image fits into the grid, so its middle is the middle of the grid
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    weight = (grid.as_tensor()[0] + 1) / (grid.as_tensor()[0] + 1).sum()
    assert float((weight * rows).sum()) == pytest.approx(31.5, abs=0.02)
    assert float((weight * columns).sum()) == pytest.approx(39.5, abs=0.02)


def test_whole_number_step_is_the_block_average() -> None:
    array = np.random.default_rng(0).random((128, 160))
    grid, _ = to_grid(study(array, (0.875, 0.875)), (64, 80), 1.75)
    blocks = array.reshape(64, 2, 80, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(grid.numpy()[0], 2 * blocks - 1, atol=1e-5)


def test_speckle_is_averaged_not_sampled() -> None:
    array = np.random.default_rng(0).random((640, 800))
    grid, _ = to_grid(study(array, (0.175, 0.175)), (64, 80), 1.75)
    assert float(grid.std()) == pytest.approx(2 * np.sqrt(1 / 12) / 10, rel=0.05)


def test_small_image_is_padded_with_black_and_affine_says_where() -> None:
    image = study(np.ones((32, 40)), (1.75, 1.75))
    grid, _ = to_grid(image, (64, 80), 1.75)
    expected = np.full((64, 80), -1.0)
    expected[16:48, 20:60] = 1
    np.testing.assert_allclose(grid.numpy()[0], expected, atol=1e-6)
    # the same point of the patient, in both matrices
    np.testing.assert_allclose(grid.affine.numpy() @ [16, 20, 0, 1], image.affine.numpy() @ [0, 0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(grid.affine.numpy() @ [47, 59, 0, 1], image.affine.numpy() @ [31, 39, 0, 1], atol=1e-5)


def test_large_image_is_centered_on_the_picture_in_it() -> None:
    spacing = (0.5, 0.5)
    array = np.zeros((600, 800))
    array[100:300, 500:740] = 0.8  # 100 mm x 120 mm
    array[50, 20] = 1  # a lone bright pixel is no part of it
    _, record = to_grid(study(array, spacing), (64, 80), 1.75)
    middle = [record["origin"][i] + record["step"][i] * ((64, 80)[i] - 1) / 2 for i in (0, 1)]
    np.testing.assert_allclose(middle, [199.5, 619.5])
    array[:, :450] = 0.5  # a second screen beside it, outside of the ultrasound region
    _, record = to_grid(study(array, spacing, region=(90, 480, 310, 760)), (64, 80), 1.75)
    middle = [record["origin"][i] + record["step"][i] * ((64, 80)[i] - 1) / 2 for i in (0, 1)]
    np.testing.assert_allclose(middle, [199.5, 619.5])


def test_unknown_spacing_fits_the_picture_and_keeps_its_aspect() -> None:
    array = np.zeros((400, 500))
    array[50:350, 100:400] = disc((300, 300), (1, 1), (150, 150), 150)
    grid, record = to_grid(study(array, None), (64, 80), 1.75)
    assert record["metric"] == 0
    assert record["step"][0] == record["step"][1]
    inside = grid.numpy()[0] > 0
    height, width = np.flatnonzero(inside.any(axis=1)).size, np.flatnonzero(inside.any(axis=0)).size
    assert height == pytest.approx(64, abs=1)
    assert width == pytest.approx(height, abs=1)
    assert np.isnan(grid.meta["spacing_mm"]).all()


@pytest.mark.parametrize(
    ("shape", "spacing"), [((300, 400), (0.37, 0.35)), ((128, 160), (0.875, 0.875)), ((50, 60), (2.0, 2.1))]
)
def test_smooth_image_survives_the_way_there_and_back(shape: tuple[int, int], spacing: tuple[float, float]) -> None:
    array = waves(shape)
    grid, record = to_grid(study(array, spacing), (64, 80), 1.75)
    back = (from_grid(grid + 1, record) / 2).numpy()[0]
    border = int(np.ceil(2 * max(record["step"]) + 2))
    inner = (slice(border, -border), slice(border, -border))
    assert float(np.abs(back - array)[inner].max()) < 0.01


def test_way_back_is_linear_and_zero_outside() -> None:
    _, record = to_grid(study(np.ones((600, 800)), (0.5, 0.5)), (64, 80), 1.75)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 1, 64, 80, generator=generator)
    both = from_grid(2 * first - second, record)
    assert both.shape == (3, 1, 600, 800)
    torch.testing.assert_close(both, 2 * from_grid(first, record) - from_grid(second, record), atol=1e-5, rtol=0)
    constant = from_grid(torch.ones(1, 64, 80), record)[0]
    assert float(constant.max()) == pytest.approx(1)
    # the grid covers 224 x 280 pixels in the middle of the image, plus half a grid pixel of ramp
    assert float(constant[184].abs().max()) == 0
    assert float(constant[192:408, 264:536].min()) == pytest.approx(1)
    assert float(constant[:, 255].abs().max()) == 0


def test_no_difference_leaves_the_original_as_it_was() -> None:
    array = np.random.default_rng(0).random((120, 150))
    image = study(array, (0.8, 0.8))
    grid, record = to_grid(image)
    unchanged = apply_difference(image, torch.zeros_like(grid), record)
    np.testing.assert_array_equal(unchanged.numpy(), image.numpy())
    brighter = apply_difference(image, torch.full((1, 64, 80), 0.2), record)
    np.testing.assert_allclose(brighter.numpy()[0], np.clip(array + 0.1, 0, 1), atol=1e-6)


def test_record_survives_json() -> None:
    grid, record = to_grid(study(waves((100, 120)), (1.0, 1.0)))
    torch.testing.assert_close(from_grid(grid, json.loads(json.dumps(record))), from_grid(grid, record))


def test_color_and_black_images() -> None:
    colored = study(np.dstack([np.ones((32, 40)), np.zeros((32, 40)), np.zeros((32, 40))]), (3.5, 3.5))
    np.testing.assert_allclose(to_grid(colored)[0].numpy()[0, 2:-2, 2:-2], 2 * 0.299 - 1, atol=1e-6)
    np.testing.assert_array_equal(to_grid(study(np.zeros((32, 40)), None))[0].numpy(), -1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"size": (0, 80)}, "size"), ({"spacing": 0.0}, "spacing"), ({"spacing": (1.75, float("nan"))}, "spacing")],
)
def test_nonsense_is_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_grid(study(np.ones((8, 8)), (1.0, 1.0)), **kwargs)
    _, record = to_grid(study(np.ones((8, 8)), (1.0, 1.0)))
    with pytest.raises(ValueError, match=r"values must have the shape \(\.\.\., 64, 80\)"):
        from_grid(torch.zeros(1, 32, 32), record)
