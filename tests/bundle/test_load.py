# SPDX-License-Identifier: Apache-2.0
"""A bundle as one Python object: what it reads, what it leaves alone, and whose weights it uses."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch.utils.data import DataLoader, Dataset

import medcf
from medcf.phantoms import write_demo

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffice"
FAST = {"method": "unchanged", "progress": False, "device": "cpu", "amp": False}


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """A path of its own: MONAI's workflow puts the folder of its bundle there and leaves it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_demo(folder, count=1, formats=("png",))
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def confidence(image):
    return medcf.load(BUNDLE, **FAST)(image).row["confidence_before"]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same bundle, of the same name, with another classifier."""
    folder = tmp_path_factory.mktemp("other") / "mine"
    shutil.copytree(BUNDLE, folder)
    path = folder / "models" / "classifier.pt"
    weights = torch.load(path, weights_only=True)
    torch.manual_seed(0)
    torch.save({k: v + 0.1 * torch.randn_like(v) if v.is_floating_point() and v.ndim > 1 else v
                for k, v in weights.items()}, path)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def other_confidence(other, image, confidence):
    found = medcf.load(other, **FAST, novelty=None)(image).row["confidence_before"]
    assert abs(found - confidence) > 1e-4
    return found


def test_novelty_statistics_of_other_weights_are_refused(other):
    with pytest.raises(ValueError, match="novelty statistics belong to other weights"):
        _ = medcf.load(other, **FAST).novelty


@pytest.mark.parametrize("form", ["folder", "text", "name", "zip"])
def test_a_bundle_is_loaded_by_folder_name_or_archive(form, image, confidence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = {"folder": BUNDLE, "text": str(BUNDLE), "name": "diffice"}.get(form)
    if source is None:
        source = shutil.make_archive(str(tmp_path / "any"), "zip", BUNDLE.parent, "diffice")
    result = medcf.load(source, **FAST)(image)
    assert result.row["confidence_before"] == confidence
    assert result.save(tmp_path / "out") == tmp_path / "out" / result.case
    names = {"case.json", "counterfactual.nii.gz", "difference.nii.gz", "trajectory.nii.gz", "panel.png"}
    assert names <= {path.name for path in (tmp_path / "out" / result.case).iterdir()}


def test_what_is_no_bundle_is_named(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.zip is not a zip archive"):
        medcf.load(tmp_path / "text.zip")
    (tmp_path / "models").mkdir()
    empty = shutil.make_archive(str(tmp_path / "empty"), "zip", tmp_path, "models")
    with pytest.raises(ValueError, match=r"empty\.zip does not hold a bundle"):
        medcf.load(empty)
    with pytest.raises(FileNotFoundError, match=r"missing.* does not exist: give a bundle's folder"):
        medcf.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"'nothing' is not .*: controlcg, diffice"):
        medcf.load("nothing")
    (tmp_path / "configs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no configs/inference\.json"):
        medcf.load(tmp_path)


@pytest.mark.parametrize(("wrong", "right"), [("tagret", "target"), ("method_options#sdedt", "method_options::sdedit")])
def test_a_misspelled_override_is_an_error_that_names_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"Unknown option {wrong}. Did you mean {right}") as caught:
        medcf.load("diffice", **{wrong: 0})
    assert "--" not in str(caught.value)


def test_an_override_of_a_part_reaches_it():
    explainer = medcf.load(BUNDLE, **{**FAST, "method": "sdedit", "method_options#sdedit#strength": 0.4})
    assert explainer.inferer.options.strengths == (0.4,)
    assert explainer.network is explainer.network
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = explainer.nothing


def test_an_error_of_a_part_is_the_plain_one(tmp_path):
    with pytest.raises(ValueError, match="no_such_method"):
        _ = medcf.load(BUNDLE, **{**FAST, "method": "no_such_method"}).inferer


def state():
    root = logging.getLogger()
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global one is what must not move
    return {
        "cwd": os.getcwd(),
        "logging": (root.level, list(root.handlers), root.manager.disable),
        "random": (torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2:], random.getstate()),
        "torch": (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "sys": (list(sys.path), sys.excepthook),
    }


@pytest.mark.parametrize("argv", [["prog", "run", "--target", "0", "--nonsense"], ["pytest", "--config_file", "x"]])
def test_nothing_global_changes_and_the_command_line_is_not_read(argv, image, confidence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", argv)
    before = state()
    result = medcf.load("diffice", **FAST)(image)
    assert state() == before
    assert result.row["confidence_before"] == confidence
    assert result.row["target"] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_copied_bundle_uses_its_own_weights_in_a_workflow(other, image, other_confidence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {**FAST, "novelty": None, "dataset_dir": str(image.parent), "output_dir": str(tmp_path / "out")}
    workflow = ConfigWorkflow(
        config_file=str(other / "configs" / "inference.json"), meta_file=str(other / "configs" / "metadata.json"),
        logging_file=False, workflow_type="inference", **options,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    assert rows(tmp_path / "out")[0]["confidence_before"] == pytest.approx(other_confidence, abs=1e-6)


@pytest.mark.long
@pytest.mark.bundle
def test_a_copied_bundle_uses_its_own_weights_where_a_file_names_its_config(other, image, other_confidence, tmp_path):
    arguments = {
        **FAST,
        "novelty": None,
        "config_file": str(other / "configs" / "inference.json"),
        "dataset_dir": str(image.parent),
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    (tmp_path / "foreign").mkdir()
    command = [sys.executable, "-m", "monai.bundle", "run", "--args_file", str(tmp_path / "arguments.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "foreign", env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert rows(tmp_path / "out")[0]["confidence_before"] == pytest.approx(other_confidence, abs=1e-6)


def rows(output):
    return [json.loads(path.read_text()) for path in sorted(output.glob("*/case.json"))]


class Prepared(Dataset):
    def __init__(self, explainer, paths):
        self.explainer, self.paths = explainer, paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.explainer.prepare(self.paths[index])


@pytest.mark.long
def test_a_loaded_explainer_goes_into_the_workers_of_a_data_loader(image):
    explainer = medcf.load(BUNDLE, **FAST)
    expected = explainer.prepare(image)["image"]
    copy = pickle.loads(pickle.dumps(explainer))
    assert type(copy) is type(explainer)
    assert copy.overrides == FAST
    assert torch.equal(copy.prepare(image)["image"], expected)
    loader = DataLoader(
        Prepared(explainer, [image] * 2), num_workers=1, collate_fn=list, multiprocessing_context="spawn"
    )
    items = [item for batch in loader for item in batch]
    assert [item["case"] for item in items] == [image.stem] * 2
    for item in items:
        assert torch.equal(item["image"].as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))
    assert explainer.batch(items)[1].row["file"] == str(image)


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        ({}, "method='diffice', classes=['NSP', 'SP'], target='SP', device='cpu'"),
        ({"target": "nsp", "method": "sdedit"}, "method='sdedit', classes=['NSP', 'SP'], target='nsp', device='cpu'"),
        ({"target": "opposite"}, "target='opposite'"),
        ({"class_names": ["a", "b"], "target": 0}, "classes=['a', 'b'], target='a'"),
    ],
)
def test_an_explainer_says_what_it_is_and_builds_nothing_for_it(monkeypatch, overrides, shown):
    monkeypatch.setattr("medcf.runtime.weights.read_weights", lambda *_, **__: pytest.fail("weights were read"))
    explain = medcf.load("diffice", **{"device": "cpu", **overrides})
    assert repr(explain).startswith("BundleExplainer(bundle='diffice', method=")
    assert shown in repr(explain)
    assert "preprocessing" not in vars(explain)


def test_what_cannot_be_evaluated_is_shown_as_it_is_written():
    assert "classes='$1 / 0'" in repr(medcf.load("diffice", class_names="$1 / 0", device="cpu"))


def test_an_explainer_that_was_shown_works_and_still_takes_changes(image, confidence):
    explain = medcf.load(BUNDLE, **FAST)
    assert "method='unchanged'" in repr(explain)
    assert explain(image).row["confidence_before"] == confidence
    assert "method='unchanged'" in repr(explain)
