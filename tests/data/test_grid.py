# SPDX-License-Identifier: Apache-2.0
"""The network's grid, checked with shapes whose image is known analytically."""

from __future__ import annotations

import pickle
import time

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate

from medcf.data import Grid, get_spacing, read
from medcf.data.image import picture_affine
from medcf.phantoms import BrainMRI
from medcf.phantoms.brain.dataset import brain_on_grid
from medcf.transforms import AddDifference, ToGrid

PLANE = Grid((64, 80), 1.75)
BRAIN = Grid((24, 28, 22), 4.0, "RAS", "auto")


def study(array: np.ndarray, spacing: tuple[float, float] | None, **meta: object) -> MetaTensor:
    """A picture of rows and columns, or of rows, columns and colors; the spacing is that of rows and of columns."""
    planes = np.atleast_3d(array.astype(np.float32)).transpose(2, 1, 0)
    affine = np.eye(4) if spacing is None else picture_affine(spacing[::-1])
    return MetaTensor(torch.from_numpy(planes.copy()), affine=torch.from_numpy(affine), meta=meta)


def gridded(image: MetaTensor, spec: Grid = PLANE, mask: torch.Tensor | None = None) -> tuple:
    record = spec.fit(image, mask)
    return spec.to(image, record), record


def middle(record) -> np.ndarray:
    """Row and column of the image on which the grid is centered."""
    return (record.matrix @ [*((np.array(record.grid) - 1) / 2), 0, 1])[[1, 0]]


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
    grid, record = gridded(image)
    area = float(((grid.as_tensor() + 1) / 2).sum()) * 1.75**2
    assert np.sqrt(area / np.pi) == pytest.approx(30.0, rel=0.01)
    np.testing.assert_allclose(np.linalg.norm(record.matrix[:2, :2], axis=0) * spacing, 1.75)
    # the image fits into the grid, so its middle is the middle of the grid
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    weight = (grid.as_tensor()[0] + 1) / (grid.as_tensor()[0] + 1).sum()
    assert float((weight * rows).sum()) == pytest.approx(31.5, abs=0.02)
    assert float((weight * columns).sum()) == pytest.approx(39.5, abs=0.02)


