# SPDX-License-Identifier: Apache-2.0
"""Transforms of torchio among MONAI's: the same result as torchio's own, with affine, dtype and history kept."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, Flipd, Invertd

from medcf.transforms import TorchIO, TorchIOd

tio = pytest.importorskip("torchio")
AFFINE = torch.tensor([[2.0, 0, 0, -7], [0, 2, 0, 4], [0, 0, 3, 1], [0, 0, 0, 1]])


def sample(*size, labels=True):
    generator = torch.Generator().manual_seed(0)
    image = MetaTensor(torch.rand(1, *size, generator=generator), affine=AFFINE, meta={"filename_or_obj": "a.nii"})
    label = MetaTensor((image.as_tensor() > 0.5).long() * 3, affine=AFFINE)
    return {"image": image, "label": label, "subject": 7} if labels else {"image": image}


def test_it_does_what_torchio_does_to_image_and_labels_together():
    item = sample(16, 20, 12)
    found = TorchIOd(["image", "label"], "Affine", ["label"], scales=1.2, degrees=15, translation=2)(item)
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=item["image"].as_tensor(), affine=AFFINE),
        label=tio.LabelMap(tensor=item["label"].as_tensor().float(), affine=AFFINE),
    )
    expected = tio.Affine(scales=1.2, degrees=15, translation=2)(subject)
    torch.testing.assert_close(found["image"].as_tensor(), expected["image"].data)
    assert torch.equal(found["label"].as_tensor(), expected["label"].data.long())
    assert found["label"].dtype == torch.int64
    assert set(found["label"].unique().tolist()) == {0, 3}
    assert found["subject"] == 7
    assert found["image"].meta["filename_or_obj"] == "a.nii"
    assert torch.equal(item["image"], sample(16, 20, 12)["image"])  # what came in is not changed


def test_the_affine_is_the_one_that_torchio_leaves():
    item = TorchIOd("image", "Resample", target=1.0)(sample(8, 10, 6, labels=False))
    assert item["image"].shape == (1, 16, 20, 18)
    torch.testing.assert_close(item["image"].affine.diagonal(), torch.ones(4, dtype=torch.float64))
    cropped = TorchIO("Crop", cropping=(1, 0, 2, 0, 0, 0))(sample(8, 10, 6, labels=False)["image"])
    torch.testing.assert_close(cropped.affine[:3, 3].float(), torch.tensor([-5.0, 8, 1]))


def test_a_spatial_transform_is_undone_among_monai_s_and_a_blur_is_left():
    item = sample(8, 10, 6)
    steps = Compose(
        [
            Flipd(["image", "label"], 0),
            TorchIOd(["image", "label"], tio.RandomFlip(axes=(1, 2), flip_probability=1), ["label"]),
            TorchIOd("image", "RandomBlur", std=(0.8, 0.8)),
        ]
    ).set_random_state(3)
    changed = steps(item)
    assert not torch.equal(changed["label"], item["label"])
    assert [each["class"] for each in changed["image"].applied_operations] == ["Flip", "TorchIO", "TorchIO"]
    back = Invertd("label", transform=Compose(steps.transforms[:2]), nearest_interp=False)(changed)
    assert torch.equal(back["label"].as_tensor(), item["label"].as_tensor())
    image = steps.inverse({"image": changed["image"], "label": changed["label"]})["image"]
    assert 0.02 < float((image - item["image"]).std()) < float(item["image"].std())
    assert image.applied_operations == []


def test_a_picture_stays_flat_in_color_and_as_an_array():
    picture = np.random.default_rng(0).random((3, 30, 24)).astype(np.float32)
    found = TorchIO("RandomAnisotropy", axes=(0,), downsampling=3).set_random_state(1)(picture)
    assert isinstance(found, np.ndarray)
    assert found.shape == picture.shape
    assert found.dtype == picture.dtype
    assert np.abs(np.diff(found, axis=1)).mean() < 0.6 * np.abs(np.diff(picture, axis=1)).mean()
    with pytest.raises(ValueError, match=r"image is \(30, 24\): use \(C, X, Y\)"):
        TorchIO("Flip", axes=0)(picture[0])


def test_its_random_state_is_monai_s_and_not_the_process_s():
    item = sample(8, 8, 8, labels=False)
    noise = TorchIOd("image", "RandomNoise")
    first = noise.set_random_state(5)(item)["image"]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(noise.set_random_state(5)(item)["image"], first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(noise(item)["image"], first)
    assert torch.equal(pickle.loads(pickle.dumps(noise.set_random_state(5)))(item)["image"], first)


def test_workers_of_monai_s_loader_draw_different_noise():
    items = [sample(6, 6, 6, labels=False)] * 4
    loader = DataLoader(Dataset(items, TorchIOd("image", "RandomNoise")), batch_size=2, num_workers=2)
    images = torch.cat([batch["image"].as_tensor() for batch in loader])
    assert len({float(image.sum()) for image in images}) == 4


def test_wrong_names_and_options_are_refused():
    with pytest.raises(ValueError, match="transform='RandomSpeckle' is no transform of torchio"):
        TorchIOd("image", "RandomSpeckle")
    with pytest.raises(ValueError, match="std are options of a transform that is given by its name"):
        TorchIOd("image", tio.RandomNoise(), std=0.1)
    with pytest.raises(ValueError, match=r"label_keys=\['mask'\] are none of the keys"):
        TorchIOd("image", "RandomFlip", label_keys=["mask"])
    with pytest.raises(TypeError, match="MetaTensor that went through TorchIO"):
        TorchIO("Flip", axes=0).inverse(torch.zeros(1, 2, 2))
