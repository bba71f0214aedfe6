# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG, TIFF and NIfTI; the kind of a file is told by its content."""

from __future__ import annotations

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import NibabelWriter
from monai.data.utils import list_data_collate
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medcf.data import UnreadableImage, get_spacing, read_study, sniff, to_luminance


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 17), dtype=np.uint8)


def test_png_keeps_its_values(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    image = read_study(tmp_path / "a.png")
    np.testing.assert_allclose(image.numpy()[0], picture / 255, atol=1e-6)
    assert tuple(image.meta["original_shape"]) == (12, 17)


def test_content_decides_not_the_name(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "really.dcm", format="PNG")
    assert sniff(tmp_path / "really.dcm") == "raster"
    np.testing.assert_allclose(read_study(tmp_path / "really.dcm").numpy()[0], picture / 255, atol=1e-6)
    (tmp_path / "text.png").write_text("no picture at all, only words")
    with pytest.raises(UnreadableImage, match=r"text\.png: is not what its name says"):
        read_study(tmp_path / "text.png")


def test_palette_and_transparency_show_what_a_viewer_shows(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).quantize(256).save(tmp_path / "p.png")
    assert float(np.abs(read_study(tmp_path / "p.png").numpy()[0] - picture / 255).max()) < 3 / 255
    rgba = np.dstack([picture, picture, picture, np.full_like(picture, 255)])
    rgba[:, :5, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "t.png")
    image = read_study(tmp_path / "t.png", color=True).numpy()
    assert image.shape == (1, 12, 17)  # grey in all three channels
    np.testing.assert_allclose(image[0, :, 5:], picture[:, 5:] / 255, atol=1e-6)
    assert image[0, :, :5].max() == 0


@pytest.mark.parametrize(("top", "scale"), [(4095, 4095), (65535, 65535)])
def test_sixteen_bit_png_is_scaled_by_its_depth(tmp_path: Path, top: int, scale: int) -> None:
    values = np.linspace(0, top, 12 * 17).astype(np.uint16).reshape(12, 17)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_study(tmp_path / "a.png").numpy()[0], values / scale, atol=1e-6)


def test_jpeg_and_pages_of_a_tiff(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)).save(tmp_path / "a.jpg", quality=95)
    expected = (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255
    np.testing.assert_allclose(read_study(tmp_path / "a.jpg").numpy(), expected, atol=0.01)
    pages = [Image.fromarray(picture // n) for n in (1, 2, 4)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_allclose(read_study(tmp_path / "a.tif", "last").numpy()[0], picture // 4 / 255, atol=1e-6)


def test_spacing_of_png_is_that_of_the_patient_not_of_the_screen(tmp_path: Path, picture: np.ndarray) -> None:
    drawn = Image.fromarray(picture)
    for dpi in (72, 96, 100, 150, 300):
        drawn.save(tmp_path / "screen.png", dpi=(dpi, dpi))
        assert get_spacing(read_study(tmp_path / "screen.png")) is None
    drawn.save(tmp_path / "phys.png", dpi=(25.4 / 0.6, 25.4 / 0.875))
    assert get_spacing(read_study(tmp_path / "phys.png")) == pytest.approx((0.875, 0.6), rel=1e-3)
    stated = PngInfo()
    stated.add_text("medcf_spacing_mm", "0.5 0.25")
    drawn.save(tmp_path / "text.png", pnginfo=stated, dpi=(72, 72))
    assert get_spacing(read_study(tmp_path / "text.png")) == (0.5, 0.25)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_png_is_refused(tmp_path: Path, picture: np.ndarray, share: float) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableImage, match=r"a\.png: (cannot be decoded|is damaged)"):
        read_study(tmp_path / "a.png")


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for path, reason in (("nowhere.png", "does not exist"), ("empty.png", "is empty"), (".", "is a folder")):
        with pytest.raises(UnreadableImage, match=reason):
            read_study(tmp_path / path)


@pytest.mark.parametrize("shape", [(17, 12), (17, 12, 1), (17, 12, 1, 1), (17, 1, 12)])
def test_nifti_axes_are_columns_then_rows(tmp_path: Path, picture: np.ndarray, shape: tuple[int, ...]) -> None:
    affine = np.diag([-0.6, -0.4, 1, 1])
    if shape == (17, 1, 12):  # a coronal plane: x and z
        affine = np.diag([-0.6, 1, -0.4, 1])
    nib.save(nib.Nifti1Image(picture.T.reshape(shape), affine), tmp_path / "a.nii.gz")
    image = read_study(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.numpy()[0], picture / 255, atol=1e-6)
    assert get_spacing(image) == pytest.approx((0.4, 0.6))


@pytest.mark.parametrize("flip", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("transpose", [False, True])
def test_nifti_stored_in_any_orientation_shows_the_same(
    tmp_path: Path, picture: np.ndarray, flip: tuple[int, ...], transpose: bool
) -> None:
    stored, affine = picture.T, np.diag([-0.6, -0.4, 1.0, 1.0])
    affine[:3, 3] = 5, 7, 9
    for axis in flip:
        affine[:3, 3] += affine[:3, axis] * (stored.shape[axis] - 1)
        affine[:3, axis] *= -1
        stored = np.flip(stored, axis)
    if transpose:
        stored, affine = stored.T, affine[:, [1, 0, 2, 3]]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored), affine), tmp_path / "a.nii")
    image = read_study(tmp_path / "a.nii")
    np.testing.assert_allclose(image.numpy()[0], picture / 255, atol=1e-6)
    # the affine of the picture puts row 3, column 4 where the file has it
    np.testing.assert_allclose(image.affine.numpy() @ [3, 4, 0, 1], [5 - 0.6 * 4, 7 - 0.4 * 3, 9, 1], atol=1e-5)


