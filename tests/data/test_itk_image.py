# SPDX-License-Identifier: Apache-2.0
"""NRRD and MetaImage files, and images of ITK and SimpleITK, lie where their own library says."""

from __future__ import annotations

import itk
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data.itk_torch_bridge import itk_image_to_metatensor, metatensor_to_itk_image
from scipy.spatial.transform import Rotation

from medcf.data import find_cases, read
from medcf.data.itk_image import from_itk, from_sitk, to_itk, to_sitk
from medcf.runtime.errors import UnreadableImage


@pytest.fixture
def image():
    made = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32))
    made.SetSpacing((1.5, 2.0, 3.5))
    made.SetOrigin((-31.5, 12.25, 7.0))
    made.SetDirection(Rotation.from_euler("xyz", (20, -12, 31), degrees=True).as_matrix().ravel().tolist())
    return made


def corner(image: SimpleITK.Image, index: tuple[int, ...]) -> np.ndarray:
    """Where a voxel lies in RAS+ mm, as SimpleITK says."""
    return np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_volume_is_read_with_its_place(tmp_path, image, name, compressed):
    SimpleITK.WriteImage(image, str(tmp_path / name), useCompression=compressed)
    (case,), failures = find_cases(tmp_path, spatial_dims=3)
    assert failures == []
    volume = read(case)
    np.testing.assert_allclose(volume.numpy()[0], SimpleITK.GetArrayFromImage(image).T)
    for index in ((0, 0, 0), (6, 5, 4), (3, 0, 2)):
        np.testing.assert_allclose(volume.affine.numpy() @ [*index, 1], [*corner(image, index), 1], atol=1e-5)


def test_a_picture_gray_or_colored_is_read_in_columns_and_rows(tmp_path):
    plane = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(plane[..., 0]), str(tmp_path / "gray.mha"))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(plane, isVector=True), str(tmp_path / "rgb.nrrd"))
    cases, _ = find_cases(tmp_path)
    gray, colored = (read(case).numpy() for case in cases)
    np.testing.assert_allclose(gray, plane[..., 0].T[None] / 255, atol=1e-6)
    np.testing.assert_allclose(colored, plane.transpose(2, 1, 0) / 255, atol=1e-6)


def test_a_damaged_file_and_a_time_series_are_refused(tmp_path, image):
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    whole = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(whole[:-200])
    with pytest.raises(UnreadableImage, match=r"a\.nrrd"):
        read(tmp_path / "a.nrrd")
    series = SimpleITK.JoinSeries([image, image])
    SimpleITK.WriteImage(series, str(tmp_path / "b.mha"))
    with pytest.raises(UnreadableImage, match=r"b\.mha: is a series of images \(7 x 6 x 5 x 2\)"):
        read(tmp_path / "b.mha")


def test_images_of_both_libraries_go_to_tensors_and_back(image):
    volume = from_sitk(image)
    for index in ((0, 0, 0), (6, 5, 4)):
        np.testing.assert_allclose(volume.affine.numpy() @ [*index, 1], [*corner(image, index), 1], atol=1e-6)
    back = to_sitk(volume)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(back), SimpleITK.GetArrayFromImage(image))
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(back, name)(), getattr(image, name)(), atol=1e-9)
    through_itk = from_itk(to_itk(volume))
    assert torch.equal(through_itk, volume)
    np.testing.assert_allclose(through_itk.affine, volume.affine, atol=1e-9)


def test_monais_bridge_agrees(image):
    volume = from_sitk(image)
    theirs = metatensor_to_itk_image(volume, channel_dim=0, dtype=np.float32)
    ours = to_itk(volume)
    np.testing.assert_allclose(itk.array_from_image(theirs), itk.array_from_image(ours))
    np.testing.assert_allclose(np.asarray(theirs.GetDirection()), np.asarray(ours.GetDirection()), atol=1e-6)
    np.testing.assert_allclose(list(theirs.GetOrigin()), list(ours.GetOrigin()), atol=1e-5)
    again = itk_image_to_metatensor(ours)
    np.testing.assert_allclose(again.numpy(), volume.numpy())


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_compressed_metaimage_is_refused(tmp_path, image, damage):
    """ITK reads it without an error and leaves the rest as memory was."""
    path = tmp_path / "v.mha"
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    raw = bytearray(path.read_bytes())
    start = raw.index(b"LOCAL") + 6
    middle = (start + len(raw)) // 2
    if damage == "cut":
        del raw[middle:]
    else:
        raw[middle] ^= 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises(UnreadableImage, match=r"v\.mha"):
        read(path)


def test_a_metaimage_on_which_itk_never_ends_is_refused(tmp_path):
    (tmp_path / "v.mha").write_text("ObjectType = Image\nNDims = 3\nNDims = -1\nDimSize = 9\nElementDataFile = LOCAL\n")
    cases, (failure,) = find_cases(tmp_path, spatial_dims=3)
    assert cases == []
    assert failure.file.endswith("v.mha")


@pytest.mark.parametrize(("kind", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_colors_of_any_depth_are_read(tmp_path, kind, top):
    plane = (np.random.default_rng(0).random((24, 30, 3)) * top).astype(kind)
    plane[0, 0] = top
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(plane, isVector=True), str(tmp_path / "rgb.nrrd"))
    np.testing.assert_allclose(read(tmp_path / "rgb.nrrd").numpy(), plane.transpose(2, 1, 0) / top, atol=1e-6)
