# SPDX-License-Identifier: Apache-2.0
"""The job of the ControlCG bundle as a user starts it, with networks small enough for a test."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medcf.inferers.unchanged import UnchangedInferer
from medcf.metrics.novelty import fit_novelty
from medcf.phantoms import BrainMRI, write_brain_demo
from medcf.phantoms.brain.files import GEOMETRIES
from medcf.registry import METHODS

BUNDLE = Path(__file__).parents[2] / "bundles" / "controlcg"
CONFIG = str(BUNDLE / "configs" / "inference.json")
SMALL = {
    "network_def#channels": [8, 16],
    "network_def#attention_levels": [False, True],
    "network_def#num_head_channels": 8,
    "network_def#norm_num_groups": 8,
    "network_def#cross_attention_dim": 8,
    "classifier_def#init_features": 4,
    "classifier_def#growth_rate": 2,
    "classifier_def#block_config": [1, 1],
    "spatial_size": [16, 16, 16],
    "spacing": 12.0,
    "shared_options#num_inference_steps": 3,
    "method_options#controlcg#strength": 1.0,  # untrained weights change most from pure noise
    "case_list#demo_spacing": 8.0,
    "device": "cpu",
    "progress": False,
}

pytestmark = pytest.mark.bundle


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Overrides with random weights; the classifier sees class 1 in bright brains."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parser.update(SMALL)
    for name, key in {"model": "network_def", "classifier": "classifier_def"}.items():
        network = parser.get_parsed_content(key)
        for weight in network.parameters():
            if weight.ndim > 1 and not weight.any():
                torch.nn.init.normal_(weight, std=0.05)
        torch.save(network.state_dict(), folder / f"{name}.pt")
    weights = {f"weights#{name}": str(folder / f"{name}.pt") for name in ("model", "classifier", "novelty")}
    parser.update(weights)
    parser["novelty"].pop("state")
    parser.parse(True)
    noise = torch.rand(2, 20, 1, *SMALL["spatial_size"]) * 2 - 1
    torch.save(fit_novelty(parser.get_parsed_content("novelty"), [noise[0]], [noise[1]]), folder / "novelty.pt")
    return SMALL | weights


def write_series(folder: Path, seed: int = 3) -> None:
    """Write an axial MR series of a phantom, file names in no order: slices of 8 mm, pixels of 10 x 6 mm."""
    folder.mkdir(parents=True)
    sample = BrainMRI(seed).render(size=(32, 20, 20), spacing=8.0)
    for index in range(sample.image.shape[2]):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, generate_uid(entropy_srcs=[str(seed), str(index)])
        ds.StudyInstanceUID = generate_uid(entropy_srcs=[str(seed), "study"])
        ds.SeriesInstanceUID = generate_uid(entropy_srcs=[str(seed), "series"])
        ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(seed), "frame"])
        ds.Modality, ds.PatientID, ds.PatientName = "MR", "PHANTOM", "PHANTOM^BRAIN"
        ds.SeriesNumber, ds.InstanceNumber = 1, index + 1
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-50.0, -40.0, 8.0 * index + 7.0]
        ds.PixelSpacing, ds.SliceThickness = [10.0, 6.0], 8.0
        # columns run to the patient's left, rows to the back
        pixels = np.rint(sample.image[::-1, ::-1, index].T * 1000).astype(np.uint16)
        ds.Rows, ds.Columns = pixels.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        ds.PixelData = np.ascontiguousarray(pixels).tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / f"{(7 * index) % 20:02d}.dcm", enforce_file_format=True)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Two NIfTI volumes, one of them oblique and anisotropic with unlike codes, and a DICOM series."""
    folder = tmp_path_factory.mktemp("studies")
    records = write_brain_demo(folder, count=2, spacing=8.0, geometries=GEOMETRIES[:2])
    oblique = nib.load(records[1]["path"])
    changed = nib.Nifti1Image(np.asarray(oblique.dataobj), oblique.affine)
    changed.set_qform(oblique.affine, code=3)
    changed.set_sform(oblique.affine, code=2)
    nib.save(changed, records[1]["path"])
    write_series(folder / "series")
    return folder


@pytest.fixture(scope="module")
def finished(job, studies, tmp_path_factory):
    return job.run(dataset_dir=str(studies), output_dir=str(tmp_path_factory.mktemp("run") / "out"))


def load(path: Path):
    image = nib.load(path)
    return image, image.get_fdata(dtype=np.float32)


