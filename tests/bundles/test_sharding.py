# SPDX-License-Identifier: Apache-2.0
"""The job of the Diff-ICE bundle under torchrun: two processes give what one gives."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import pytest

from medcf.phantoms import write_demo

CONFIG = str(Path(__file__).parents[2] / "bundles" / "diffice" / "configs" / "inference.json")
OPTIONS = {
    "batch_size": 2,
    "inferer#num_inference_steps": 10,
    "inferer#num_iterations": 1,
    "inferer#classifier_scales": [30],
    "inferer#confidence_threshold": 0.95,
    "device": "cpu",
}
JOB = ["-m", "monai.bundle", "run", "--config_file", CONFIG]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]

pytestmark = pytest.mark.bundle


def words(**options):
    return [
        word
        for key, value in {**OPTIONS, "allow_synthetic": True, **options}.items()
        for word in (f"--{key}", str(value))
    ]


def shard(cwd, **options):
    command = [*TORCHRUN, "--nproc_per_node=2", *JOB, *words(**options)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def scores(folder):
    with (folder / "scores.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def same_results(one, two):
    assert scores(one) == scores(two)
    for case in (row["case"] for row in scores(one)):
        names = {path.name for path in (one / case).iterdir()}
        assert names == {path.name for path in (two / case).iterdir()}
        for name in (name for name in names if name.endswith(".nii.gz")):
            ours, theirs = (nib.load(folder / case / name) for folder in (two, one))
            assert (ours.get_fdata() == theirs.get_fdata()).all()
            assert (ours.affine == theirs.affine).all()
        assert (one / case / "panel.png").read_bytes() == (two / case / "panel.png").read_bytes()


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    write_demo(folder, count=5, overlays=(False, True))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    return folder


@pytest.fixture(scope="module")
def alone(studies, tmp_path_factory):
    """A run of one process without torchrun; one of its files is broken, in the part of another process."""
    out = tmp_path_factory.mktemp("alone")
    command = [sys.executable, *JOB, *words(dataset_dir=studies, output_dir=out / "out", progress=False)]
    result = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False, timeout=300)
    assert "1 of 6 files failed" in result.stderr, result.stderr
    return out / "out"


def test_two_processes_give_what_one_gives(studies, alone, tmp_path):
    result = shard(tmp_path, dataset_dir=studies, output_dir=tmp_path / "out")
    assert result.returncode == 1  # one file is broken
    assert "1 of 6 files failed" in result.stderr
    same_results(alone, tmp_path / "out")
    assert (tmp_path / "out" / "failures.csv").read_text() == (alone / "failures.csv").read_text()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (alone, tmp_path / "out")]
    for summary in summaries:
        for name in ("mean_seconds", "seconds_of_this_session"):
            summary.pop(name)
    assert summaries[0] == summaries[1]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [session["processes"] for session in manifest["sessions"]] == [2]
    text = result.stdout + result.stderr
    assert text.count("Counterfactuals (SYNTHETIC") == 1
    assert text.count("Diff-ICE:   0%") <= 2  # the bars of the main process, of its two batches


def test_a_killed_process_ends_the_job_and_another_number_continues(studies, alone, tmp_path):
    out = tmp_path / "out"
    options = words(dataset_dir=studies, output_dir=out, progress=False)
    command = [*TORCHRUN, "--nproc_per_node=2", *JOB, *options]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        deadline = time.monotonic() + 200
        while not list(out.glob("*/case.json")):
            assert job.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
        if not children.exists():
            job.kill()
            pytest.skip("needs Linux's /proc to find the processes of torchrun")
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        assert job.wait(60) != 0
    assert not (out / "scores.csv").exists()
    first = {path: path.stat().st_mtime_ns for path in out.glob("*/case.json")}
    subprocess.run([sys.executable, *JOB, *options], cwd=tmp_path, capture_output=True, check=False, timeout=300)
    assert all(path.stat().st_mtime_ns == written for path, written in first.items())
    same_results(alone, out)


def test_what_is_wrong_is_said_once_and_by_all(tmp_path):
    (tmp_path / "in").mkdir()
    result = shard(tmp_path, dataset_dir=tmp_path / "in", output_dir=tmp_path / "out")
    assert result.returncode == 1
    assert "no image" in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
