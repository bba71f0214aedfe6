# SPDX-License-Identifier: Apache-2.0
"""The ControlCG bundle flags volumes that its networks do not know, and says how to make or to leave out the test."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medcf.phantoms import write_brain_demo
from medcf.runtime.error_report import root_cause
from medcf.runtime.weights import read_weights

BUNDLE = Path(__file__).parents[2] / "bundles" / "controlcg"
CONFIGS = BUNDLE / "configs"

pytestmark = pytest.mark.bundle


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    """Options of a job that only looks at its volumes."""
    return {"method": "unchanged", "device": "cpu", "progress": False}


def write_ct(path: Path) -> None:
    """A head in Hounsfield units: air, a skull, soft tissue with some noise; nothing is stripped."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 72, 56)), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes)) / 0.9
    tissue = 40 + np.random.default_rng(0).normal(0, 5, radius.shape)
    values = np.select([radius < 0.85, radius < 0.95, radius < 1], [tissue, 900.0, 20.0], -1000.0)
    nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([2.5, 2.5, 3, 1])), path)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """Four unseen phantoms in the geometries of scanners, one of them upside down as well, and a CT."""
    folder = tmp_path_factory.mktemp("volumes")
    records = write_brain_demo(folder, "demo", 4)
    image = nib.load(records[0]["path"])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, ::-1], image.affine), folder / "upside_down.nii.gz")
    write_ct(folder / "ct.nii.gz")
    return folder


@pytest.fixture(scope="module")
def one_volume(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    write_ct(folder / "ct.nii.gz")
    return folder


def test_strange_volumes_are_flagged_and_phantoms_in_files_are_not(job, volumes, tmp_path):
    rows = job.scores(job.run(dataset_dir=str(volumes), output_dir=str(tmp_path)))
    flags = {row["case"]: row["out_of_distribution"] for row in rows}
    strange = {"upside_down", "ct"}
    assert len(flags) == 6
    assert {case for case, flag in flags.items() if flag == "True"} == strange
    for row in rows:
        assert (float(row["novelty"]) > 1) == (row["case"] in strange)
        assert float(row["novelty"]) == max(float(row["novelty_features"]), float(row["novelty_appearance"]))
        assert "novelty_anatomy" not in row
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["out_of_distribution"]) == strange
    assert "novelty (novelty.pt)" in json.loads((tmp_path / "manifest.json").read_text())["fingerprint"]["weights"]


def test_bundle_without_statistics_says_how_to_make_them_or_does_without(job, one_volume, tmp_path):
    missing = {"weights#novelty": str(tmp_path / "missing.pt"), "dataset_dir": str(one_volume)}
    with pytest.raises(RuntimeError) as error:
        job.start(output_dir=str(tmp_path / "out"), **missing)
    assert "missing.pt does not exist. Make it with calibrate.json over inference.json." in str(root_cause(error.value))
    off = tmp_path / "off.json"
    off.write_text('{"novelty": null}')
    (row,) = job.scores(job.run(str(off), output_dir=str(tmp_path / "without"), **missing))
    assert "out_of_distribution" not in row
    assert json.loads((tmp_path / "without" / "summary.json").read_text())["out_of_distribution"] is None
    manifest = json.loads((tmp_path / "without" / "manifest.json").read_text())
    assert set(manifest["weights"]) == {"model", "classifier"}


@pytest.mark.parametrize("overlay", ["real_t1", "real_hippocampus"])
def test_overlays_with_other_weights_leave_the_statistics_of_the_phantoms_out(overlay):
    parser = ConfigParser()
    parser.read_config([CONFIGS / "inference.json", CONFIGS / f"{overlay}.json"])
    assert parser.get_parsed_content("novelty") is None


SMALL = {
    "spatial_size": [16, 16, 16],
    "spacing": 2.0,
    "num_train": 40,
    "num_val": 24,
    "quantile": 0.9,
    "classifier_def#init_features": 4,
    "classifier_def#growth_rate": 2,
    "classifier_def#block_config": [1, 1],
    "bundle_root": str(BUNDLE),
    "device": "$torch.device('cpu')",
}


def calibrate(folder: Path, *overlays: str, **options: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([CONFIGS / f"{name}.json" for name in ("inference", "calibrate", *overlays)])
    parser.update({**SMALL, "models_dir": str(folder), "cache_dir": str(folder), **options})
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("classifier_def").state_dict(), folder / "classifier.pt")
    for part in ("initialize", "run"):
        parser.get_parsed_content(part)
    return parser


def test_calibration_gives_the_same_statistics_again_and_inference_takes_them(tmp_path):
    calibrate(tmp_path)
    states = [read_weights(tmp_path / "novelty.pt")]
    calibrate(tmp_path, export_path=str(tmp_path / "again.pt"))
    states.append(read_weights(tmp_path / "again.pt"))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    parser = ConfigParser()
    parser.read_config(CONFIGS / "inference.json")
    small = {key: value for key, value in SMALL.items() if key.startswith(("classifier", "spatial", "device"))}
    parser.update({**small, "weights#novelty": str(tmp_path / "novelty.pt")})
    parser["weights"]["classifier"] = str(tmp_path / "classifier.pt")
    detector = parser.get_parsed_content("novelty")
    assert bool(detector(torch.full((1, 1, 16, 16, 16), -1.0))["out_of_distribution"])


def test_volumes_of_the_user_are_taken_as_they_are(tmp_path):
    table = ["file,label,split"]
    rng = np.random.default_rng(0)
    for number in range(40):
        values = np.pad(rng.uniform(100, 200, (8, 8, 8)), 4).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([6.0, 6, 6, 1])), tmp_path / f"{number}.nii.gz")
        table.append(f"{number}.nii.gz,{number % 2},{'train' if number < 20 else 'val'}")
    (tmp_path / "table.csv").write_text("\n".join(table) + "\n")
    parser = calibrate(tmp_path, datalist=str(tmp_path / "table.csv"), spacing=6.0)
    dataset = parser.get_parsed_content("train#dataset")
    steps = [type(step).__name__ for step in dataset.transform.transforms]
    assert steps == ["LoadImaged", "ToGridd", "TargetsOnGridd"]
    assert len(dataset) == 20
    assert (tmp_path / "novelty.pt").is_file()


def test_the_papers_statistics_lie_beside_the_papers_weights():
    parsers = [ConfigParser(), ConfigParser()]
    for parser, base in zip(parsers, (("inference", "calibrate"), ("inference",)), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what belongs to the other base is copied
            parser.read_config([CONFIGS / f"{name}.json" for name in (*base, "paper")])
        parser["bundle_root"] = str(BUNDLE)
    paths = [parsers[0].get_parsed_content("export_path"), parsers[1].get_parsed_content("weights#novelty")]
    assert paths[0] == paths[1]
    assert paths[0].endswith("models/paper/novelty.pt")
