# SPDX-License-Identifier: Apache-2.0
"""Samples changed to another class by what a bundle's inference made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    EnsureChannelFirstd,
    Flipd,
    LoadImaged,
    Orientationd,
    Resized,
    ScaleIntensityd,
    Spacingd,
)
from PIL import Image

from medcf.data import CounterfactualRuns
from medcf.data.case import as_case
from medcf.inference.case_result import CaseResult
from medcf.inference.run_folder import RunFolder
from medcf.inference.writers import NiftiWriter
from medcf.runtime.subjects import subject_key, write_subjects
from medcf.transforms import RandCounterfactual, RandCounterfactuald

AFFINE = np.array([[0, 0, 2.0, -7], [-1.5, 0, 0, 4], [0, 1.0, 0, 1], [0, 0, 0, 1]])


def change(shape):
    """The change: brighter in one corner."""
    difference = np.zeros(shape, np.float32)
    difference[tuple(slice(2, n // 3) for n in shape)] = 0.2
    return difference


@pytest.fixture
def explained(tmp_path):
    """Explain images as a bundle does: target 1 adds `change`; the last one did not flip."""

    def explain(images: dict[str, np.ndarray], target=1, folder="run", flat=True):
        weights = tmp_path / "model.pt"
        weights.write_bytes(b"weights")
        write_subjects(weights, [subject_key("patient 3")])
        files = {}
        for name, values in images.items():
            files[name] = tmp_path / "data" / name
            files[name].parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".png"):
                Image.fromarray(values.T).save(files[name])
            else:
                nib.save(nib.Nifti1Image(values, AFFINE), files[name])
        run = RunFolder(tmp_path / folder, weights={"model": weights})
        cases = [replace(as_case(file), id=f"case{n}") for n, file in enumerate(files.values())]
        run.open(cases)
        for case, (name, values) in zip(cases, images.items(), strict=True):
            scale = 255.0 if flat else 1000.0
            original = values.astype(np.float32) / (scale if flat else 1)
            difference = change(values.shape)
            run.take(
                CaseResult(
                    case=case.id,
                    path=Path(case.path),
                    original=original,
                    counterfactual=original + difference * (1 if flat else scale),
                    difference=difference,
                    trajectory=None,
                    affine=AFFINE,
                    source_format="raster" if flat else "nifti",
                    row={
                        "case": case.id,
                        "file": str(case.path),
                        "target": target,
                        "unchanged": False,
                        "flipped": name != list(images)[-1],
                        **({"rows": 1} if flat else {}),
                    },
                    writers=[NiftiWriter()],
                )
            )
        run.release()
        return files

    return explain


def textured(*shape, seed=0):
    waves = sum(np.sin(axis / (3.0 + n)) for n, axis in enumerate(np.indices(shape)))
    noise = np.random.default_rng(seed).random(shape)
    return (80 + 20 * waves + 20 * noise).astype(np.uint8)


def load(*more):
    return Compose([LoadImaged("image"), EnsureChannelFirstd("image"), *more])


def test_the_change_is_added_to_the_loaded_picture_and_the_label_follows(explained, tmp_path):
    picture = textured(40, 30)
    files = explained({"a.png": picture, "b.png": picture})
    steps = load(RandCounterfactuald("image", tmp_path / "run", prob=1.0))
    found = steps({"image": str(files["a.png"]), "label": 0})
    np.testing.assert_allclose(found["image"][0], picture + 255 * change((40, 30)), atol=0.01)
    assert found["label"] == 1
    assert found["synthetic"] is True
    assert found["image"].meta["synthetic"] is True
    left = steps({"image": str(files["b.png"]), "label": 0})  # not flipped
    assert (left["label"], left["synthetic"]) == (0, False)
    np.testing.assert_array_equal(left["image"][0], picture)


def test_it_may_stand_after_scaling_flipping_cropping_and_resizing(explained, tmp_path):
    picture = textured(48, 36)
    files = explained({"a.png": picture, "b.png": picture})
    after = [
        Flipd("image", 0),
        CenterSpatialCropd("image", (40, 32)),
        Resized("image", (80, 64)),
        ScaleIntensityd("image", -1, 1),
    ]
    changed = load(*after, RandCounterfactuald("image", tmp_path / "run", 1.0))(
        {"image": str(files["a.png"]), "label": 0}
    )
    plain = load(*after)({"image": str(files["a.png"])})["image"]
    low, high = (float(end) for end in torch.tensor(picture[::-1][4:44, 2:34].astype(float)).aminmax())
    expected = torch.nn.functional.interpolate(
        torch.tensor(change((48, 36))[::-1][4:44, 2:34].copy())[None, None], (80, 64), mode="bilinear"
    )[0] * (255 * 2 / (high - low))
    difference = (changed["image"] - plain).as_tensor()
    torch.testing.assert_close(difference[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=0.06, rtol=0)
    assert float((difference - expected).abs().mean()) < 0.01


def test_a_volume_is_traced_through_orientation_and_spacing(explained, tmp_path):
    volume = textured(20, 24, 18).astype(np.int16) * 4
    files = explained({"a.nii.gz": volume, "b.nii.gz": volume}, flat=False)
    after = [Orientationd("image", "RAS", labels=None), Spacingd("image", (1.5, 1.5, 1.5)), ScaleIntensityd("image")]
    changed = load(*after, RandCounterfactuald("image", tmp_path / "run", 1.0))(
        {"image": str(files["a.nii.gz"]), "label": torch.tensor([1, 0])}
    )
    plain = load(*after)({"image": str(files["a.nii.gz"])})["image"]
    nib.save(nib.Nifti1Image(change(volume.shape) * 1000, AFFINE), tmp_path / "change.nii.gz")
    expected = load(*after[:2])({"image": str(tmp_path / "change.nii.gz")})["image"] / float(np.ptp(volume))
    difference = (changed["image"] - plain).as_tensor()
    assert float((difference - expected).abs().mean()) < 0.02 * float(expected.max())
    assert float(torch.corrcoef(torch.stack([difference.flatten(), expected.flatten()]))[0, 1]) > 0.97
    assert changed["label"].tolist() == [0, 1]


def test_among_several_target_classes_one_is_drawn(explained, tmp_path):
    images = {"a.png": textured(16, 16), "b.png": textured(16, 16)}
    files = explained(images)
    explained(images, target=2, folder="other")
    steps = load(RandCounterfactuald("image", [tmp_path / "run", tmp_path / "other"], 0.75, classes={1: 5, 2: 6}))
    steps.set_random_state(0)
    labels = [steps({"image": str(files["a.png"]), "label": 0})["label"] for _ in range(200)]
    assert 30 < labels.count(0) < 75
    assert min(labels.count(5), labels.count(6)) > 45


def test_the_file_is_found_after_the_dataset_moved_and_two_of_a_name_are_told_apart(explained, tmp_path):
    files = explained({"one/a.png": textured(16, 16), "two/a.png": textured(16, 16), "two/z.png": textured(16, 16)})
    runs = CounterfactualRuns(tmp_path / "run")
    assert len(runs) == 2
    assert [each.source.parent.name for each in runs.of("elsewhere/two/a.png")] == ["two"]
    assert runs.of("elsewhere/two/b.png") == []
    assert runs.labels == {1}
    assert runs.subjects == {subject_key("patient 3")}
    with pytest.raises(ValueError, match=r"three/a.png may be .*one/a.png and .*two/a.png"):
        runs.of("three/a.png")
    assert len(CounterfactualRuns(tmp_path / "run", flipped=False)) == len(files)
    image = torch.from_numpy(textured(16, 16).astype(np.float32))[None]
    change_it = RandCounterfactuald("image", runs, 1.0, source_key="path", class_names=["NSP", "SP"])
    found = change_it({"image": image, "path": files["one/a.png"], "label": "NSP"})
    assert found["label"] == "SP"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_collate(explained, tmp_path, num_workers):
    files = explained({f"{n}.png": textured(16, 16, seed=n) for n in range(9)})
    items = [{"image": str(files[f"{n}.png"]), "label": 0} for n in range(8)]
    dataset = Dataset(items, load(RandCounterfactuald("image", tmp_path / "run", 0.5)).set_random_state(1))
    batches = list(DataLoader(dataset, batch_size=4, num_workers=num_workers))
    made = torch.cat([torch.as_tensor(batch["synthetic"]) for batch in batches])
    assert torch.equal(torch.cat([batch["label"] for batch in batches]), made.long())
    assert 0 < int(made.sum()) < 8


def test_an_image_that_is_not_the_explained_one_is_refused(explained, tmp_path):
    files = explained({"a.png": textured(16, 20), "b.png": textured(16, 20)})
    turn = RandCounterfactual(tmp_path / "run", 1.0)
    with pytest.raises(ValueError, match=r"a.png looks other here than when it was explained \(correlation -?0\.\d+\)"):
        turn(torch.rand(1, 16, 20), files["a.png"])
    with pytest.raises(ValueError, match=r"a.png is now \(1, 8, 8\), and was explained as \(1, 16, 20\)"):
        turn(torch.rand(1, 8, 8), files["a.png"])
    with pytest.raises(ValueError, match="does not say of which file it is: give source_key"):
        turn(MetaTensor(torch.rand(1, 16, 20)))
    (tmp_path / "run" / "case0" / "counterfactual.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"counterfactual.nii.gz is missing: run the bundle's inference"):
        turn(torch.from_numpy(textured(16, 20))[None].float(), files["a.png"])
    with pytest.raises(FileNotFoundError, match="data holds no run of a bundle's inference"):
        RandCounterfactual(tmp_path / "data")
    for marker in (tmp_path / "run").glob("*/case.json"):
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"flipped": False}))
    with pytest.raises(ValueError, match=r"No counterfactual in .*run reached its class"):
        RandCounterfactual(tmp_path / "run")
