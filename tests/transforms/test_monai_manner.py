# SPDX-License-Identifier: Apache-2.0
"""The transforms are MONAI's in manner: pairs, aliases, back ends, arrays, tracking, history, saving."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose, Flipd, Invertd, LoadImaged, MapTransform, SaveImaged, Transform
from monai.utils import TransformBackends
from PIL import Image

from medcf import transforms
from medcf.data import StudyReader, grid_record, read
from medcf.transforms import (
    AddDifference,
    AddDifferenced,
    CorrectBias,
    DifferenceMap,
    DifferenceMapd,
    RandRegionSwap,
    RandRegionSwapd,
    RandVignette,
    RandVignetted,
    RemoveOverlays,
    RemoveOverlaysd,
    ToGrid,
    ToGridd,
)

ARRAYS = [name for name in transforms.__all__ if f"{name}d" in transforms.__all__]


def smooth(rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    return (60 + 1.5 * y + 0.7 * x + 30 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(smooth(64, 90)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def tracking():
    """Puts MONAI's switch back."""
    before = get_track_meta()
    yield set_track_meta
    set_track_meta(before)


def test_every_public_transform_is_a_pair_with_monai_s_aliases_and_back_ends() -> None:
    assert len(ARRAYS) == 13
    assert len(transforms.__all__) == 4 * len(ARRAYS)
    for name in ARRAYS:
        array, dictionary = getattr(transforms, name), getattr(transforms, f"{name}d")
        assert issubclass(array, Transform)
        assert issubclass(dictionary, MapTransform) or name == "RandRegionSwap"  # two pairs of keys at once
        assert dictionary is getattr(transforms, f"{name}D") is getattr(transforms, f"{name}Dict")
        assert array.backend == dictionary.backend
        assert set(array.backend) <= set(TransformBackends)
        assert array.backend


def test_arrays_give_what_tensors_give() -> None:
    pixels = smooth(64, 90).T[None]
    plain = torch.from_numpy(pixels.copy())
    for transform in (RemoveOverlays(), ToGrid((32, 40), 1.0)):
        torch.testing.assert_close(transform(pixels).as_tensor(), transform(plain).as_tensor())
    cleaned = RemoveOverlaysd("image")({"image": pixels})["image"]
    assert float(cleaned.max()) <= 1
    volume = np.random.default_rng(0).integers(1, 900, (1, 9, 8, 7)).astype(np.int16)
    spec = {"size": (8, 8, 8), "spacing": 1.0, "subject": "all"}
    mask = volume > 300
    there = ToGridd("image", **spec)({"image": volume, "mask": mask})
    assert there.keys() == {"image"}
    assert torch.equal(grid_record(there["image"]).mask, torch.from_numpy(mask))
    grid = there["image"]
    pred = np.asarray(grid) * 0.5
    torch.testing.assert_close(AddDifference()(pred, grid), AddDifference()(torch.from_numpy(pred), grid))
    maps = DifferenceMap()(np.asarray(grid), pred, pred * 0.5, mask=np.ones_like(pred))
    again = DifferenceMap()(*(torch.from_numpy(np.asarray(each)) for each in (grid, pred, pred * 0.5)))
    torch.testing.assert_close(maps, again)
    vignetted = RandVignette(prob=1.0).set_random_state(0)(pred)
    torch.testing.assert_close(vignetted, RandVignette(prob=1.0).set_random_state(0)(torch.from_numpy(pred)))


def test_bias_correction_takes_arrays_and_keeps_the_history() -> None:
    pytest.importorskip("SimpleITK")
    grid = np.indices((20, 20, 20)) - 9.5
    inside = (grid**2).sum(0) < 64
    values = (np.where(inside, 500 * np.exp(grid[0] / 30), 0)[None]).astype(np.float32)
    image = MetaTensor(values, applied_operations=[{"class": "Before"}])
    corrected = CorrectBias("nonzero")(image)
    assert corrected.applied_operations == [{"class": "Before"}]
    torch.testing.assert_close(CorrectBias("nonzero")(values).as_tensor(), corrected.as_tensor())
    assert float(corrected[0][inside].std()) < 0.7 * values[0][inside].std()


def test_the_dictionary_version_of_a_random_transform_draws_what_the_array_version_draws() -> None:
    image = torch.rand(1, 20, 24) * 2 - 1
    for seed in range(4):
        array = RandVignette(0.7).set_random_state(seed)
        both = RandVignetted(["a", "b"], 0.7).set_random_state(seed)({"a": image, "b": image})
        assert torch.equal(both["a"], array(image))
        assert torch.equal(both["a"], both["b"])
    states = [torch.rand(1, 9, 9), torch.randint(0, 6, (1, 9, 9)), torch.rand(1, 9, 9), torch.randint(0, 6, (1, 9, 9))]
    keys = ("image", "segmentation", "image_true", "segmentation_true")
    mixed = RandRegionSwapd().set_random_state(3)(dict(zip(keys, states, strict=True)))
    image, segmentation = RandRegionSwap().set_random_state(3)(*states)
    assert torch.equal(mixed["image"], image)
    assert torch.equal(mixed["segmentation"], segmentation)