def test_every_case_is_asked_for_the_class_it_is_not(job, finished):
    rows = job.scores(finished)
    assert {row["format"] for row in rows} == {"nifti", "dicom"}
    assert len(rows) == 3
    for row in rows:
        assert int(row["target"]) == 1 - int(row["label_before"])
        assert row["unchanged"] == "False"
        assert (finished / row["case"] / "panel.png").stat().st_size > 10_000
    assert json.loads((finished / "summary.json").read_text())["cases"] == 3


def test_outputs_lie_in_the_voxels_of_a_nifti_input(job, finished):
    for row in job.scores(finished):
        if row["format"] != "nifti":
            continue
        source, before = load(Path(row["file"]))
        for name in ("counterfactual", "difference", "saliency", "mask"):
            image, _ = load(finished / row["case"] / f"{name}.nii.gz")
            assert image.shape == source.shape
            assert image.get_data_dtype() == np.float32
            np.testing.assert_array_equal(image.affine, source.affine)
            for code in ("qform_code", "sform_code"):
                assert image.header[code] == source.header[code]
            np.testing.assert_allclose(image.header.get_zooms(), source.header.get_zooms())
            assert b"SYNTHETIC" in bytes(image.header["descrip"])
        after, change, saliency, mask = (
            load(finished / row["case"] / f"{name}.nii.gz")[1]
            for name in ("counterfactual", "difference", "saliency", "mask")
        )
        assert np.abs(change).max() > 0.05
        np.testing.assert_array_equal(saliency, np.abs(change) * (mask > 0))
        window = float(row["white"]) - float(row["black"])
        kept = after > after.min()  # nothing is darker than the darkest voxel
        np.testing.assert_allclose((before + change * window)[kept], after[kept], atol=window * 1e-4)
        assert set(np.unique(mask)) == {0.0, 1.0}


def test_a_series_becomes_nifti_in_the_patients_space(job, finished, studies):
    (row,) = (row for row in job.scores(finished) if row["format"] == "dicom")
    image, after = load(finished / row["case"] / "counterfactual.nii.gz")
    change = load(finished / row["case"] / "difference.nii.gz")[1]
    before = after - change * (float(row["white"]) - float(row["black"]))
    sample = BrainMRI(3).render(size=(32, 20, 20), spacing=8.0)
    pixels = sample.image[::-1, ::-1] * 1000  # columns, rows, slices
    columns, rows, slices = np.meshgrid(*(np.arange(n) for n in pixels.shape), indexing="ij")
    lps = np.stack([6.0 * columns - 50, 10.0 * rows - 40, 8.0 * slices + 7], axis=-1)
    voxel = (lps * [-1, -1, 1] - image.affine[:3, 3]) @ np.linalg.inv(image.affine[:3, :3]).T
    index = np.rint(voxel).astype(int)
    np.testing.assert_allclose(voxel, index, atol=1e-4)
    assert sorted(image.shape) == sorted(pixels.shape)
    found = before[tuple(np.moveaxis(index, -1, 0))]
    kept = after[tuple(np.moveaxis(index, -1, 0))] > after.min()
    np.testing.assert_allclose(found[kept], pixels[kept], atol=1)


def test_repeating_a_run_changes_nothing_and_a_lost_case_comes_back(job, studies, finished, tmp_path):
    before = job.scores(finished)
    lost, kept = before[0]["case"], before[1]["case"]
    volume = finished / lost / "counterfactual.nii.gz"
    expected = load(volume)[1]
    (finished / lost / "case.json").unlink()
    volume.unlink()
    stamp = (finished / kept / "case.json").stat().st_mtime_ns
    job.run(dataset_dir=str(studies), output_dir=str(finished))
    assert job.scores(finished) == before
    np.testing.assert_array_equal(load(volume)[1], expected)
    assert (finished / kept / "case.json").stat().st_mtime_ns == stamp


