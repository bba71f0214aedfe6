# SPDX-License-Identifier: Apache-2.0
"""What is said of a case: no iterate that did not run, and one mean difference for pictures and for volumes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import medcf
from medcf.phantoms import write_demo, write_phantoms

ROOT = Path(__file__).parents[2]
QUICK = {"device": "cpu", "amp": False, "progress": False}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_demo(folder, count=1, formats=("png",))
    return next(folder.iterdir())


def test_an_early_stop_repeats_no_iterate(image, tmp_path):
    options = {"inferer#num_inference_steps": 20, "inferer#num_iterations": 4, "inferer#classifier_scales": [60]}
    explain = medcf.load("diffice", **QUICK, **options, **{"inferer#confidence_threshold": 0.01})
    result = explain(image)  # of the four passes the first is enough
    assert result.row["iterations"] == 1
    assert result.trajectory.shape[0] == 2
    assert len(result.row["confidences"]) == 2
    assert result.row["confidences"][-1] == result.row["confidence_after"]
    assert "confidence_2" not in result.row
    stored = nib.load(result.save(tmp_path) / "trajectory.nii.gz")
    assert stored.shape[-1] == 2


def test_an_input_of_the_target_class_has_no_iterate_and_its_files_do_not_say_synthetic(image, tmp_path):
    result = medcf.load("diffice", **QUICK)(image, target=0)
    assert result.row["unchanged"]
    assert result.trajectory.shape[0] == 1
    assert result.row["confidences"] == [result.row["confidence_before"]]
    assert not result.synthetic
    folder = result.save(tmp_path)
    for path in folder.glob("*.nii.gz"):
        assert b"SYNTHETIC" not in bytes(nib.load(path).header["descrip"]), path.name


def test_the_mean_difference_is_over_what_the_network_explains_of_a_picture_and_of_a_volume(image, tmp_path):
    attack = {"method": "attack", "inferer#num_steps": 2, "target": "opposite"}
    picture = medcf.load("diffice", **QUICK, **attack)(image)
    left, top, right, bottom = picture.region
    seen = picture.difference[left:right, top:bottom]
    assert picture.row["mean_absolute_difference"] == pytest.approx(float(np.abs(seen).mean()), rel=0.02)
    part = medcf.load("diffice", **QUICK, **attack, spacing=0.7)(image)  # the grid covers a part of the picture
    assert (part.region[2] - part.region[0]) * (part.region[3] - part.region[1]) < 0.7 * part.difference.size
    assert part.row["mean_absolute_difference"] > 1.2 * float(np.abs(part.difference).mean())
    write_phantoms("brain_mri", tmp_path, 1, spacing=4.0)
    (path,) = tmp_path.glob("*.nii.gz")
    options = {**attack, "method": "controlcg", "inferer#num_inference_steps": 4}
    options.pop("inferer#num_steps")
    volume = medcf.load("controlcg", **QUICK, **options, allow_synthetic=True)(path)
    inside = np.abs(volume.difference[volume.mask]).mean()
    assert volume.row["mean_absolute_difference"] == pytest.approx(float(inside), rel=1e-4)


@pytest.mark.slow
def test_the_log_of_a_command_counts_cases_in_a_few_lines(tmp_path):
    write_demo(tmp_path / "images", count=4, formats=("png",))
    config = ROOT / "bundles" / "diffice" / "configs" / "inference.json"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), "--dataset_dir", "images",
               "--output_dir", "out", "--device", "cpu", "--method", "sdedit", "--batch_size", "1",
               "--inferer#num_inference_steps", "50"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    lines = [line for line in done.stderr.replace("\r", "\n").split("\n") if "cases" in line and " of 4 " in line]
    assert 1 <= len(lines) <= 4
    assert "4 of 4 cases" in lines[-1]
    assert "it/s" not in done.stderr