def test_whole_number_step_is_the_block_average() -> None:
    array = np.random.default_rng(0).random((128, 160))
    grid, _ = gridded(study(array, (0.875, 0.875)))
    blocks = array.reshape(64, 2, 80, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(grid.numpy()[0], 2 * blocks - 1, atol=1e-5)


def test_speckle_is_averaged_not_sampled() -> None:
    array = np.random.default_rng(0).random((640, 800))
    grid, _ = gridded(study(array, (0.175, 0.175)))
    assert float(grid.std()) == pytest.approx(2 * np.sqrt(1 / 12) / 10, rel=0.05)


def test_small_image_is_padded_with_black_and_affine_says_where() -> None:
    image = study(np.ones((32, 40)), (1.75, 1.75))
    grid, _ = gridded(image)
    expected = np.full((64, 80), -1.0)
    expected[16:48, 20:60] = 1
    np.testing.assert_allclose(grid.numpy()[0], expected, atol=1e-6)
    # the same point of the patient, in both matrices
    np.testing.assert_allclose(grid.affine.numpy() @ [16, 20, 0, 1], image.affine.numpy() @ [0, 0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(grid.affine.numpy() @ [47, 59, 0, 1], image.affine.numpy() @ [39, 31, 0, 1], atol=1e-5)


def test_large_image_is_centered_on_the_picture_in_it() -> None:
    spacing = (0.5, 0.5)
    array = np.zeros((600, 800))
    array[100:300, 500:740] = 0.8  # 100 mm x 120 mm
    array[50, 20] = 1  # a lone bright pixel is no part of it
    record = PLANE.fit(study(array, spacing))
    np.testing.assert_allclose(middle(record), [199.5, 619.5])
    array[:, :450] = 0.5  # a second screen beside it, outside of the ultrasound region
    record = PLANE.fit(study(array, spacing, region=(480, 90, 760, 310)))
    np.testing.assert_allclose(middle(record), [199.5, 619.5])


def test_an_image_that_is_too_long_in_one_direction_is_centered_on_the_picture_in_it() -> None:
    array = np.zeros((64, 200))
    array[10:50, 120:180] = 0.8
    wide, fitting = (PLANE.fit(study(array[:, first:], (1.75, 1.75))) for first in (0, 120))
    np.testing.assert_allclose(middle(wide), [29.5, 149.5])
    np.testing.assert_allclose(middle(fitting), [31.5, 39.5])  # 64 x 80 pixels: the image itself
    tall = PLANE.fit(study(array.T[:, :80], (1.75, 1.75)))  # 200 rows, of which the picture has 120 to 180
    np.testing.assert_allclose(middle(tall), [149.5, 29.5])


def test_unknown_spacing_fits_the_picture_and_keeps_its_aspect() -> None:
    array = np.zeros((400, 500))
    array[50:350, 100:400] = disc((300, 300), (1, 1), (150, 150), 150)
    grid, record = gridded(study(array, None))
    steps = np.linalg.norm(record.matrix[:2, :2], axis=0)
    assert steps[0] == steps[1]
    inside = grid.numpy()[0] > 0
    height, width = np.flatnonzero(inside.any(axis=1)).size, np.flatnonzero(inside.any(axis=0)).size
    assert height == pytest.approx(64, abs=1)
    assert width == pytest.approx(height, abs=1)
    assert get_spacing(record.image) is None
    # MONAI's own reader of pictures gives no geometry either, and the same grid
    bare = torch.from_numpy(array.astype(np.float32).T.copy())[None]
    for image in (bare, MetaTensor(bare)):
        torch.testing.assert_close(gridded(image)[0].as_tensor(), grid.as_tensor())


def test_a_grid_without_spacing_fits_every_picture_and_the_result_keeps_its_millimetres() -> None:
    array = np.zeros((400, 500))
    array[50:350, 100:400] = disc((300, 300), (1, 1), (150, 150), 150)
    fitted = Grid(size=(64, 80), spacing=None)
    known, unknown = study(array, (0.2, 0.2)), study(array, None)
    records = [fitted.fit(image) for image in (known, unknown)]
    torch.testing.assert_close(
        fitted.to(known, records[0]).as_tensor(), PLANE.to(unknown, PLANE.fit(unknown)).as_tensor()
    )
    step = np.linalg.norm(records[1].matrix[:2, 0])
    assert get_spacing(fitted.to(known, records[0])) == pytest.approx((0.2 * step, 0.2 * step))
    with pytest.raises(ValueError, match="spacing must be positive"):
        Grid(size=(8, 8, 8), spacing=None, axes="RAS")


@pytest.mark.parametrize(
    ("shape", "spacing"), [((300, 400), (0.37, 0.35)), ((128, 160), (0.875, 0.875)), ((50, 60), (2.0, 2.1))]
)
def test_smooth_image_survives_the_way_there_and_back(shape: tuple[int, int], spacing: tuple[float, float]) -> None:
    array = waves(shape)
    grid, record = gridded(study(array, spacing))
    back = (record.back(grid + 1) / 2).numpy()[0].T
    border = int(np.ceil(2 * np.abs(record.matrix[:2, :2]).max() + 2))
    inner = (slice(border, -border), slice(border, -border))
    assert float(np.abs(back - array)[inner].max()) < 0.01


def test_way_back_is_linear_and_zero_outside() -> None:
    record = PLANE.fit(study(np.ones((600, 800)), (0.5, 0.5)))
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 64, 80, generator=generator)
    both = record.back(2 * first - second)
    assert both.shape == (3, 800, 600)
    torch.testing.assert_close(both, 2 * record.back(first) - record.back(second), atol=1e-5, rtol=0)
    constant = record.back(torch.ones(1, 64, 80))[0].T
    assert float(constant.max()) == pytest.approx(1)
    # the grid covers 224 x 280 pixels in the middle of the image, plus half a grid pixel of ramp
    assert float(constant[184].abs().max()) == 0
    assert float(constant[192:408, 264:536].min()) == pytest.approx(1)
    assert float(constant[:, 255].abs().max()) == 0


def test_no_difference_leaves_the_original_as_it_was() -> None:
    array = np.random.default_rng(0).random((120, 150)).astype(np.float32)
    grid = ToGrid()(study(array, (0.8, 0.8)))
    unchanged, difference = AddDifference()(grid.clone(), grid)
    np.testing.assert_array_equal(unchanged.numpy()[0].T, array)
    assert not difference.any()
    brighter, _ = AddDifference()(grid + 0.2, grid)
    np.testing.assert_allclose(brighter.numpy()[0].T, np.clip(array + 0.1, 0, 1), atol=1e-6)


def test_color_and_black_images() -> None:
    colored = study(np.dstack([np.ones((32, 40)), np.zeros((32, 40)), np.zeros((32, 40))]), (3.5, 3.5))
    np.testing.assert_allclose(gridded(colored)[0].numpy()[0, 2:-2, 2:-2], 2 * 0.299 - 1, atol=1e-6)
    np.testing.assert_array_equal(gridded(study(np.zeros((32, 40)), None))[0].numpy(), -1)
    ink = study(255 * waves((32, 40)), (3.5, 3.5))  # as other readers give it
    expected = gridded(study(waves((32, 40)), (3.5, 3.5)))[0]
    np.testing.assert_allclose(gridded(ink)[0].numpy(), expected.numpy(), atol=1e-5)


@pytest.fixture
def volume(heads):
    shape, affine = heads.geometry("LPS", (3, 3.5, 5), (11, -6, 17))
    values = torch.from_numpy(heads.head(shape, affine).astype(np.float32))[None]
    return MetaTensor(values, affine=torch.from_numpy(affine)), values > 0


def test_the_grid_is_upright_centered_on_the_brain_and_scaled(volume):
    image, mask = volume
    grid, record = gridded(image, BRAIN, mask)

    affine = np.asarray(grid.affine)
    np.testing.assert_allclose(affine[:3, :3], 4 * np.eye(3), atol=1e-9)
    middle = affine @ [11.5, 13.5, 10.5, 1]
    np.testing.assert_allclose(middle[:3], [5, -20, 30], atol=2.5)  # half of the largest voxel
    assert float(grid.min()) == -1
    assert float(grid.max()) <= 1
    low, high = record.intensity
    assert low == 0
    assert high == pytest.approx(np.percentile(image.numpy()[mask.numpy()], 99.5))
    outside = grid.as_tensor() == -1
    assert outside.float().mean() == pytest.approx(1 - 209e3 / (24 * 28 * 22 * 64), abs=0.02)  # 4/3 pi 36 42 33 mm3


def test_intensities_arrive_where_they_belong(volume, heads):
    """On the grid stands what the head's formula gives at the world coordinates of its voxels."""
    image, mask = volume
    grid, record = gridded(image, BRAIN, mask)
    truth = heads.head(BRAIN.size, np.asarray(grid.affine)).astype(np.float32)
    found = (grid.numpy()[0] + 1) / 2 * record.intensity[1]

    both = (truth > 0) & (grid.numpy()[0] > -1)
    assert np.abs(found - truth)[both].mean() < 15  # of 1000; the mean over a voxel differs a little from its middle
    assert np.corrcoef(found[both], truth[both])[0, 1] > 0.99


def test_a_volume_on_twice_the_grid_comes_as_the_phantoms_do():
    sample = BrainMRI(3).render(size=(40, 48, 40), spacing=4.0)
    image = MetaTensor(torch.from_numpy(sample.image)[None], affine=torch.from_numpy(sample.affine))
    mask = torch.from_numpy(sample.mask)[None]

    grid, record = gridded(image, Grid((20, 24, 20), 8.0, "RAS", "auto", center="image"), mask)

    expected = brain_on_grid(sample, 2)[0] / 255.0 / record.intensity[1]
    assert np.array_equal(grid.numpy()[0] > -1, expected > 0)
    np.testing.assert_allclose((grid.numpy()[0] + 1) / 2, np.clip(expected, 0, 1), atol=0.004)


def test_a_thing_smaller_than_a_voxel_is_averaged_not_missed():
    image = MetaTensor(torch.ones(1, 32, 32, 32), affine=torch.eye(4))
    spread = []
    for shift in range(4):
        planted = image.clone()
        planted[0, 13 + shift, 14, 15] = 65
        grid, _ = gridded(planted, Grid((8, 8, 8), 4.0, "RAS", "all", intensity=(0, 100)))
        spread.append(float((grid.as_tensor() + 1).sum() * 50 - 512))
    np.testing.assert_allclose(spread, 1.0, atol=1e-2)  # 64 spread over 64 voxels, wherever it lies


def test_a_microscopic_volume_is_averaged_by_few_points():
    values = torch.zeros(1, 100, 100, 100)
    values[:, :, :, :50] = 1
    image = MetaTensor(values, affine=torch.diag(torch.tensor([0.1, 0.1, 0.1, 1.0], dtype=torch.float64)))
    started = time.process_time()

    grid, _ = gridded(image, Grid((2, 2, 2), 5.0, "RAS", "all", intensity=(0.0, 1.0)))

    assert time.process_time() - started < 10  # a point for every voxel in them would take minutes
    np.testing.assert_allclose(grid.as_tensor()[0, :, :, 0], 1, atol=0.05)
    np.testing.assert_allclose(grid.as_tensor()[0, :, :, 1], -1, atol=0.05)


def test_negative_values_do_not_become_black(heads):
    shape, affine = heads.geometry(voxel=(6, 6, 6))
    values = heads.head(shape, affine).astype(np.float32)
    scored = np.where(values > 0, (values - 500) / 100, 0).astype(np.float32)
    image = MetaTensor(torch.from_numpy(scored)[None], affine=torch.from_numpy(affine))

    grid, record = gridded(image, BRAIN, torch.from_numpy(values > 0)[None])

    assert record.intensity[0] == pytest.approx(np.percentile(scored[values > 0], 0.5))
    brain = grid.as_tensor()[grid.as_tensor() > -1]
    assert float((brain < -0.99).float().mean()) < 0.05


@pytest.mark.parametrize("kind", ["picture", "volume"])
def test_the_record_survives_pickling_and_collating(volume, kind):
    image, mask = volume if kind == "volume" else (study(waves((100, 120)), (1.0, 1.0)), None)
    grid = ToGrid(*((BRAIN.size, 4.0) if kind == "volume" else ()))(image, mask)
    record = grid.meta["grid_record"]
    change = torch.randn(1, *record.grid, generator=torch.Generator().manual_seed(0))
    expected = record.back(change)

    restored = pickle.loads(pickle.dumps(record))
    batch = list_data_collate([{"image": grid}, {"image": grid}])
    collated = decollate_batch(batch)[1]["image"].meta["grid_record"]

    for other in (restored, collated):
        torch.testing.assert_close(other.back(change), expected)
        assert (other.native, other.grid, other.intensity) == (record.native, record.grid, record.intensity)
        assert (other.mask is None) == (kind == "picture")


def test_a_smooth_difference_comes_back_as_it_was(volume):
    image, mask = volume
    grid, record = gridded(image, BRAIN, mask)
    ramp = np.asarray(grid.affine)[:3, :3] @ np.indices(BRAIN.size).reshape(3, -1)
    ramp = (ramp[0] - 0.5 * ramp[1] + 2 * ramp[2]).reshape(1, *BRAIN.size)

    native = record.back(torch.from_numpy(ramp))[0].numpy()

    steps = np.asarray(image.affine)[:3, :3]
    where = np.argwhere(mask[0].numpy())[::97]
    for direction, step in enumerate(steps.T):  # the ramp's slope along each axis of the volume
        ahead = where + np.eye(3, dtype=int)[direction]
        slope = native[tuple(ahead.T)] - native[tuple(where.T)]
        np.testing.assert_allclose(slope, step @ [1, -0.5, 2], atol=1e-3)


def test_a_difference_is_zero_outside_of_the_grid(volume):
    image, mask = volume
    record = Grid((8, 8, 8), 4.0, "RAS", "auto").fit(image, mask)
    native = record.back(torch.ones(2, 8, 8, 8))

    assert native.shape == (2, *image.shape[1:])
    assert 0 < float((native > 0).float().mean()) < 0.2
    volume_mm3 = float(native[0].sum()) * abs(np.linalg.det(np.asarray(image.affine)[:3, :3]))
    assert volume_mm3 == pytest.approx(32**3, rel=0.02)


def test_an_unchanged_grid_gives_the_original_to_the_bit_and_a_change_is_in_its_units(volume):
    image, mask = volume
    grid = ToGrid(BRAIN.size, 4.0)(image, mask)
    record = grid.meta["grid_record"]
    add = AddDifference()

    assert torch.equal(add(grid.clone(), grid)[0], image.as_tensor())
    brighter, difference = add(grid + 0.2, grid)
    gain = (brighter - image.as_tensor())[mask]
    torch.testing.assert_close(gain, torch.full_like(gain, 0.1 * record.intensity[1]), atol=0.1, rtol=1e-4)
    assert float(difference.max()) == pytest.approx(0.1)
    darker, _ = add(grid - 4, grid)
    assert float(darker.min()) == 0  # no MR image has negative values
    np.testing.assert_allclose(np.asarray(record.image.affine), np.asarray(image.affine))


def test_reading_and_gridding_does_not_depend_on_how_the_voxels_are_laid(heads, tmp_path):
    """The same head in eight layouts gives the same picture on the grid."""
    grids = []
    for number, codes in enumerate(["RAS", "LAS", "LPS", "ASR", "PIR", "LSA", "SRA", "IPL"]):
        shape, affine = heads.geometry(codes, (4, 4, 4))
        image = read(heads.save_nifti(tmp_path / f"{number}.nii", heads.head(shape, affine), affine))
        grids.append(gridded(image, BRAIN, image.as_tensor() > 0)[0].as_tensor())
    for other in grids[1:]:
        torch.testing.assert_close(other, grids[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 80)}, "size must be two positive numbers"),
        ({"spacing": 0.0}, "positive millimeters"),
        ({"spacing": (1.75, float("nan"))}, "positive millimeters"),
        ({"size": (8, 8), "axes": "RAS"}, "three positive numbers"),
        ({"size": (8, 8, 2.5), "axes": "RAS"}, "three positive numbers"),
        ({"size": (8, 8, 8), "axes": "RAR"}, "axes='RAR'"),
        ({"size": (8, 8, 8), "axes": "RAS", "spacing": (1.0, 2.0)}, "positive millimeters"),
        ({"center": "nose"}, "neither 'subject' nor 'image'"),
        ({"subject": "magic"}, "not one of"),
        ({"percentile": 5.0}, "percentile"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Grid(**options)


def test_what_does_not_fit_a_grid_is_named(volume):
    image, mask = volume
    picture = study(np.ones((8, 8)), (1.0, 1.0))
    for wrong, match in [
        (lambda: BRAIN.fit(image, mask[..., 1:]), "image's voxels"),
        (lambda: BRAIN.fit(image, mask & False), "mask is empty"),
        (lambda: Grid((8, 8, 8), 4.0, "RAS", "auto", intensity=(3.0, 3.0)).fit(image, mask), "no range"),
        (lambda: BRAIN.fit(image[0], mask), r"\(1, X, Y, Z\)"),
        (lambda: BRAIN.fit(picture), r"\(1, X, Y, Z\)"),
        (lambda: PLANE.fit(image), r"\(1 or 3, X, Y\)"),
        (lambda: BRAIN.fit(image, mask).back(torch.zeros(1, 3, 3, 3)), r"shape \(C, 24, 28, 22\)"),
        (lambda: PLANE.fit(picture).back(torch.zeros(1, 32, 32)), r"shape \(C, 64, 80\)"),
        (lambda: PLANE.to(study(np.ones((9, 8)), None), PLANE.fit(picture)), "size"),
    ]:
        with pytest.raises(ValueError, match=match):
            wrong()
