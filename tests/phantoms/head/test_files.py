# SPDX-License-Identifier: Apache-2.0
"""Phantoms as files: what is read back is what was rendered, in millimeters."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from medcf.phantoms import draw_case, write_demo
from medcf.phantoms.__main__ import main

SPACING = 0.7


def rendered(index: int) -> np.ndarray:
    """The pixels that case ``index`` must hold."""
    _, sample = draw_case("fetal_head", "demo", index, label=0, size=(96, 120), spacing=SPACING)
    return np.rint(sample.image * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases, one of each format, with their truth elsewhere."""
    root = tmp_path_factory.mktemp("demo")
    write_demo(root / "in", count=3, size=(96, 120), spacing=SPACING, truth_dir=root / "truth")
    return root


def test_png_keeps_pixels_and_spacing(folder: Path) -> None:
    with Image.open(folder / "in" / "demo-4000000.png") as image:
        np.testing.assert_array_equal(np.asarray(image), rendered(0))
        assert 25.4 / image.info["dpi"][0] == pytest.approx(SPACING, rel=1e-3)


def test_nifti_keeps_pixels_and_spacing(folder: Path) -> None:
    image = nib.load(folder / "in" / "demo-4000001.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 0].T, rendered(1))
    assert image.header.get_zooms()[:2] == pytest.approx((SPACING, SPACING))


def test_dicom_keeps_pixels_and_spacing_and_says_it_is_synthetic(folder: Path) -> None:
    ds = pydicom.dcmread(folder / "in" / "demo-4000002.dcm")
    np.testing.assert_array_equal(ds.pixel_array, rendered(2))
    region = ds.SequenceOfUltrasoundRegions[0]
    assert (region.PhysicalDeltaX, region.PhysicalDeltaY) == pytest.approx((SPACING / 10, SPACING / 10))
    assert region.PhysicalUnitsXDirection == 3
    assert ds.SOPClassUID == pydicom.uid.UltrasoundImageStorage
    assert ds.SyntheticData == "YES"
    assert str(ds.PatientName).startswith("PHANTOM^")


def test_truth_lies_outside_the_folder_of_inputs(folder: Path) -> None:
    assert len(list((folder / "in").iterdir())) == 3
    with (folder / "truth" / "truth.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == ["demo-4000000", "demo-4000001", "demo-4000002"]
    subject, sample = draw_case("fetal_head", "demo", 1, label=0)
    assert float(rows[1]["hc_mm"]) == pytest.approx(sample.hc_mm, abs=1e-3)
    assert float(rows[1]["quality"]) == pytest.approx(sample.quality, abs=1e-5)
    with Image.open(folder / "truth" / "demo-4000001_standard_segmentation.png") as labels:
        standard = subject.render(size=(96, 120), spacing=SPACING).segmentation
        np.testing.assert_array_equal(np.asarray(labels), standard)


def test_files_are_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    write_demo(tmp_path, count=3, size=(96, 120), spacing=SPACING)
    for name in ("demo-4000000.png", "demo-4000002.dcm"):
        assert (tmp_path / name).read_bytes() == (folder / "in" / name).read_bytes()


def test_colored_overlays_make_rgb_files(tmp_path: Path) -> None:
    write_demo(tmp_path, count=2, formats=("png", "dicom"), overlays=True, color=True)
    with Image.open(tmp_path / "demo-4000000.png") as image:
        colored = np.asarray(image).astype(int)
    assert ((colored[..., 0] - colored[..., 2]) > 100).sum() > 20
    ds = pydicom.dcmread(tmp_path / "demo-4000001.dcm")
    assert ds.PhotometricInterpretation == "RGB"
    assert ds.pixel_array.shape == (128, 160, 3)


@pytest.mark.parametrize(("kind", "suffix"), [("png", ".png"), ("nifti", ".nii.gz"), ("dicom", ".dcm")])
def test_command_writes_the_number_of_files_asked_for(kind: str, suffix: str, tmp_path: Path) -> None:
    assert main(["fetal_head", "--out", str(tmp_path), "--count", "2", "--format", kind, "--label", "1"]) == 0
    assert [path.name.endswith(suffix) for path in sorted(tmp_path.iterdir())] == [True, True]


def test_command_refuses_an_empty_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fetal_head", "--out", str(tmp_path), "--count", "0"])
    assert "--count must be at least 1" in capsys.readouterr().err


def test_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['tiff'\] are unknown; choose from png, nifti, dicom"):
        write_demo(tmp_path, formats=("tiff",))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
@pytest.mark.parametrize("color", [False, True])
def test_dicom_conforms_to_the_standard(color: bool, tmp_path: Path) -> None:
    write_demo(tmp_path, count=1, formats=("dicom",), overlays=color, color=color)
    done = subprocess.run(["dciodvfy", tmp_path / "demo-4000000.dcm"], capture_output=True, text=True, check=False)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    # dicom3tools of Debian 12 is older than the attribute Synthetic Data (0008,001C).
    assert [line for line in errors if "(0x0008,0x001c)" not in line] == []
