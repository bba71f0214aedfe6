# SPDX-License-Identifier: Apache-2.0
"""The job of the Diff-ICE bundle as a user starts it, with networks small enough for a test."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import nibabel as nib
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from medcf.metrics.novelty import fit_novelty
from medcf.phantoms import draw_case, write_demo
from medcf.runtime.error_report import root_cause

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffice"
CONFIG = str(BUNDLE / "configs" / "inference.json")
SMALL = {
    "network_def#channels": [8, 16],
    "network_def#attention_levels": [False, True],
    "network_def#num_head_channels": 8,
    "segmenter_def#channels": [4, 8, 8, 8],
    "predictor_def#features": 4,
    "inferer#num_inference_steps": 10,
    "inferer#num_iterations": 2,
    "inferer#classifier_scales": [5],
    "device": "cpu",
    "progress": False,
}

pytestmark = pytest.mark.bundle


def phantom(index: int) -> torch.Tensor:
    _, sample = draw_case("fetal_head", "train", index, size=(64, 80), spacing=1.75)
    return torch.from_numpy(sample.image)[None] * 2 - 1


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Overrides with random weights; the classifier calls everything class 0, so every case runs all passes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parser.update(SMALL)
    parts = {"model": "network_def", "segmenter": "segmenter_def", "classifier": "predictor_def"}
    for name, key in parts.items():
        network = parser.get_parsed_content(key)
        if name == "model":
            torch.nn.init.normal_(network.out[-1].conv.weight, std=0.05)
        if name == "classifier":
            network.head.bias.data = torch.tensor([3.0, 0.0])
        torch.save(network.state_dict(), folder / f"{name}.pt")
    weights = {f"weights#{name}": str(folder / f"{name}.pt") for name in (*parts, "novelty")}
    parser.update(weights)
    parser["novelty"].pop("state")
    parser.parse(True)
    detector = parser.get_parsed_content("novelty")
    images = torch.stack([phantom(index) for index in range(44)])
    torch.save(fit_novelty(detector, [images[:24]], [images[24:]]), folder / "novelty.pt")
    return SMALL | weights | {"allow_synthetic": True}  # phantoms as DICOM say that they are synthetic


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    write_demo(folder, count=5, overlays=(False, True))
    return folder


@pytest.fixture(scope="module")
def finished(job, studies, tmp_path_factory):
    """An uninterrupted run."""
    return job.run(dataset_dir=str(studies), output_dir=str(tmp_path_factory.mktemp("finished")), batch_size=2)


def test_killed_command_continues_and_gives_the_same_scores(job, studies, finished, tmp_path):
    out = tmp_path / "out"
    words = job.command(dataset_dir=studies, output_dir=out, batch_size=2)
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while not list(out.glob("*/case.json")):
            assert process.poll() is None, process.communicate()[0].decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    first = {path: path.stat().st_mtime_ns for path in out.glob("*/case.json")}
    assert 1 <= len(first) < 5
    assert not (out / "scores.csv").exists()
    job.run(dataset_dir=str(studies), output_dir=str(out), batch_size=2)
    assert all(path.stat().st_mtime_ns == written for path, written in first.items())
    assert job.scores(out) == job.scores(finished)
    for case in finished.glob("*/case.json"):
        ours, theirs = (nib.load(f / case.parent.name / "counterfactual.nii.gz").get_fdata() for f in (out, finished))
        assert (ours == theirs).all()
    assert len(json.loads((out / "manifest.json").read_text())["sessions"]) == 2


def test_every_case_has_all_files(job, finished, studies):
    cases = [row["case"] for row in job.scores(finished)]
    assert len(cases) == 5
    for case in cases:
        files = {path.name for path in (finished / case).iterdir() if not path.name.startswith(".")}
        images = {f"{name}.nii.gz" for name in ("original", "counterfactual", "difference", "trajectory")}
        assert files == {*images, "panel.png", "case.json"}
        assert Image.open(finished / case / "panel.png").width > 1000
    assert {row["format"] for row in job.scores(finished)} == {"raster", "nifti", "dicom"}
    assert any(float(row["overlay_fraction"]) > 0 for row in job.scores(finished))
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["cases"] == 5
    assert len(summary["entered"]) + len(summary["left_out"]["already of the target class"]) == 5


def test_batch_size_does_not_change_a_case(job, studies, finished, tmp_path):
    alone = job.run(dataset_dir=str(studies), output_dir=str(tmp_path), batch_size=1)
    for one, two in zip(job.scores(alone), job.scores(finished), strict=True):
        assert float(one["confidence_2"]) == pytest.approx(float(two["confidence_2"]), abs=1e-4)


def test_repeating_a_finished_run_rewrites_only_the_tables(job, studies, finished):
    before = job.scores(finished)
    job.run(dataset_dir=str(studies), output_dir=str(finished), batch_size=4)
    assert job.scores(finished) == before


def test_another_target_is_refused(job, studies, finished):
    with pytest.raises(RuntimeError) as error:
        job.start(dataset_dir=str(studies), output_dir=str(finished), target=0)
    assert "config changed: target" in str(root_cause(error.value))


@pytest.mark.long
def test_bad_files_are_listed_and_the_others_done(job, studies, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = next(studies.glob("*.png"))
    (folder / "good.png").write_bytes(good.read_bytes())
    (folder / "half.png").write_bytes(good.read_bytes()[:500])
    (folder / "text.png").write_text("no picture")
    (folder / "notes.dcm").write_text("no study")
    words = job.command(dataset_dir=folder, output_dir=tmp_path / "out")
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("3 of 4 files failed, the others are done; ")
    with (tmp_path / "out" / "failures.csv").open() as file:
        failures = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert set(failures) == {"half.png", "text.png", "notes.dcm"}
    assert all(row["reason"] and row["remedy"] for row in failures.values())
    assert [row["case"] for row in job.scores(tmp_path / "out")] == ["good"]


def test_empty_folder_fails_at_once(job, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises((ValueError, RuntimeError)) as error:
        job.start(dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    assert "no image" in str(root_cause(error.value))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "truncated"),
        (lambda path: torch.save({"epoch": 3}, path), "not a plain state dict"),
        (lambda path: torch.save({"w": torch.ones(1)}, path), "does not fit BundleUNet"),
    ],
    ids=["missing", "truncated", "checkpoint", "other network"],
)
def test_wrong_weights_fail_before_anything_is_computed(job, studies, tmp_path, damage, message):
    path = tmp_path / "model.pt"
    path.write_bytes(Path(job.options["weights#model"]).read_bytes())
    damage(path)
    with pytest.raises((ValueError, RuntimeError)) as error:
        job.start(**{"dataset_dir": str(studies), "output_dir": str(tmp_path / "out"), "weights#model": str(path)})
    text = str(root_cause(error.value))
    assert message in text
    assert "model.pt" in text
    assert "train.json" in text
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.long
def test_unknown_option_ends_the_command_with_its_name(job, studies, tmp_path):
    words = job.command(dataset_dir=studies, output_dir=tmp_path / "out", typo=1)
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "--typo" in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_images_it_works_on_phantoms(job, tmp_path):
    out = job.run(**{"output_dir": str(tmp_path / "out"), "case_list#demo_count": 3})
    rows = job.scores(out)
    assert {row["format"] for row in rows} == {"raster", "nifti", "dicom"}
    assert all("demo_inputs" in row["file"] for row in rows)
    assert (out / "demo_truth" / "truth.csv").is_file()


def test_another_number_of_phantoms_is_written_anew(job, tmp_path):
    out = str(tmp_path / "out")
    (tmp_path / "out" / ".demo_inputs.partial").mkdir(parents=True)
    (tmp_path / "out" / ".demo_inputs.partial" / "half.png").write_bytes(b"left by a killed run")
    for count in (2, 1):
        job.run(**{"output_dir": out, "case_list#demo_count": count, "overwrite": True})
        assert len(job.scores(Path(out))) == count


def test_a_table_names_the_images_and_what_they_lack(job, studies, tmp_path):
    names = sorted(path.name for path in studies.iterdir())[:2]
    table = tmp_path / "table.csv"
    table.write_text("file,spacing_mm\n" + "".join(f"{name},0.5\n" for name in names))
    out = job.run(dataset_dir=str(studies), datalist=str(table), output_dir=str(tmp_path / "out"))
    assert [float(row["spacing_row_mm"]) for row in job.scores(out)] == [0.5, 0.5]


def test_options_of_speed_give_a_similar_counterfactual(job, studies, finished, tmp_path):
    faster = {"amp": True, "channels_last": True}
    out = job.run(dataset_dir=str(studies), output_dir=str(tmp_path / "out"), batch_size=2, **faster)
    for half, full in zip(job.scores(out), job.scores(finished), strict=True):
        assert half["confidence_0"] != ""
        images = [nib.load(f / full["case"] / "counterfactual.nii.gz").get_fdata() for f in (out, finished)]
        assert abs(images[0] - images[1]).mean() < 0.02


def test_required_properties_are_there(job, studies, tmp_path):
    workflow = job.start(dataset_dir=str(studies), output_dir=str(tmp_path / "out"))
    assert workflow.check_properties() == []
    assert len(workflow.dataset_data) == 5
    assert workflow.evaluator.inferer is workflow.inferer


def test_network_takes_an_image_alone_and_can_be_traced(tmp_path):
    from monai.bundle import verify_net_in_out
    from monai.networks.nets import DiffusionModelUNet

    meta = str(BUNDLE / "configs" / "metadata.json")
    verify_net_in_out("network_def", meta_file=meta, config_file=CONFIG, n=2, p=1, any=32, device="cpu")
    parser = ConfigParser()
    parser.read_config(CONFIG)
    network = parser.get_parsed_content("network_def").eval()
    torch.nn.init.normal_(network.out[-1].conv.weight, std=0.05)
    image = torch.randn(1, 1, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        traced = torch.jit.trace(network, image)
        torch.jit.save(traced, tmp_path / "network.ts")
        expected = network(image, torch.zeros(1, dtype=torch.long), class_labels=torch.tensor([2]))
        torch.testing.assert_close(torch.jit.load(tmp_path / "network.ts")(image), expected)
    options = {k: v for k, v in parser["network_def"].items() if k != "_target_"}
    plain = DiffusionModelUNet(**options).eval()
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(image, torch.tensor([0]), class_labels=torch.tensor([2])), expected)