def test_broken_files_are_listed_and_the_others_done(job, studies, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = next(studies.glob("*.nii.gz"))
    (folder / "good.nii.gz").write_bytes(good.read_bytes())
    (folder / "half.nii.gz").write_bytes(good.read_bytes()[:2000])
    nib.save(nib.Nifti1Image(np.zeros((16, 16, 16), np.int16), np.eye(4)), folder / "blank.nii.gz")
    (folder / "notes.dcm").write_text("no study")
    words = job.command(dataset_dir=folder, output_dir=tmp_path / "out")
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("3 of 4 files failed, the others are done; ")
    with (tmp_path / "out" / "failures.csv").open() as file:
        failures = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert set(failures) == {"half.nii.gz", "blank.nii.gz", "notes.dcm"}
    assert all(row["reason"] and row["remedy"] for row in failures.values())
    assert [row["case"] for row in job.scores(tmp_path / "out")] == ["good"]


def test_without_volumes_it_works_on_phantoms_of_both_classes(job, tmp_path):
    out = job.run(**{"output_dir": str(tmp_path / "out"), "case_list#demo_count": 2, "method": "unchanged"})
    rows = job.scores(out)
    assert all("demo_inputs" in row["file"] for row in rows)
    with (out / "demo_truth" / "truth.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["0", "1"]
    for row in rows:
        change = load(out / row["case"] / "difference.nii.gz")[1]
        assert not change.any()


@pytest.mark.parametrize("method", ["controlcg", "ddim_inversion", "ilvr", "sdedit"])
def test_methods_are_exchanged_by_name(job, studies, tmp_path, method):
    folder = tmp_path / "in"
    folder.mkdir()
    good = next(studies.glob("*.nii.gz"))
    (folder / "good.nii.gz").write_bytes(good.read_bytes())
    (row,) = job.scores(job.run(dataset_dir=str(folder), output_dir=str(tmp_path / "out"), method=method))
    assert int(row["num_function_evaluations"]) > 0
    assert float(row["mean_absolute_difference"]) > 0.01
    assert ("round_trip_error" in row) == (method == "ddim_inversion")


def test_a_table_names_volumes_and_their_masks(job, studies, tmp_path):
    path = next(studies.glob("*.nii.gz"))
    image, values = load(path)
    half = values > 0
    half[: len(half) // 2] = False
    nib.save(nib.Nifti1Image(half.astype(np.uint8), image.affine), tmp_path / "mask.nii.gz")
    table = tmp_path / "table.csv"
    table.write_text(f"file,mask\n{path},{tmp_path / 'mask.nii.gz'}\n")
    out = job.run(datalist=str(table), output_dir=str(tmp_path / "out"))
    (row,) = job.scores(out)
    np.testing.assert_array_equal(load(out / row["case"] / "mask.nii.gz")[1], half)
    saliency = load(out / row["case"] / "saliency.nii.gz")[1]
    assert not saliency[: len(half) // 2].any()


def test_the_command_runs_from_anywhere(job, studies, tmp_path):
    words = job.command(dataset_dir=studies, method="unchanged")
    subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(job.scores(tmp_path / "output" / "controlcg" / "inference")) == 3


def test_labeled_volumes_of_the_user_are_evaluated(job, studies, tmp_path):
    paths = sorted(studies.glob("*.nii.gz"))
    lines = [f"{path},{label},{label},test" for label, path in enumerate(paths)]
    (tmp_path / "table.csv").write_text("file,label,subject,split\n" + "\n".join(lines) + "\n")
    changed = {"datalist": str(tmp_path / "table.csv"), "output_dir": str(tmp_path / "out"), "method": "unchanged"}
    job.run("evaluate_labeled.json", **changed)
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert figures["cases"] == figures["subjects"] == 2
    assert figures["ssim"]["mean"] == pytest.approx(1.0, abs=1e-5)
    assert [row["label"] for row in figures["per_case"]] == [0, 1]


class Planted(UnchangedInferer):
    """Brightens one voxel of the grid to the right of its middle, behind and above it."""

    voxel = (11, 6, 9)

    def run_pass(self, run):
        run.state.current[(run.index, ..., *self.voxel)] += 1


@pytest.fixture
def planted():
    METHODS.add("planted", "A change at a known place", Planted)
    yield "planted"
    METHODS.components.pop("planted")


def test_a_planted_change_is_where_it_was_planted_in_the_world_of_every_input(job, tmp_path, planted):
    records = write_brain_demo(tmp_path / "in", count=4, spacing=8.0)
    write_series(tmp_path / "in" / "series")
    out = job.run(dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"), method=planted)
    rows = job.scores(out)
    assert len(rows) == len(records) + 1
    offset = (np.array(Planted.voxel) - 7.5) * 12.0  # of a grid of 16 voxels of 12 mm around the brain
    for row in rows:
        image, change = load(out / row["case"] / "difference.nii.gz")
        mask = load(out / row["case"] / "mask.nii.gz")[1] > 0
        brain = np.argwhere(mask) @ image.affine[:3, :3].T + image.affine[:3, 3]
        middle = (brain.min(0) + brain.max(0)) / 2
        weights = change[change > 0]
        found = np.average(np.argwhere(change > 0), axis=0, weights=weights)
        world = image.affine[:3, :3] @ found + image.affine[:3, 3]
        distance = np.linalg.norm(world - middle - offset)
        assert distance < min(image.header.get_zooms()) / 2, row["case"]
