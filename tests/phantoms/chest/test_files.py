# SPDX-License-Identifier: Apache-2.0
"""Chests as files: what is read back is what was rendered, in millimeters, and the truth lies elsewhere."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from medcf.data import find_cases, read, read_labels
from medcf.inference import list_cases
from medcf.phantoms import ChestDataset, ChestState, draw_chest, write_chest_demo, write_chests
from medcf.phantoms.__main__ import main

SIZE = (96, 96)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    root = tmp_path_factory.mktemp("chests")
    return root, write_chest_demo(root / "in", count=12, size=SIZE, truth_dir=root / "truth")


def rendered(record: dict, index: int) -> np.ndarray:
    case = draw_chest("demo", index, label=record["label"], devices=float(bool(record["device"])))
    return case.render(size=SIZE).image


def test_every_format_is_read_with_its_pixels_and_spacing(demo: tuple[Path, list[dict]]) -> None:
    suffixes = set()
    for index, record in enumerate(demo[1][:3]):
        image = read(record["path"])
        suffixes.add(Path(record["path"]).suffix)
        np.testing.assert_allclose(image[0].numpy().T, rendered(record, index), atol=1e-6)
        steps = np.linalg.norm(image.affine.numpy()[:2, :2], axis=0)
        # a PNG holds whole pixels per meter
        np.testing.assert_allclose(steps, (record["spacing_col"], record["spacing_row"]), rtol=2e-3)
    assert suffixes == {".dcm", ".png", ".gz"}


def test_dicom_is_a_synthetic_chest_radiograph(demo: tuple[Path, list[dict]]) -> None:
    ds = pydicom.dcmread(demo[1][0]["path"])
    assert ds.SOPClassUID == pydicom.uid.ComputedRadiographyImageStorage
    assert (ds.Modality, ds.BodyPartExamined, ds.PhotometricInterpretation) == ("CR", "CHEST", "MONOCHROME2")
    assert ds.SyntheticData == "YES"
    assert list(ds.PatientOrientation) == ["L", "F"]
    assert str(ds.PatientName).startswith("PHANTOM^")
    assert [float(value) for value in ds.PixelSpacing] == pytest.approx([demo[1][0]["spacing_row"]] * 2)
    assert ds.PixelSpacing == ds.ImagerPixelSpacing


def test_half_of_the_demo_is_sick_and_half_has_a_device(demo: tuple[Path, list[dict]]) -> None:
    labels = [record["label"] for record in demo[1]]
    assert sorted(labels) == [0] * 6 + [1, 1, 2, 2, 3, 3]
    devices = [bool(record["device"]) for record in demo[1]]
    assert sum(devices) == 6
    assert sum(device for device, label in zip(devices, labels, strict=True) if label) == 3


def test_the_truth_is_complete_and_outside_the_folder_of_inputs(demo: tuple[Path, list[dict]]) -> None:
    root, records = demo
    assert len(list((root / "in").iterdir())) == 12
    with (root / "truth" / "truth.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == [record["case"] for record in records]
    index = next(i for i, record in enumerate(records) if record["label"] == 1)
    name = records[index]["case"]
    sample = draw_chest("demo", index, label=1, devices=float(bool(records[index]["device"])))
    expected = sample.render(size=SIZE)
    lesion = nib.load(root / "truth" / f"{name}_lesion_mask.nii.gz").get_fdata()[..., 0].T
    np.testing.assert_allclose(lesion, expected.lesion_mm, atol=1e-4)
    for part, file in (("segmentation", "segmentation"), ("lungs", "lungs_mask")):
        stored = np.asarray(Image.open(root / "truth" / f"{name}_{file}.png"))
        np.testing.assert_array_equal(stored, getattr(expected, part))
    healthy = np.asarray(Image.open(root / "truth" / f"{name}_normal.png")) / 255
    np.testing.assert_allclose(healthy, sample.render(ChestState(), again=True, size=SIZE).image, atol=1e-6)
    assert rows[index]["side"] in ("left", "right", "both")


def test_each_case_has_one_true_image_beside_its_masks(demo: tuple[Path, list[dict]]) -> None:
    """``python -m medcf.evaluation RUN --truth RUN/demo_truth`` refuses a case with several."""
    root, records = demo
    found, failures = find_cases(root / "truth")
    assert sorted(case.id for case in found) == sorted(f"{record['case']}_normal" for record in records)
    assert not failures


def test_bundles_list_the_demo_by_name(tmp_path: Path) -> None:
    found = list_cases(None, None, tmp_path, {"phantom": "chest_xray", "demo_count": 2, "demo_size": SIZE})
    assert len(found.cases) == 2
    assert not found.failures
    assert (tmp_path / "demo_truth" / "truth.csv").is_file()


def test_the_command_writes_the_set_as_a_training_table(tmp_path: Path) -> None:
    assert main(["chest_xray", "--out", str(tmp_path), "--count", "2", "--truth", "--split", "val"]) == 0
    with (tmp_path / "labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    items = ChestDataset("val", 2, size=(128, 128), progress=False)
    for index, (row, item) in enumerate(zip(rows, items, strict=True)):
        assert row["caption"] == item["caption"]
        assert int(row["label"]) == int(item["label"])
        image = read(tmp_path / row["file"])[0].numpy().T
        case = draw_chest("val", index)
        np.testing.assert_allclose(image, case.render(size=(128, 128)).image, atol=1e-6)
        shown = case.render(size=(128, 128), collimated=False).image
        np.testing.assert_allclose(shown, (item["image"][0].numpy() + 1) / 2, atol=1e-6)
        labels = read_labels(tmp_path / row["segmentation"])[0].numpy().T
        np.testing.assert_array_equal(labels, item["segmentation"][0].numpy())
        assert (tmp_path / row["normal"]).is_file()


@pytest.mark.parametrize(
    "arguments", [["chest_xray", "--overlays"], ["chest_xray", "--noise", "0.1"], ["fetal_head", "--label", "3"]]
)
def test_options_of_other_phantoms_are_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path)])


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="formats"):
        write_chest_demo(tmp_path, count=1, formats=("jpeg",))
    with pytest.raises(ValueError, match="kind='jpeg'"):
        write_chests(tmp_path, count=1, kind="jpeg")
