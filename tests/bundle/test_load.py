# SPDX-License-Identifier: Apache-2.0
"""A bundle as one object: found by folder, name or archive, changing nothing else, with its own weights."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

import medcf
from medcf.bundle.root import bundle_folder

QUICK = {"method": "unchanged", "device": "cpu", "amp": False, "progress": False, "channels_last": False}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    rows, columns = np.mgrid[:64, :80]
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.uint8(100 + 50 * np.sin(rows / 7) * np.cos(columns / 9))).save(path)
    return path


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a bundle whose classifier says 0 with a confidence of its own."""
    folder = tmp_path_factory.mktemp("copies") / "renamed"
    shutil.copytree(bundle_folder("diffice"), folder)
    path = folder / "models" / "classifier.pt"
    state = torch.load(path, weights_only=True)
    for name, weight in state.items():
        if torch.is_floating_point(weight):
            state[name] = torch.zeros_like(weight) if not name.endswith("running_var") else weight
    torch.save(state, path)
    return folder


def confidence_of(result) -> float:
    return result.row["confidence_before"]


def test_a_bundle_is_loaded_by_folder_name_and_archive(picture, tmp_path, monkeypatch):
    archive = tmp_path / "diffice.zip"
    with zipfile.ZipFile(archive, "w") as stored:
        for path in bundle_folder("diffice").rglob("*"):
            if path.is_file():
                stored.write(path, Path("inside") / path.relative_to(bundle_folder("diffice")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sources = ["diffice", bundle_folder("diffice"), archive, archive]
    loaded = [medcf.load(source, **QUICK) for source in sources]
    assert loaded[2].folder == loaded[3].folder
    assert loaded[2].folder.is_relative_to(tmp_path)
    rows = [{key: value for key, value in one(picture).row.items() if key != "seconds"} for one in loaded]
    assert rows[1:] == rows[:1] * 3


def test_what_is_no_bundle_is_refused_with_those_that_are(tmp_path):
    (tmp_path / "a.zip").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as stored:
        stored.writestr("readme.txt", "no bundle")
    for source, error, message in [
        ("nobody", FileNotFoundError, "controlcg, diffice"),
        (tmp_path / "missing" / "x", FileNotFoundError, "does not exist"),
        (tmp_path / "a.zip", ValueError, "no zip archive"),
        (tmp_path / "b.zip", ValueError, "holds no bundle"),
    ]:
        with pytest.raises(error, match=message):
            medcf.load(source)


def test_a_misspelled_override_names_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown option tagret\. Did you mean target\?"):
        medcf.load("diffice", tagret=0)
    with pytest.raises(
        ValueError, match=r"Unknown option method_options::sdedti\. Did you mean method_options::sdedit"
    ):
        medcf.load("diffice", **{"method_options::sdedti": {}})


def test_an_override_reaches_the_parts():
    explainer = medcf.load(
        "diffice", **QUICK | {"method": "sdedit", "method_options#sdedit#strength": 0.4, "target": 0}
    )
    assert explainer.inferer.strength == 0.4
    assert type(explainer.inferer).__name__ == "SDEditInferer"


def test_nothing_global_changes(picture, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "--config_file", "/nowhere.json", "--tagret", "5", "-x"])
    logger = logging.getLogger()
    names = ("", "medcf", "monai", "ignite")

    def world():
        levels = [(logging.getLogger(name).level, tuple(logging.getLogger(name).handlers)) for name in names]
        threads = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
        numbers = np.random.get_state()  # noqa: NPY002 - the global one
        state = (random.getstate(), numbers[1].tobytes(), numbers[2], torch.get_rng_state().numpy().tobytes())
        return Path.cwd(), sys.argv[:], sys.path[:], dict(os.environ), levels, threads, state, logger.disabled

    before = world()
    explainer = medcf.load("diffice", **QUICK)
    assert explainer.inferer is not None
    after_loading = world()
    explainer(picture)
    assert after_loading == before
    assert world() == before


def test_a_copy_uses_its_own_weights_from_anywhere(copied, picture, tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path / "far")
    own = confidence_of(medcf.load(copied, **QUICK)(picture))
    assert own == pytest.approx(0.5, abs=1e-6)
    assert confidence_of(medcf.load("diffice", **QUICK)(picture)) != pytest.approx(own, abs=1e-3)

    workflow = ConfigWorkflow(
        config_file=str(copied / "configs" / "inference.json"),
        meta_file=str(copied / "configs" / "metadata.json"),
        logging_file=False,
        **QUICK | {"dataset_dir": str(picture.parent), "output_dir": str(tmp_path / "by_python")},
    )
    workflow.initialize()
    workflow.run()
    row = json.loads((tmp_path / "by_python" / "a" / "case.json").read_text())
    assert row["confidence_before"] == own


@pytest.mark.slow
def test_a_copy_uses_its_own_weights_by_args_file(copied, picture, tmp_path):
    arguments = QUICK | {
        "config_file": str(copied / "configs" / "inference.json"),
        "meta_file": str(copied / "configs" / "metadata.json"),
        "dataset_dir": str(picture.parent),
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "args.json").write_text(json.dumps(arguments))
    command = [sys.executable, "-m", "monai.bundle", "run", "--args_file", str(tmp_path / "args.json")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads((tmp_path / "out" / "a" / "case.json").read_text())
    assert row["confidence_before"] == pytest.approx(0.5, abs=1e-6)
