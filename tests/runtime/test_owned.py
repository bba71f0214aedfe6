# SPDX-License-Identifier: Apache-2.0
"""Nothing of the user's is ever deleted: every way in which it once was, and the tricks around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medcf.data import Case, find_cases
from medcf.inference import RunFolder
from medcf.runtime.owned import RECORD, check_output_dir, fill_folder, remove_files, written_files


def long(value: str):
    return pytest.param(value, marks=pytest.mark.long)


ROOT = Path(__file__).parents[2]


def write(**files):
    return lambda folder: [(folder / name).write_text(text) for name, text in files.items()]


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def series(tmp_path):
    """A searched folder that holds the folder of a series."""
    folder = tmp_path / "S" / "ct17"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.dcm").write_bytes(b"slice %d" % number)
    return folder.parent


@pytest.mark.parametrize("where", [".", "ct17", ".."])
def test_an_output_folder_that_is_or_contains_an_input_is_refused(series, where):
    with pytest.raises(ValueError, match=r"--output_dir .* (is|contains|is inside) the .*Choose another folder"):
        check_output_dir(series / where, [series, *series.rglob("*.dcm")])


def test_a_link_to_the_inputs_is_the_inputs(series, tmp_path):
    (tmp_path / "link").symlink_to(series)
    with pytest.raises(ValueError, match="is the input"):
        check_output_dir(tmp_path / "link", [series])
    with pytest.raises(ValueError, match="is the input"):
        check_output_dir(series, [tmp_path / "link"])


def test_a_folder_among_the_inputs_is_allowed_when_it_is_empty_or_ours(series):
    check_output_dir(series / "results", [series])
    (series / "results").mkdir()
    check_output_dir(series / "results", [series])
    (series / "results" / "a.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds files that are not medcf's"):
        check_output_dir(series / "results", [series])
    (series / "ours").mkdir()
    (series / "ours" / "manifest.json").write_text('{"notice": "SYNTHETIC counterfactual images"}')
    check_output_dir(series / "ours", [series])


def test_only_listed_files_are_replaced_and_removed(tmp_path):
    folder = tmp_path / "case"
    fill_folder(folder, write(a="1", b="1"))
    (folder / "mine.txt").write_text("mine")
    fill_folder(folder, write(a="2"))
    assert content(folder) == {"a": b"2", "mine.txt": b"mine", RECORD: (folder / RECORD).read_bytes()}
    with pytest.raises(FileExistsError, match=r"mine\.txt is in the way"):
        fill_folder(folder, write(**{"mine.txt": "theirs"}))
    remove_files(folder)
    assert content(folder) == {"mine.txt": b"mine"}


def test_a_folder_of_ours_goes_with_its_last_file(tmp_path):
    def nested(folder):
        (folder / "series").mkdir()
        (folder / "series" / "1.dcm").write_text("1")

    assert fill_folder(tmp_path / "case", nested) == ["series/1.dcm"]
    remove_files(tmp_path / "case")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside"])
def test_an_edited_record_leads_nowhere(tmp_path, name):
    folder = tmp_path / "case"
    (tmp_path / "outside").write_text("mine")
    fill_folder(folder, write(a="1"))
    (folder / RECORD).write_text(json.dumps({"files": ["a", name, 7]}))
    assert written_files(folder) == ["a"]
    remove_files(folder)
    assert (tmp_path / "outside").read_text() == "mine"


def test_nothing_is_removed_or_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("mine")
    folder = tmp_path / "case"
    fill_folder(folder, write(a="1", b="1"))
    (folder / "b").unlink()
    (folder / "b").symlink_to(tmp_path / "elsewhere" / "a")
    remove_files(folder)
    assert (folder / "b").is_symlink()
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    remove_files(tmp_path / "linked")
    with pytest.raises(FileExistsError, match="is in the way"):
        fill_folder(tmp_path / "linked", write(c="1"))
    assert content(tmp_path / "elsewhere") == {"a": b"mine"}


def test_a_damaged_record_lists_nothing(tmp_path):
    fill_folder(tmp_path / "case", write(a="1"))
    for text in ("{", "[]", '{"files": 3}', '{"files": [[]]}'):
        (tmp_path / "case" / RECORD).write_text(text)
        assert written_files(tmp_path / "case") == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    fill_folder(tmp_path / "case", write(a="1"))

    def fails(folder):
        (folder / "a").write_text("2")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fill_folder(tmp_path / "case", fails)
    assert (tmp_path / "case" / "a").read_text() == "1"
    fill_folder(tmp_path / "case", write(a="3"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case"]


def test_files_of_an_earlier_result_stay_listed_until_they_are_gone(tmp_path, monkeypatch):
    fill_folder(tmp_path / "case", write(a="1", old="1"))
    move, moved = os.replace, []

    def dies(source, target):
        if Path(target).name == "new":
            raise KeyboardInterrupt
        moved.append(Path(target).name)
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            fill_folder(tmp_path / "case", write(a="2", new="2"))
    assert "a" in moved
    assert sorted(written_files(tmp_path / "case")) == ["a", "new", "old"]
    fill_folder(tmp_path / "case", write(a="3"))
    assert {name for name in content(tmp_path / "case") if name != RECORD} == {"a"}


def test_a_folder_of_the_users_that_is_called_like_a_case_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "patient1.png").write_bytes(b"1")
    (tmp_path / "out" / "patient1").mkdir(parents=True)
    (tmp_path / "out" / "patient1" / "a.png").write_bytes(b"mine")
    folder = RunFolder(tmp_path / "out", overwrite=True)
    with pytest.raises(ValueError, match=r"patient1 would be overwritten.*--output_dir"):
        folder.open([Case("patient1", (tmp_path / "in" / "patient1.png",))])
    assert (tmp_path / "out" / "patient1" / "a.png").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["scores.csv", "manifest.json"])
def test_a_table_of_the_users_is_not_overwritten(tmp_path, name):
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"mine": true}')
    with pytest.raises(ValueError, match=f"{name} would be overwritten"):
        RunFolder(tmp_path / "out", overwrite=True).open([Case("a", (tmp_path / "a.png",))])


@pytest.mark.parametrize("edited", ["..", "../in", ".", "", "/"])
def test_an_edited_manifest_removes_nothing_outside(tmp_path, edited):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"1")
    cases = [Case("a", (tmp_path / "in" / "a.png",))]
    folder = RunFolder(tmp_path / "out")
    folder.open(cases)
    folder.complete("a", {"case": "a"})
    folder._lock.close()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["inputs"][edited] = manifest["inputs"]["a"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for place in (tmp_path, tmp_path / "in"):
        (place / RECORD).write_text(json.dumps({"files": ["a.png", "in/a.png"]}))
    RunFolder(tmp_path / "out", overwrite=True).open(cases)
    assert (tmp_path / "in" / "a.png").read_bytes() == b"1"


def run_folder(folder, picture, **options):
    found = RunFolder(folder, **options)
    found.open([Case("a", (picture,))])
    return found


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"1")
    return tmp_path / "in" / "a.png"


@pytest.mark.parametrize("link", [False, True])
def test_a_file_called_lock_is_not_emptied(tmp_path, picture, link):
    out, mine = tmp_path / "out", tmp_path / "mine.txt"
    out.mkdir()
    mine.write_text("mine")
    if link:
        (out / ".lock").symlink_to(mine)
        with pytest.raises(OSError, match="choose another folder"):
            run_folder(out, picture)
    else:
        (out / ".lock").write_text("mine")
        run_folder(out, picture)
        assert (out / ".lock").read_text() == "mine"
    assert mine.read_text() == "mine"


def test_a_hidden_folder_of_the_users_is_not_taken_for_a_staging_folder(tmp_path):
    for name in (".case.partial", ".case.1.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    fill_folder(tmp_path / "case", write(a="1"))
    assert (tmp_path / ".case.partial" / "mine").exists()
    assert (tmp_path / ".case.1.partial" / "mine").exists()


def test_what_a_killed_process_staged_is_removed(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from medcf.runtime.owned import fill_folder\n"
        "fill_folder(Path(sys.argv[1]), lambda folder: ((folder / 'half').write_text('1'), os.kill(os.getpid(), 9)))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "case")], check=False)
    assert [path.name.startswith(".case.") for path in tmp_path.iterdir()] == [True]
    fill_folder(tmp_path / "case", write(a="1"))
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_a_table_that_came_after_a_run_without_results_stays(tmp_path, picture):
    run_folder(tmp_path / "out", picture).release()
    (tmp_path / "out" / "scores.csv").write_text("my measurements")
    with pytest.raises(ValueError, match=r"scores\.csv would be overwritten"):
        run_folder(tmp_path / "out", picture)
    with pytest.raises(ValueError, match=r"scores\.csv would be overwritten"):
        run_folder(tmp_path / "out", picture, overwrite=True)
    assert (tmp_path / "out" / "scores.csv").read_text() == "my measurements"


def test_what_another_run_or_save_left_is_not_this_runs_result(tmp_path, picture):
    folder = tmp_path / "out" / "a"
    fill_folder(folder, lambda staging: (staging / "case.json").write_text('{"case": "a"}'))
    with pytest.raises(ValueError, match=r"would be overwritten.*--overwrite true"):
        run_folder(tmp_path / "out", picture)
    run = run_folder(tmp_path / "out", picture, overwrite=True)
    assert run.done() == []
    run.complete("a", {"case": "a", "mine": True})
    run.release()
    fill_folder(folder, lambda staging: (staging / "case.json").write_text('{"case": "a"}'))
    with pytest.raises(ValueError, match=r"would be overwritten.*--overwrite true"):  # and not taken for its own
        run_folder(tmp_path / "out", picture)


def test_a_run_that_was_refused_lets_go_of_the_folder(tmp_path, picture):
    run_folder(tmp_path / "out", picture, config={"target": 0}).complete("a", {"case": "a"})
    refused = RunFolder(tmp_path / "out", config={"target": 1})
    with pytest.raises((ValueError, RuntimeError)):
        refused.open([Case("a", (picture,))])
    assert refused._lock is None


def test_results_are_not_searched_for_images(tmp_path, picture):
    fill_folder(picture.parent / "u1", lambda staging: (staging / "panel.png").write_bytes(b"panel"))
    with pytest.raises(ValueError, match="holds output of medcf"):
        find_cases(picture.parent / "u1")
    Image.fromarray(np.full((40, 50), 99, np.uint8)).save(picture)
    cases, failures = find_cases(picture.parent)
    assert ([case.id for case in cases], failures) == (["a"], [])


def write_series(folder):
    """Twelve CT slices of a ball."""
    folder.mkdir(parents=True)
    x, y, z = np.meshgrid(*[np.arange(-12, 12)] * 2, np.arange(-6, 6), indexing="ij")
    ball = np.where(x**2 + y**2 + 4 * z**2 < 100, 1000 + 20 * x + 10 * y, 0).astype(np.int16)
    for k in range(12):
        ds = pydicom.Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"1.2.3.4.{k + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = "1.2.3.1", "1.2.3.2", "CT"
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 12 * k]
        ds.PixelSpacing, ds.SamplesPerPixel, ds.PhotometricInterpretation = [6, 6], 1, "MONOCHROME2"
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 24, 24, 16, 16, 15
        ds.PixelRepresentation, ds.PixelData = 1, np.ascontiguousarray(ball[:, :, k].T).tobytes()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / f"{k:02d}.dcm", enforce_file_format=True)


def job(bundle, *options):
    command = [sys.executable, "-m", "monai.bundle", "run", "--method", "unchanged", "--progress", "False"]
    command += ["--config_file", str(ROOT / "bundles" / bundle / "configs" / "inference.json"), *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.bundle
@pytest.mark.parametrize("overwrite", ["False", long("True")])
def test_pictures_in_a_folder_called_like_another_picture_survive(tmp_path, overwrite):
    """``d/patient1.png`` beside ``d/patient1/{a,b}.png``, with the output in the data folder."""
    (tmp_path / "patient1").mkdir()
    for name in ("patient1.png", "patient1/a.png", "patient1/b.png"):
        Image.fromarray(np.full((40, 50), 99, np.uint8)).save(tmp_path / name)
    before = content(tmp_path)
    done = job("diffice", "--dataset_dir", str(tmp_path), "--output_dir", str(tmp_path), "--overwrite", overwrite)
    assert done.returncode == 1
    assert "Choose another folder with --output_dir" in done.stderr.splitlines()[-1]
    assert content(tmp_path) == before


@pytest.mark.bundle
@pytest.mark.parametrize("output", [long("S"), "S/series", long(".")])
def test_a_dicom_series_survives(tmp_path, output):
    write_series(tmp_path / "S" / "series")
    before = content(tmp_path)
    for overwrite in ("False", "True"):
        options = ("--dataset_dir", str(tmp_path / "S"), "--output_dir", str(tmp_path / output))
        done = job("controlcg", *options, "--overwrite", overwrite)
        assert done.returncode == 1
        assert "Choose another folder with --output_dir" in done.stderr.splitlines()[-1]
        assert content(tmp_path) == before
