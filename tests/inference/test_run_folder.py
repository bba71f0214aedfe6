# SPDX-License-Identifier: Apache-2.0
"""A run's folder: done stays done, and nothing of two different runs is mixed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medcf.data import Case
from medcf.inference.case_result import MARKER
from medcf.inference.inputs import list_cases
from medcf.inference.run_folder import RunFolder
from medcf.inference.summary import finish_run, summarize
from medcf.runtime.errors import Failure
from medcf.runtime.fingerprint import config_fingerprint, describe_changes, hash_inputs, running_config, sha256
from medcf.runtime.owned import fill_folder

CONFIG = {"target": 1, "seed": 0, "inferer": {"scales": [5.0, 10]}, "device": "cpu", "batch_size": 8, "output_dir": "a"}


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    cases = []
    for name in "abc":
        (folder / f"{name}.png").write_bytes(name.encode())
        cases.append(Case(name, (folder / f"{name}.png",)))
    return cases


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    return {"model": tmp_path / "model.pt"}


def row(case, **changes):
    values = {
        "case": case, "file": case, "flipped": True, "unchanged": False, "confidence_before": 0.2,
        "confidence_after": 0.8, "mean_absolute_difference": 0.1,
        "num_function_evaluations": 3, "seconds": 1.0, "confidences": [0.2, 0.8],
    }  # fmt: skip
    return values | changes


def start(tmp_path, inputs, weights, config=None, **options):
    folder = RunFolder(tmp_path / "out", config=config or CONFIG, weights=weights, **options)
    done = folder.open(inputs)
    return folder, done


def leave_one_done(tmp_path, inputs, weights):
    folder, _ = start(tmp_path, inputs, weights)
    folder.complete("a", row("a"))
    stop(folder)


def stop(folder):
    folder._lock.close()
    folder._lock = None


def test_only_cases_with_a_marker_are_done(tmp_path, inputs, weights):
    folder, done = start(tmp_path, inputs, weights)
    assert done == []
    folder.complete("b", row("b"))
    half = folder.case_dir("c")
    fill_folder(half, lambda path: (path / "counterfactual.nii.gz").write_bytes(b"half a case"), run=folder.run)
    stop(folder)
    folder, done = start(tmp_path, inputs, weights)
    assert done == ["b"]
    assert folder.rows() == [row("b")]


@pytest.mark.parametrize(
    ("key", "value"), [("device", "cuda"), ("batch_size", 2), ("output_dir", "b"), ("inferer", {"scales": [5, 10.0]})]
)
def test_what_does_not_matter_does_not_stop_a_run(tmp_path, inputs, weights, key, value):
    leave_one_done(tmp_path, inputs, weights)
    start(tmp_path, inputs, weights, config=CONFIG | {key: value})


def test_a_changed_setting_is_named(tmp_path, inputs, weights):
    leave_one_done(tmp_path, inputs, weights)
    with pytest.raises(ValueError, match=r"config changed: target\n.*--output_dir.*--overwrite true"):
        start(tmp_path, inputs, weights, config=CONFIG | {"target": 0})


def test_changed_weights_are_named(tmp_path, inputs, weights):
    leave_one_done(tmp_path, inputs, weights)
    weights["model"].write_bytes(b"others")
    with pytest.raises(ValueError, match=r"weights changed: model \(model.pt\)"):
        start(tmp_path, inputs, weights)


def test_a_changed_input_is_named(tmp_path, inputs, weights):
    leave_one_done(tmp_path, inputs, weights)
    inputs[1].path.write_bytes(b"edited")
    (tmp_path / "in" / "d.png").write_bytes(b"d")
    now = [*inputs[1:], Case("d", (tmp_path / "in" / "d.png",))]
    with pytest.raises(ValueError, match=r"inputs changed: b\n"):
        start(tmp_path, now, weights)


def test_a_run_grows_and_keeps_what_is_gone(tmp_path, inputs, weights, caplog):
    leave_one_done(tmp_path, inputs, weights)
    (tmp_path / "in" / "d.png").write_bytes(b"d")
    folder, done = start(tmp_path, [*inputs[1:], Case("d", (tmp_path / "in" / "d.png",))], weights)
    assert done == []
    assert "1 images of this run no longer exist, a first; their results are kept" in caplog.text
    for case in "bcd":
        folder.complete(case, row(case))
    finish_run(folder)
    with (tmp_path / "out" / "scores.csv").open() as file:
        assert [score["case"] for score in csv.DictReader(file)] == ["a", "b", "c", "d"]
    _, done = start(tmp_path, [*inputs, Case("d", (tmp_path / "in" / "d.png",))], weights)
    assert done == ["a", "b", "c", "d"]


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_an_output_that_is_missing_or_damaged_is_named_and_made_again(tmp_path, inputs, weights, caplog, harm):
    folder, _ = start(tmp_path, inputs, weights)
    folder.complete("a", row("a"), lambda path: (path / "panel.png").write_bytes(b"panel"))
    folder.complete("b", row("b"))
    stop(folder)
    if harm == "missing":
        (tmp_path / "out" / "a" / "panel.png").unlink()
    else:
        (tmp_path / "out" / "a" / "case.json").write_text('{"case": "a", ')
    folder, done = start(tmp_path, inputs, weights)
    assert done == ["b"]
    assert (
        f"{'panel.png is missing or empty' if harm == 'missing' else 'case.json is damaged'}; the case is"
        in caplog.text
    )
    folder.complete("a", row("a"), lambda path: (path / "panel.png").write_bytes(b"panel"))
    assert folder.done() == ["a", "b"]


def test_a_run_that_did_nothing_makes_room_for_another(tmp_path, inputs, weights):
    folder, _ = start(tmp_path, inputs, weights)
    (folder.case_dir("a")).mkdir()
    stop(folder)
    (tmp_path / "out" / "mine.txt").write_text("keep")
    folder, done = start(tmp_path, inputs, weights, config=CONFIG | {"target": 0})
    assert done == []
    assert folder.manifest["config"]["target"] == 0
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_a_failed_input_may_be_repaired(tmp_path, inputs, weights):
    folder, _ = start(tmp_path, inputs, weights)
    folder.complete("a", row("a"))
    folder.complete("c", row("c"))
    folder.fail(Failure(str(inputs[1].path), "read", "is damaged", "Export it again."))
    with pytest.raises(RuntimeError, match="1 of 3 files failed"):
        finish_run(folder)
    inputs[1].path.write_bytes(b"repaired")
    _, done = start(tmp_path, inputs, weights)
    assert done == ["a", "c"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inputs"]["b"]["sha256"] == sha256(inputs[1].path)


def test_a_failed_file_may_not_change_once_one_of_its_frames_is_done(tmp_path, weights):
    (tmp_path / "loop.dcm").write_bytes(b"two frames")
    frames = [Case(f"loop-{frame}", (tmp_path / "loop.dcm",), frame=frame) for frame in (0, 1)]
    folder, _ = start(tmp_path, frames, weights)
    folder.complete("loop-0", row("loop-0", file=str(frames[0].path)))
    folder.fail(Failure(str(frames[1].path), "read", "frame 1 is damaged", "Export it again."))
    with pytest.raises(RuntimeError, match="1 of 1 files failed"):
        finish_run(folder)
    (tmp_path / "loop.dcm").write_bytes(b"other frames")
    with pytest.raises(ValueError, match=r"inputs changed: loop-0\n"):
        start(tmp_path, frames, weights)


def test_the_end_of_a_resumed_run_waits_for_the_cases_of_all_sessions(tmp_path, inputs, weights):
    leave_one_done(tmp_path, inputs, weights)
    folder, done = start(tmp_path, inputs, weights)
    assert done == ["a"]
    folder.complete("b", row("b"))
    other = {"completed": 1, "failures": []}  # another process says that it has done c
    with pytest.raises(RuntimeError, match="shows 2 of 3 done cases"):
        folder.merge([other], patience=0)
    fill_folder(folder.case_dir("c"), lambda path: None, more=(MARKER,), run=folder.run)
    (folder.case_dir("c") / MARKER).write_text(json.dumps(row("c")))
    folder.merge([other], patience=0)
    assert folder.rows() == [row("a"), row("b"), row("c")]


@pytest.mark.parametrize("name", ["manifest.json", "summary.json"])
def test_a_file_of_somebody_else_in_the_place_of_a_table_stays(tmp_path, inputs, weights, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"mine": true}')
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=f"{name} would be overwritten"):
            start(tmp_path, inputs, weights, overwrite=overwrite)
    assert (tmp_path / "out" / name).read_text() == '{"mine": true}'


def test_what_save_left_is_not_taken_for_a_case_of_the_run(tmp_path, inputs, weights):
    fill_folder(tmp_path / "out" / "a", lambda path: (path / MARKER).write_text(json.dumps(row("a"))))
    folder, done = start(tmp_path, inputs, weights, overwrite=True)
    assert done == []
    folder.complete("a", row("a", seconds=2.0))
    assert folder.rows() == [row("a", seconds=2.0)]


def test_overwrite_removes_the_old_run_and_nothing_else(tmp_path, inputs, weights):
    folder, _ = start(tmp_path, inputs, weights)
    folder.complete("a", row("a"))
    stop(folder)
    (tmp_path / "out" / "mine.txt").write_text("keep")
    folder, done = start(tmp_path, inputs, weights, config=CONFIG | {"target": 0}, overwrite=True)
    assert done == []
    assert not folder.case_dir("a").exists()
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path, inputs, weights):
    leave_one_done(tmp_path, inputs, weights)
    out = tmp_path / "out"
    (out / "b").mkdir()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    number = gone.stdout.strip()
    begun = [out / f".scores.csv.{number}.tmp", out / "b" / f"..medcf.json.{number}.tmp"]
    mine = [out / ".mine.tmp", out / "a" / "notes.tmp"]
    for path in (*begun, *mine):
        path.write_text("half")
    folder, done = start(tmp_path, inputs, weights)
    assert done == ["a"]
    folder.complete("b", row("b"))
    folder.complete("c", row("c"))
    finish_run(folder)
    assert [path.exists() for path in begun] == [False] * 2
    assert all(path.exists() for path in mine)


def test_two_processes_cannot_share_a_folder(tmp_path, inputs, weights):
    _folder, _ = start(tmp_path, inputs, weights)
    with pytest.raises(RuntimeError, match="Another process is writing"):
        start(tmp_path, inputs, weights)


def test_a_killed_process_leaves_whole_markers_and_no_lock(tmp_path, inputs, weights):
    script = (
        "import sys; from pathlib import Path\n"
        "from medcf.data import Case; from medcf.inference.run_folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1]); folder.open([Case(str(i), (Path(sys.argv[2]),)) for i in range(2000)])\n"
        "for i in range(2000): folder.complete(str(i), {'case': str(i), 'padding': 'x' * 100000})\n"
    )
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", script, str(out), str(inputs[0].path)])
    try:
        deadline = time.monotonic() + 60
        while not (out / "5" / MARKER).exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    folder = RunFolder(out)
    done = folder.open([Case(str(i), inputs[0].files) for i in range(2000)])
    assert len(done) >= 6
    assert all(len(item["padding"]) == 100000 for item in folder.rows())


def test_tables_and_manifest_hold_what_happened(tmp_path, inputs, weights):
    folder, _ = start(tmp_path, inputs, weights, seed=7, overrides={"target": 1})
    for case in "abc":
        folder.complete(case, row(case, file=f"{case}.png"))
    finish_run(folder)
    with (tmp_path / "out" / "scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    assert [score["case"] for score in scores] == ["a", "b", "c"]
    assert "confidences" not in scores[0]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["weights"]["model"]["sha256"] == sha256(weights["model"])
    assert manifest["sessions"][0]["overrides"] == {"target": 1}
    assert {"python", "torch", "monai", "medcf"} <= set(manifest["sessions"][0]["versions"])
    assert "SYNTHETIC" in json.loads((tmp_path / "out" / "summary.json").read_text())["notice"]


def test_flip_rate_says_who_entered():
    rows = [
        row("flip"),
        row("stay", flipped=False),
        row("liver", out_of_distribution=True, flipped=False),
        row("already", unchanged=True, flipped=False, confidence_before=0.9, confidence_after=0.9),
    ]
    summary = summarize(rows, [Failure("x.png", "read", "is damaged", "Export it again.")])
    assert summary["flip_rate"] == pytest.approx(1 / 3)
    assert summary["flip_rate_in_distribution"] == 0.5
    assert (summary["mean_confidence_before"], summary["mean_confidence_after"]) == (0.2, 0.8)
    assert summary["entered"] == ["flip", "stay", "liver"]
    assert summary["left_out"] == {"already of the target class": ["already"], "failed": ["x.png"]}
    assert summary["out_of_distribution"] == ["liver"]


def test_a_folder_is_hashed_by_names_and_contents(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.dcm").write_bytes(b"slice")
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")
    (tmp_path / "two" / "a.dcm").rename(tmp_path / "two" / "b.dcm")
    assert sha256(tmp_path / "one") != sha256(tmp_path / "two")


def test_long_lists_of_changes_are_counted():
    before = {"inputs": {str(i): "old" for i in range(10)}}
    after = {"inputs": {str(i): "new" for i in range(10)}}
    assert describe_changes(before, after) == ["inputs changed: 0, 1, 2 and 7 more"]
    assert describe_changes(before, before) == []


def test_running_config_sees_overrides():
    from monai.bundle import ConfigParser

    parser = ConfigParser({"a": 1, "b": {"config": "$running_config()"}, "imports": [
        "$from medcf.runtime.fingerprint import running_config"]})  # fmt: skip
    parser.update({"a": 5})
    assert parser.get_parsed_content("b")["config"]["a"] == 5
    with pytest.raises(RuntimeError, match="expression"):
        running_config()
    assert set(config_fingerprint(CONFIG)) == {"target", "seed", "inferer"}


def test_a_series_is_hashed_by_its_own_files_and_its_mask(tmp_path):
    for name in ("1.dcm", "2.dcm", "other.dcm", "mask.nii"):
        (tmp_path / name).write_text(name)
    files = (tmp_path / "1.dcm", tmp_path / "2.dcm")
    case = Case("a", files)
    before = hash_inputs([case])["a"]
    (tmp_path / "other.dcm").write_text("changed")
    assert hash_inputs([case])["a"] == before
    assert hash_inputs([replace(case, mask=tmp_path / "mask.nii")])["a"] != before
    files[1].write_text("changed")
    assert hash_inputs([case])["a"] != before


def test_a_volume_and_its_mask_of_the_same_name_are_both_hashed(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii").write_text(folder)
    case = Case("a", (tmp_path / "images" / "a.nii",), mask=tmp_path / "masks" / "a.nii")
    before = hash_inputs([case])["a"]
    (tmp_path / "images" / "a.nii").write_text("changed")
    assert hash_inputs([case])["a"] != before


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_made_is_named(tmp_path, inputs, name):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"file.* cannot be written to.*--output_dir"):
        RunFolder(tmp_path / name, config=CONFIG).open(inputs)


def test_a_new_file_of_the_same_name_leaves_the_known_case_its_id(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "in" / name)
    options = {"spatial_dims": 2}
    folder = RunFolder(tmp_path / "out")
    folder.open(list_cases(tmp_path / "in", None, tmp_path / "out", options).cases)
    folder.complete("a", row("a"))
    stop(folder)
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "in" / "a.jpg")
    listed = list_cases(tmp_path / "in", None, tmp_path / "out", options)
    assert sorted(case.id for case in listed.cases) == ["a", "a_jpg", "b"]
    folder = RunFolder(tmp_path / "out")
    assert folder.open(listed.cases) == ["a"]


def test_overwrite_keeps_what_somebody_put_into_the_folder_of_a_case(tmp_path, inputs, weights):
    folder, _ = start(tmp_path, inputs, weights)
    folder.complete("a", row("a"), lambda path: (path / "panel.png").write_bytes(b"panel"))
    stop(folder)
    (tmp_path / "out" / "a" / "notes.txt").write_text("mine")
    folder, done = start(tmp_path, inputs, weights, overwrite=True)
    assert done == []
    assert sorted(path.name for path in (tmp_path / "out" / "a").iterdir()) == ["notes.txt"]
    folder.complete("a", row("a"), lambda path: (path / "panel.png").write_bytes(b"new"))
    assert folder.done() == ["a"]
    assert (tmp_path / "out" / "a" / "notes.txt").read_text() == "mine"


def test_the_pixels_beside_a_header_and_the_spacing_of_a_table_are_inputs(tmp_path):
    (tmp_path / "v.mhd").write_text("ObjectType = Image\n")
    (tmp_path / "v.raw").write_bytes(b"1")
    case = Case("v", (tmp_path / "v.mhd",))
    before = hash_inputs([case])
    (tmp_path / "v.raw").write_bytes(b"2")
    assert hash_inputs([case]) != before
    spaced = [replace(case, columns={"spacing_mm": (mm, mm)}) for mm in (0.2, 0.5)]
    assert hash_inputs(spaced[:1]) != hash_inputs(spaced[1:])
