# SPDX-License-Identifier: Apache-2.0
"""Planes as files: what is read is what was rendered, the DICOM's region is the sector, the truth lies elsewhere."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from medcf.data import read, read_labels
from medcf.phantoms import PlanesDataset, draw_plane, write_phantoms, write_planes, write_planes_demo
from medcf.phantoms.__main__ import main

SIZE = (96, 96)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    root = tmp_path_factory.mktemp("planes")
    return root, write_planes_demo(root / "in", count=6, size=SIZE, truth_dir=root / "truth")


def drawn(record: dict, index: int):
    return draw_plane("demo", index, label=record["label"], site=None, planes=1)


def test_every_format_is_read_with_its_pixels_and_spacing(demo: tuple[Path, list[dict]]) -> None:
    suffixes = set()
    for index, record in enumerate(demo[1][:3]):
        image = read(record["path"])
        suffixes.add(Path(record["path"]).suffix)
        np.testing.assert_allclose(image[0].numpy().T, drawn(record, index).render(size=SIZE).image, atol=1e-6)
        steps = np.linalg.norm(image.affine.numpy()[:2, :2], axis=0)
        # a PNG holds whole pixels per meter
        np.testing.assert_allclose(steps, (record["spacing_col"], record["spacing_row"]), rtol=2e-3)
    assert suffixes == {".dcm", ".png", ".gz"}


def test_the_dicom_is_synthetic_ultrasound_whose_region_is_the_sector(demo: tuple[Path, list[dict]]) -> None:
    record = demo[1][3]
    ds = pydicom.dcmread(record["path"])
    sample = drawn(record, 3).render(size=SIZE)
    assert ds.SOPClassUID == pydicom.uid.UltrasoundImageStorage
    assert (ds.Modality, ds.PhotometricInterpretation, ds.SyntheticData) == ("US", "MONOCHROME2", "YES")
    assert str(ds.PatientName).startswith("PHANTOM^")
    np.testing.assert_array_equal(ds.pixel_array, np.rint(sample.image * 255))
    (region,) = ds.SequenceOfUltrasoundRegions
    assert (region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection) == (3, 3)
    assert region.PhysicalDeltaX == pytest.approx(sample.spacing_mm[1] / 10)
    rows, cols = np.nonzero(sample.sector)
    box = (
        region.RegionLocationMinY0,
        region.RegionLocationMinX0,
        region.RegionLocationMaxY1,
        region.RegionLocationMaxX1,
    )
    assert box == (rows.min(), cols.min(), rows.max(), cols.max())
    assert f"site {sample.site}" in ds.InstitutionName


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
def test_the_dicom_conforms_to_the_standard(demo: tuple[Path, list[dict]]) -> None:
    done = subprocess.run(["dciodvfy", demo[1][0]["path"]], capture_output=True, text=True, check=False)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    # dicom3tools of Debian 12 is older than the attribute Synthetic Data (0008,001C).
    assert [line for line in errors if "(0x0008,0x001c)" not in line] == []


def test_the_demo_has_all_classes_and_both_sites(demo: tuple[Path, list[dict]]) -> None:
    assert [record["label"] for record in demo[1]] == list(range(6))
    assert {record["site"] for record in demo[1]} == {"A", "B"}
    assert len({record["subject"] for record in demo[1]}) == 6


def test_the_truth_is_complete_and_outside_the_folder_of_inputs(demo: tuple[Path, list[dict]]) -> None:
    root, records = demo
    assert len(list((root / "in").iterdir())) == 6
    with (root / "truth" / "truth.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == [record["case"] for record in records]
    case, name = drawn(records[2], 2), records[2]["case"]
    expected = {
        "other_site": case.render(site=case.other, frame=case.site, again=True, size=SIZE).image * 255,
        "again": case.render(again=True, size=SIZE).image * 255,
        "segmentation": case.render(size=SIZE).segmentation,
    }
    for part, pixels in expected.items():
        stored = np.asarray(Image.open(root / "truth" / f"{name}_{part}.png"))
        np.testing.assert_array_equal(stored, np.rint(pixels), err_msg=part)


def test_phantoms_are_written_by_name(tmp_path: Path) -> None:
    records = write_phantoms("fetal_planes", tmp_path, 1, size=(32, 32))
    assert Path(records[0]["path"]).is_file()


def test_the_command_writes_the_set_as_a_training_table(tmp_path: Path) -> None:
    arguments = ["--count", "2", "--truth", "--split", "val", "--site", "B", "--format", "dicom"]
    assert main(["fetal_planes", "--out", str(tmp_path), *arguments]) == 0
    with (tmp_path / "labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    items = PlanesDataset("val", 2, size=(128, 128), site="B", progress=False)
    for row, item in zip(rows, items, strict=True):
        assert row["caption"] == item["caption"]
        assert int(row["label"]) == int(item["label"])
        image = read(tmp_path / row["file"])[0].numpy().T
        np.testing.assert_allclose(image, (item["image"][0].numpy() + 1) / 2, atol=1e-6)
        labels = read_labels(tmp_path / row["segmentation"])[0].numpy().T
        np.testing.assert_array_equal(labels, item["segmentation"][0].numpy())
        assert (tmp_path / row["other_site"]).is_file()
        assert (tmp_path / row["again"]).is_file()


@pytest.mark.parametrize(
    "arguments", [["fetal_planes", "--overlays"], ["fetal_head", "--site", "B"], ["chest_xray", "--label", "5"]]
)
def test_options_of_other_phantoms_are_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path)])


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="formats"):
        write_planes_demo(tmp_path, count=1, formats=("jpeg",))
    with pytest.raises(ValueError, match="kind='jpeg'"):
        write_planes(tmp_path, count=1, kind="jpeg")
