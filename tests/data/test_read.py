# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG and TIFF; the kind of a file is told by its content; MONAI's loader reads whatever ``read`` does."""

from __future__ import annotations

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import LoadImaged
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medcf.data import Case, StudyReader, get_spacing, read, to_luminance
from medcf.data.file_info import sniff
from medcf.runtime.errors import UnreadableImage


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 17), dtype=np.uint8)


def test_png_keeps_its_values(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    image = read(tmp_path / "a.png")
    np.testing.assert_allclose(image.numpy()[0].T, picture / 255, atol=1e-6)
    assert tuple(image.meta["spatial_shape"]) == (17, 12)


def test_content_decides_not_the_name(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "really.dcm", format="PNG")
    assert sniff(tmp_path / "really.dcm") == "raster"
    np.testing.assert_allclose(read(tmp_path / "really.dcm").numpy()[0].T, picture / 255, atol=1e-6)
    (tmp_path / "text.png").write_text("no picture at all, only words")
    with pytest.raises(UnreadableImage, match=r"text\.png: is not in the format of its name"):
        read(tmp_path / "text.png")


def test_palette_and_transparency_show_what_a_viewer_shows(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).quantize(256).save(tmp_path / "p.png")
    assert float(np.abs(to_luminance(read(tmp_path / "p.png")).numpy()[0].T - picture / 255).max()) < 3 / 255
    rgba = np.dstack([picture, picture, picture, np.full_like(picture, 255)])
    rgba[:, :5, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "t.png")
    image = read(tmp_path / "t.png").numpy()
    assert image.shape == (1, 17, 12)  # gray in all three channels
    np.testing.assert_allclose(image[0, 5:], picture.T[5:] / 255, atol=1e-6)
    assert image[0, :5].max() == 0


@pytest.mark.parametrize(("top", "scale"), [(4095, 4095), (65535, 65535)])
def test_sixteen_bit_png_is_scaled_by_its_depth(tmp_path: Path, top: int, scale: int) -> None:
    values = np.linspace(0, top, 12 * 17).astype(np.uint16).reshape(12, 17)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_allclose(read(tmp_path / "a.png").numpy()[0].T, values / scale, atol=1e-6)


def test_jpeg_and_pages_of_a_tiff(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)).save(tmp_path / "a.jpg", quality=95)
    expected = (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255
    np.testing.assert_allclose(to_luminance(read(tmp_path / "a.jpg")).numpy(), expected, atol=0.01)
    pages = [Image.fromarray(picture // n) for n in (1, 2, 4)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_allclose(read(tmp_path / "a.tif", "last").numpy()[0].T, picture // 4 / 255, atol=1e-6)


def test_spacing_of_png_is_that_of_the_patient_not_of_the_screen(tmp_path: Path, picture: np.ndarray) -> None:
    drawn = Image.fromarray(picture)
    for dpi in (72, 96, 100, 150, 300):
        drawn.save(tmp_path / "screen.png", dpi=(dpi, dpi))
        assert get_spacing(read(tmp_path / "screen.png")) is None
    drawn.save(tmp_path / "phys.png", dpi=(25.4 / 0.6, 25.4 / 0.875))
    assert get_spacing(read(tmp_path / "phys.png")) == pytest.approx((0.6, 0.875), rel=1e-3)
    stated = PngInfo()
    stated.add_text("medcf_spacing_mm", "0.5 0.25")
    drawn.save(tmp_path / "text.png", pnginfo=stated, dpi=(72, 72))
    assert get_spacing(read(tmp_path / "text.png")) == (0.25, 0.5)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_png_is_refused(tmp_path: Path, picture: np.ndarray, share: float) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableImage, match=r"a\.png: (cannot be decoded|is damaged)"):
        read(tmp_path / "a.png")


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for path, reason in (("nowhere.png", "does not exist"), ("empty.png", "is empty"), (".", "holds no DICOM slices")):
        with pytest.raises(UnreadableImage, match=reason):
            read(tmp_path / path)


def test_images_of_different_formats_collate(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    nib.save(nib.Nifti1Image(picture.T, np.diag([-0.6, -0.4, 1, 1])), tmp_path / "b.nii")
    batch = list_data_collate([{"image": read(tmp_path / name)} for name in ("a.png", "b.nii")])
    assert batch["image"].shape == (2, 1, 17, 12)
    np.testing.assert_allclose(batch["image"][0].numpy(), batch["image"][1].numpy(), atol=1e-6)


def test_unreadable_image_survives_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("folder/a.dcm", "is empty", "Export it again.")))
    assert (error.path, error.reason, error.remedy) == ("folder/a.dcm", "is empty", "Export it again.")
    assert str(error) == "a.dcm: is empty. Export it again."


def test_luminance_refuses_two_channels() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels"):
        to_luminance(torch.zeros(2, 4, 4))


def test_monais_loader_reads_what_read_reads(tmp_path: Path, picture: np.ndarray, heads, oblique) -> None:
    Image.fromarray(np.dstack([picture, picture // 2, picture // 3])).save(tmp_path / "a.png")
    heads.save_nifti(tmp_path / "b.nii", *oblique)
    heads.save_nifti(tmp_path / "mask.nii", (oblique[0] > 500).astype(np.uint8), oblique[1])
    series = tuple(sorted(heads.save_series(tmp_path / "c", *oblique).iterdir()))
    sources = [tmp_path / "a.png", str(tmp_path / "b.nii"), tmp_path / "c", Case("c", series)]
    sources += [Case("b", (tmp_path / "b.nii",), mask=tmp_path / "mask.nii")]
    load = LoadImaged(keys="image", reader=StudyReader, expanduser=False)
    for source in sources:
        expected, found = read(source), load({"image": source, "label": 1})["image"]
        assert isinstance(found, MetaTensor)
        assert torch.equal(found.as_tensor(), expected.as_tensor())
        torch.testing.assert_close(found.affine, expected.affine)
        assert found.meta["source_format"] == expected.meta["source_format"]
        assert ("mask" in found.meta) == ("mask" in expected.meta)


def test_monais_loader_names_the_file_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.nii").write_bytes(b"x" * 500)
    with pytest.raises(UnreadableImage, match=r"broken\.nii: is not in the format of its name"):
        LoadImaged(keys="image", reader=StudyReader)({"image": str(tmp_path / "broken.nii")})


def test_files_that_are_no_series_are_refused(tmp_path: Path, picture: np.ndarray) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(picture).save(tmp_path / name)
    with pytest.raises(UnreadableImage, match=r"a\.png: is one of several files that are not a DICOM series"):
        read([tmp_path / "a.png", tmp_path / "b.png"])
    with pytest.raises(ValueError, match="empty list"):
        read([])