def test_nifti_written_by_monai_from_an_image_reads_back(tmp_path: Path, picture: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(picture.T, np.diag([-0.6, -0.4, 1, 1])), tmp_path / "a.nii")
    image = read_study(tmp_path / "a.nii")
    writer = NibabelWriter(output_dtype=np.float32)
    writer.set_data_array(image[..., None], channel_dim=0, squeeze_end_dims=False)
    writer.set_metadata({"affine": image.affine, "original_affine": image.affine}, resample=False)
    writer.write(tmp_path / "b.nii")
    again = read_study(tmp_path / "b.nii")
    np.testing.assert_allclose(again.numpy(), image.numpy(), atol=1e-6)
    np.testing.assert_allclose(again.affine.numpy(), image.affine.numpy(), atol=1e-6)


def test_nifti_with_the_identity_has_no_geometry(tmp_path: Path, picture: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(picture.T, np.eye(4)), tmp_path / "a.nii")
    image = read_study(tmp_path / "a.nii")
    assert get_spacing(image) is None
    np.testing.assert_allclose(image.numpy()[0], picture / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "low", "high"), [((0.0, 0.5, 1.0), 0, 1), ((0.0, 100.0, 255.0), 0, 255), ((-50.0, 0.0, 350.0), -50, 350)]
)
def test_nifti_intensities(tmp_path: Path, values: tuple[float, ...], low: float, high: float) -> None:
    stored = np.resize(np.array(values, dtype=np.float32), (6, 4))
    nib.save(nib.Nifti1Image(stored, np.diag([-1, -1, 1, 1])), tmp_path / "a.nii")
    image = read_study(tmp_path / "a.nii")
    np.testing.assert_allclose(image.numpy()[0], (stored.T - low) / (high - low), atol=1e-6)
    assert tuple(image.meta["value_range"]) == (low, high)


@pytest.mark.parametrize(
    ("shape", "kind"), [((8, 9, 3), "volume"), ((8, 9, 1, 5), "time series"), ((8, 1), "no image")]
)
def test_nifti_of_the_wrong_dimension_is_refused(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    nib.save(nib.Nifti1Image(np.zeros(shape, dtype=np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(UnreadableImage, match=kind):
        read_study(tmp_path / "a.nii.gz")


def test_truncated_nifti_is_refused(tmp_path: Path, picture: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(picture, np.eye(4)), tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(data[:-40])
    with pytest.raises(UnreadableImage, match=r"a\.nii: is damaged"):
        read_study(tmp_path / "a.nii")


def test_images_of_different_formats_collate(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    nib.save(nib.Nifti1Image(picture.T, np.diag([-0.6, -0.4, 1, 1])), tmp_path / "b.nii")
    batch = list_data_collate([{"image": read_study(tmp_path / name)} for name in ("a.png", "b.nii")])
    assert batch["image"].shape == (2, 1, 12, 17)
    np.testing.assert_allclose(batch["image"][0].numpy(), batch["image"][1].numpy(), atol=1e-6)


def test_unreadable_image_survives_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("folder/a.dcm", "is empty", "Export it again.")))
    assert (error.path, error.reason, error.remedy) == ("folder/a.dcm", "is empty", "Export it again.")
    assert str(error) == "a.dcm: is empty. Export it again."


def test_luminance_refuses_two_channels() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels"):
        to_luminance(torch.zeros(2, 4, 4))