def test_a_seeded_compose_reaches_the_random_transforms() -> None:
    image = torch.rand(1, 20, 24) * 2 - 1
    chain = Compose([RandVignetted("image", 1.0)])
    results = [chain.set_random_state(seed)({"image": image})["image"] for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_without_tracking_the_grid_says_what_to_do_and_the_rest_survives(picture: Path, tracking) -> None:
    tracked = RemoveOverlays()(read(picture))
    tracking(False)
    image = LoadImaged("image", reader="PILReader", ensure_channel_first=True)({"image": str(picture)})["image"]
    assert not isinstance(image, MetaTensor)
    cleaned = RemoveOverlays()(image)
    assert not isinstance(cleaned, MetaTensor)
    torch.testing.assert_close(cleaned, tracked.as_tensor())
    assert not isinstance(DifferenceMap()(cleaned, cleaned)["signed"], MetaTensor)
    for given in (image, tracked):
        with pytest.raises(RuntimeError, match=r"call monai\.data\.set_track_meta\(True\)") as error:
            ToGrid((32, 40))(given)
        assert "\n" not in str(error.value)


def test_what_was_done_before_is_undone_after(picture: Path) -> None:
    """Removing overlays keeps the history, and so do the grid and its inverse."""
    load = LoadImaged("image", reader=StudyReader, expanduser=False)
    grid = ToGridd("image", size=(64, 90), spacing=1.0)
    steps = Compose([load, Flipd("image", 0), RemoveOverlaysd("image"), grid])
    item = steps({"image": str(picture)})
    assert [entry["class"] for entry in item["image"].applied_operations] == ["Flip", "ToGrid"]
    item["pred"] = item["image"].clone()
    back = Invertd("pred", transform=steps, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert back.applied_operations == []
    torch.testing.assert_close((back.as_tensor()[0] + 1) / 2, torch.from_numpy(smooth(64, 90).T / 255).float())


@pytest.mark.parametrize("name", ["picture.png", "picture.nii", "volume.nii.gz"])
@pytest.mark.parametrize("ext", [".nii.gz", ".png", ".nrrd"])
@pytest.mark.parametrize("resample", [True, False])
def test_monai_saves_the_grid_its_inverse_and_the_counterfactual(tmp_path, name, ext, resample) -> None:
    if ext == ".png" and name.startswith("volume"):
        pytest.skip("a volume is not a PNG")
    affine = np.array([[-0.6, 0.1, 0, 5], [0.1, -0.4, 0, 7], [0, 0, 1.2, 9], [0, 0, 0, 1]])
    shape = (64, 90)
    stored = smooth(*shape).T
    if name.startswith("volume"):
        stored = np.stack([smooth(30, 40).T + 3 * k for k in range(20)], axis=2)
    if name.endswith("png"):
        Image.fromarray(stored.T).save(tmp_path / name)
    else:
        nib.save(nib.Nifti1Image(stored, affine), tmp_path / name)
    size = (20, 24, 18) if stored.ndim == 3 else (48, 56)
    options = {"subject": "all", "center": "image", "intensity": (0, 255)} if stored.ndim == 3 else {}
    steps = Compose(
        [
            LoadImaged("image", reader=StudyReader, expanduser=False),
            ToGridd("image", size=size, spacing=0.8, **options),
        ]
    )
    item = steps({"image": str(tmp_path / name)})
    item["pred"] = item["image"].clone()
    inverted = Invertd("pred", transform=steps, orig_keys="image", nearest_interp=False)(dict(item))
    added = AddDifferenced()(dict(item))
    for number, (data, values) in enumerate([(item, None), (inverted, stored / 127.5 - 1), (added, None)]):
        pixels = {"scale": 255, "output_dtype": np.uint8} if ext == ".png" else {}
        saver = SaveImaged(
            "pred", output_dir=tmp_path / str(number), output_ext=ext, resample=resample, separate_folder=False,
            print_log=False, **pixels,
        )  # fmt: skip
        saver(data)
        (file,) = (tmp_path / str(number)).iterdir()
        if ext != ".nii.gz":
            continue
        image = nib.load(file)
        found = image.get_fdata()
        own = number == 0 and not resample
        assert found.shape == (size if own else stored.shape)
        if own:
            np.testing.assert_allclose(image.affine, item["image"].affine, atol=1e-5)
            continue
        if not name.endswith("png"):
            np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        values = stored if values is None else values
        inside = np.zeros_like(found, bool)
        inside[tuple(slice(n // 4, -(n // 4)) for n in found.shape)] = True  # the grid need not hold all of it
        assert np.corrcoef(found[inside], values[inside])[0, 1] > 0.99


@pytest.mark.parametrize("high", [1.0, 255.0, 4095.0])
def test_a_picture_s_own_range_does_not_matter(high: float) -> None:
    pixels = torch.from_numpy(smooth(64, 90).T[None] / 255).float()
    expected = ToGrid((32, 40))(pixels)
    found = ToGrid((32, 40), intensity=None if high < 4000 else (0, high))(pixels * high)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), atol=1e-5, rtol=0)


def test_images_in_other_units_are_refused_with_the_remedy(picture: Path) -> None:
    """0 to 255 in place of [-1, 1] gave differences of hundreds of gray levels."""
    grid = ToGrid((32, 40))(read(picture))
    gray = (grid.as_tensor() + 1) * 127.5
    for transform in (AddDifferenced(), DifferenceMapd(units="gray_levels")):
        with pytest.raises(ValueError, match=r"pred ranges from .* to .*, but \[-1, 1\] is expected.*Scale"):
            transform({"image": grid, "pred": gray})
    with pytest.raises(ValueError, match=r"image ranges from .*but \[-1, 1\] is expected"):
        DifferenceMap("gray_levels")(gray, gray)
    assert float(DifferenceMap("gray_levels", (0, 255))(gray, gray + 10)["signed"].mean()) == pytest.approx(
        10, abs=1e-3
    )
    with pytest.raises(ValueError, match="bring both to the same units"):
        DifferenceMap()(gray, grid)
    with pytest.raises(ValueError, match="image ranges from"):
        RandVignette()(gray)
