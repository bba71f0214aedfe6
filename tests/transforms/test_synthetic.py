# SPDX-License-Identifier: Apache-2.0
"""Samples replaced by synthetic images of their class, in anybody's pipeline."""

from __future__ import annotations

import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Flipd, LoadImaged, Resized, Rotate90d, ScaleIntensityd
from PIL import Image

from medcf.data import StoreWriter, SyntheticStore
from medcf.data.matched import matched
from medcf.transforms import RandSynthetic, RandSyntheticd

NAMES = ["dark", "bright", "striped"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four images of each of two classes: class and number can be read off the gray values; none of class 2."""
    folder = tmp_path_factory.mktemp("store") / "planes"
    rows = [{"label": label, "class_name": NAMES[label]} for label in (0, 1) for _ in range(4)]
    writer = StoreWriter(folder, rows, shape=(1, 8, 12), class_names=NAMES, shard_size=3, dtype="float16")
    writer.open()
    for number, members in enumerate(writer.shards()):
        images = torch.full((len(members), 1, 8, 12), -1.0)
        for place, index in enumerate(members):
            images[place, :, 1:] = -0.8 if index < 4 else 0.6
            images[place, :, :, index] = 1.0  # the column of the number is white
        writer.write(number, images)
    writer.close()
    return folder


def real(label=0, **keys):
    return {"image": torch.linspace(10, 200, 96).view(1, 8, 12), "label": label, **keys}


def number_of(image):
    """Return which of the store's images it is."""
    return int(image[0].mean(0).argmax())


def test_about_a_share_is_replaced_and_always_by_its_own_class(store):
    replace = RandSyntheticd("image", store, prob=0.3).set_random_state(0)
    found = [replace(real(n % 2)) for n in range(400)]
    made = [n for n, item in enumerate(found) if item["synthetic"]]
    assert 90 < len(made) < 150
    assert {number_of(found[n]["image"]) for n in made if n % 2 == 0} == {0, 1, 2, 3}
    assert {number_of(found[n]["image"]) for n in made if n % 2 == 1} == {4, 5, 6, 7}
    for n in set(range(400)) - set(made):
        assert torch.equal(found[n]["image"], real()["image"])
    assert all(item["label"] == n % 2 for n, item in enumerate(found))


def test_it_takes_the_range_size_channels_and_type_of_what_it_replaces(store):
    replace = RandSynthetic(store, 1.0)
    image = replace.set_random_state(1)(torch.linspace(10, 200, 96).view(1, 8, 12), 0)
    assert float(image.min()) == 10
    assert float(image.max()) == 200
    expected = (SyntheticStore(store)[number_of(image)]["image"] + 1) / 2 * 190 + 10
    torch.testing.assert_close(image, expected, atol=0.1, rtol=0)
    larger = replace(np.zeros((3, 32, 24), np.uint8) + np.arange(24, dtype=np.uint8), 1)
    assert isinstance(larger, np.ndarray)
    assert (larger.shape, larger.dtype) == ((3, 32, 24), np.uint8)
    assert np.array_equal(larger[0], larger[2])
    assert larger.max() > 18
    fixed = RandSynthetic(store, 1.0, intensity=(-100, 300))(image, 0)
    assert (float(fixed.min()), float(fixed.max())) == (-100, 300)


def test_metadata_say_that_it_is_synthetic_and_keep_the_position(store):
    image = MetaTensor(real()["image"], affine=torch.eye(4) * 3, meta={"filename_or_obj": "patient_7.png"})
    made = RandSynthetic(store, 1.0)(image, 1)
    assert made.meta["synthetic"] is True
    assert "patient_7" not in str(made.meta["filename_or_obj"])
    assert "synthetic-" in made.meta["filename_or_obj"]
    assert float(made.affine[0, 0]) == 3
    assert "synthetic" not in image.meta


def test_classes_are_translated_and_a_class_without_images_is_left(store):
    replace = RandSyntheticd("image", store, 1.0, classes={0: "bright", 7: 0})
    assert number_of(replace(real(0))["image"]) >= 4
    assert number_of(replace(real(7))["image"]) < 4
    assert not replace(real(1))["synthetic"]
    assert not RandSyntheticd("image", store, 1.0)(real(2))["synthetic"]
    with pytest.raises(ValueError, match="label='gray' is none of the classes 'dark', 'bright', 'striped'"):
        RandSynthetic(store, classes={0: "gray"})


@pytest.mark.parametrize("label", ["bright", 1, np.int64(1), torch.tensor(1), torch.tensor([0, 1, 0]), np.array([1.0])])
def test_labels_come_in_any_form(store, label):
    assert number_of(RandSyntheticd("image", store, 1.0)(real(label))["image"]) >= 4


def test_a_label_that_is_no_class_is_named(store):
    with pytest.raises(ValueError, match="neither a class index, nor a class name, nor one-hot"):
        RandSyntheticd("image", store, 1.0)(real(torch.tensor([0.2, 0.5])))


def test_several_keys_get_the_same_image_and_seeds_repeat(store):
    sample = real(1, second=real()["image"])
    replace = RandSyntheticd(["image", "second"], store, 1.0)
    first = [replace.set_random_state(4)(sample)["image"] for _ in range(2)]
    both = replace.set_random_state(4)(sample)
    assert torch.equal(both["image"], both["second"])
    assert torch.equal(first[0], first[1])
    assert torch.equal(pickle.loads(pickle.dumps(replace.set_random_state(4)))(sample)["image"], first[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_s_batches_hold_both_kinds_before_and_after_other_transforms(store, num_workers):
    replace = RandSyntheticd("image", store, 0.5)
    for steps in ([replace, ScaleIntensityd("image"), Resized("image", (16, 16))],
                  [ScaleIntensityd("image"), Resized("image", (16, 16)), replace]):  # fmt: skip
        dataset = Dataset([real(n % 2) for n in range(24)], Compose(steps).set_random_state(0))
        batches = list(DataLoader(dataset, batch_size=8, num_workers=num_workers))
        images, made = (torch.cat([torch.as_tensor(batch[key]) for batch in batches]) for key in ("image", "synthetic"))
        assert images.shape == (24, 1, 16, 16)
        assert 4 < int(made.sum()) < 20
        assert float(images.min()) >= -1e-6
        assert float(images.max()) <= 1 + 1e-6


def test_an_image_of_other_dimensions_and_a_store_without_labels_are_refused(store, tmp_path):
    with pytest.raises(ValueError, match=r"image is \(1, 4, 4, 4\), .*planes does not fit: put EnsureChannelFirstd"):
        RandSynthetic(store, 1.0)(torch.zeros(1, 4, 4, 4), 0)
    writer = StoreWriter(tmp_path / "prompts", [{"caption": "a brain"}], shape=(1, 4, 4))
    writer.open()
    writer.write(0, torch.zeros(1, 1, 4, 4))
    writer.close()
    with pytest.raises(ValueError, match="prompts holds images without labels: generate them by class"):
        RandSynthetic(tmp_path / "prompts")
    with pytest.raises(FileNotFoundError, match="nowhere is not a store"):
        RandSynthetic(tmp_path / "nowhere")


def test_a_picture_that_a_loader_transposed_gets_a_transposed_one(store, tmp_path):
    """MONAI's loaders put columns first; the number's column of the store's image must stay a column."""
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)).save(tmp_path / "a.png")
    load = [LoadImaged("image"), EnsureChannelFirstd("image")]
    replace = RandSyntheticd("image", store, 1.0)
    upright = replace.set_random_state(0)({"image": torch.arange(96.0).view(1, 8, 12), "label": 0})["image"]
    column = number_of(upright)
    for steps, axis, place in [
        ([], 0, column),
        ([Flipd("image", 0)], 0, 11 - column),
        ([Rotate90d("image", 1)], 1, None),
    ]:
        loaded = Compose([*load, *steps])({"image": str(tmp_path / "a.png"), "label": 0})
        made = replace.set_random_state(0)(loaded)["image"][0]
        profile = made.as_tensor().mean(1 - axis)
        assert len(profile) == 12
        assert int(profile.argmax()) in ((column, 11 - column) if place is None else (place,))
        # both are turned back alike
        again = Compose([*load, *steps]).inverse({"image": made[None] if made.ndim == 2 else made})["image"]
        np.testing.assert_allclose(again[0].T, upright[0], atol=1e-3)


def test_a_volume_gets_one_that_points_the_same_way():
    made = torch.zeros(1, 4, 5, 6) - 1
    made[0, 3, 0, 5] = 1  # right, posterior, superior
    for codes in ("RAS", "LPS", "PIR", "SAL"):
        ornt = nib.orientations.axcodes2ornt(codes)
        affine = nib.orientations.inv_ornt_aff(
            nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt), (4, 5, 6)
        )
        shape = tuple(np.array((4, 5, 6))[ornt[:, 0].astype(int)])
        real = MetaTensor(torch.linspace(0, 1, 120).view(1, *shape), affine=torch.from_numpy(affine))
        assert "".join(nib.aff2axcodes(affine)) == codes
        found = matched(made, real)[0]
        place = np.array(np.unravel_index(int(found.argmax()), shape))
        ends = {"R": -1, "L": 0, "A": 0, "P": -1, "S": -1, "I": 0}
        assert place.tolist() == [(n - 1 if ends[code] else 0) for n, code in zip(shape, codes, strict=True)]


def test_names_are_translated_and_other_names_stay_real(tmp_path):
    rows = [{"label": n % 2, "class_name": ("Abdomen", "Femur")[n % 2]} for n in range(4)]
    writer = StoreWriter(tmp_path, rows, shape=(1, 4, 4), class_names=["Abdomen", "Femur"])
    writer.open()
    for number, members in enumerate(writer.shards()):
        writer.write(number, torch.ones(len(members), 1, 4, 4))
    writer.close()
    replace = RandSyntheticd("image", tmp_path, 1.0, classes={"Fetal femur": "Femur"})
    item = {"image": torch.rand(1, 4, 4), "label": "Fetal femur"}
    assert replace(item)["synthetic"]
    assert not replace({**item, "label": "Fetal brain"})["synthetic"]
    with pytest.raises(ValueError, match="none of the classes"):
        RandSyntheticd("image", tmp_path, 1.0)(item)
