# SPDX-License-Identifier: Apache-2.0
"""What the user asks for is what runs: on the command line, in an arguments file, in Python, in a workflow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

import medcf
from medcf.phantoms import write_demo
from medcf.runtime.error_report import root_cause

BUNDLES = Path(__file__).parents[2] / "bundles"
QUICK = {"device": "cpu", "amp": False, "progress": False}


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """A path of its own: MONAI's workflow puts the folder of its bundle there and leaves it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_demo(folder, count=1, formats=("png",))
    return folder


def workflow(bundle="diffice", **options):
    configs = BUNDLES / bundle / "configs"
    return ConfigWorkflow(
        config_file=str(configs / "inference.json"), meta_file=str(configs / "metadata.json"), logging_file=False,
        workflow_type="inference", **{**QUICK, **options},
    )  # fmt: skip


def command(images, tmp_path, *words):
    """Run a bundle's own command on one image and return the process and the number of steps of its denoiser."""
    config = str(BUNDLES / "diffice" / "configs" / "inference.json")
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, "--dataset_dir", str(images),
            "--output_dir", str(tmp_path / "out"), "--device", "cpu", "--target", "opposite", "--progress", "False",
            *words]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BUNDLES.parent)}
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    cases = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/case.json")]
    return done, [case["num_function_evaluations"] for case in cases]


STEPS = ["--inferer#num_inference_steps", "10", "--inferer#guidance_scale", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--inferer::strength", "0.9"], ["--inferer#strength", "0.9"]])
def test_a_command_takes_precedence_over_the_options_of_the_config(images, tmp_path, words):
    done, evaluations = command(images, tmp_path, "--method", "sdedit", *STEPS, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert evaluations == [9]  # the config says 0.6 of 10 steps


@pytest.mark.slow
def test_an_arguments_file_does_so_too_and_the_command_goes_before_it(images, tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"method": "sdedit", "inferer#strength": 0.9}))
    done, evaluations = command(images, tmp_path, "--args_file", "args.json", *STEPS, "--inferer#strength", "0.3")
    assert done.returncode == 0, done.stderr[-2000:]
    assert evaluations == [3]


@pytest.mark.slow
@pytest.mark.parametrize("in_file", [False, True])
def test_an_option_of_another_method_ends_the_command_with_the_right_ones(images, tmp_path, in_file):
    words = ["--method", "attack", "--inferer#strength", "0.9"]
    if in_file:
        (tmp_path / "args.json").write_text(json.dumps({"method": "attack", "inferer#strength": 0.9}))
        words = ["--args_file", "args.json"]
    done, evaluations = command(images, tmp_path, *words)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "'attack' does not take the option 'strength'" in last
    assert "epsilon, num_iterations, num_steps" in last
    assert evaluations == []


@pytest.mark.parametrize("bundle", ["diffice", "controlcg"])
def test_load_takes_precedence_over_the_config_and_that_over_the_methods_defaults(bundle):
    options = {**QUICK, "method": "sdedit"}
    assert medcf.load(bundle, **options).inferer.options.strengths == ((0.6,) if bundle == "diffice" else (0.5,))
    assert medcf.load(bundle, **options, **{"inferer#strength": 0.9}).inferer.options.strengths == (0.9,)
    both = {"inferer#strength": 0.9, "method_options#sdedit#strength": 0.2}
    assert medcf.load(bundle, **options, **both).inferer.options.strengths == (0.9,)
    assert medcf.load(bundle, **options, **{"inferer#known_noise": "shared"}).inferer.options.known_noise == "shared"
    assert medcf.load(
        bundle, **options, **{"method_options#sdedit#known_noise": "shared"}
    ).inferer.options.strengths != (0.9,)


@pytest.mark.parametrize(
    ("bundle", "options", "message"),
    [
        ("diffice", {"inferer#sterngth": 0.9}, "Did you mean 'strength'"),
        ("diffice", {"inferer#epsilon": 0.9}, "'diffice' does not take the option 'epsilon'.*There are: .*gradient"),
        ("diffice", {"shared_options#epsilom": 0.9}, "No registered method takes the argument 'epsilom'"),
        ("diffice", {"method_options#diffice#typo": 1}, "'diffice' does not take the option 'typo'"),
        ("diffice", {"method_options#sdedit#epsilon": 0.9}, "'sdedit' does not take the option 'epsilon'"),
        ("controlcg", {"method": "unchanged", "guidance_scale": 9}, "'unchanged' does not take .*'guidance_scale'"),
        ("controlcg", {"method": "ilvr", "inferer#strength": 0.9}, "'ilvr' does not take the option 'strength'"),
        ("controlcg", {"typo": 1}, "Unknown option typo"),
    ],
)
def test_what_changes_nothing_is_an_error_in_python_and_in_a_workflow(bundle, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        medcf.load(bundle, **options)
    assert "--" not in str(caught.value).replace("give --method", "")
    found = workflow(bundle, **options)
    with pytest.raises(RuntimeError) as caught:
        found.initialize()
    assert re.search(message, str(root_cause(caught.value)), re.S)


def test_a_workflow_takes_the_users_word_and_names_of_the_users_own(images, tmp_path):
    options = {"dataset_dir": str(images), "output_dir": str(tmp_path / "out"), "method": "sdedit",
               "inferer#strength": "@mine", "mine": 0.9, "inferer#num_inference_steps": 10}  # fmt: skip
    found = workflow(**options)
    found.initialize()
    assert len(found.inferer.timesteps) == 9
    found = workflow(**{**options, "output_dir": str(tmp_path / "other"), "inferer#strength": 0.9})
    with pytest.raises(RuntimeError) as caught:
        found.initialize()
    assert "Unknown option mine" in str(root_cause(caught.value))  # nothing reads it now
