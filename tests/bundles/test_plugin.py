# SPDX-License-Identifier: Apache-2.0
"""A third party's method from CONTRIBUTING.md, installed as a package, runs in both bundles by their own command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medcf.phantoms import write_demo

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.bundle


def blocks(number=0):
    """The page's Python and its entry point, of the first or the second example."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code, entry = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)[number] for kind in ("python", "toml"))
    return code, tomllib.loads(entry)["project"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed both of the page's packages."""
    folder = tmp_path_factory.mktemp("plugin")
    wheels = [write_wheel(folder, *blocks(number)) for number in range(2)]
    target = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([*install, *map(str, wheels)], check=True)
    return target


def write_wheel(folder, code, project):
    """Pack a module of the project's name, with the entry points of its pyproject.toml."""
    points = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in each.items()) for group, each in points]
    module = project["name"].replace("-", "_")
    info, wheel = f"{module}-1.0.dist-info", folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{module}.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", "".join(lines))
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def test_the_page_needs_twelve_lines():
    assert len(blocks()[0].splitlines()) <= 12


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["diffice", "controlcg"])
def test_the_installed_method_runs_by_the_bundles_own_command(site, tmp_path, bundle):
    words = ["--listing#demo_count", "1"]
    if bundle == "diffice":
        write_demo(tmp_path / "images", count=1, formats=("nifti",))
        words = ["--dataset_dir", "images"]
    config = ROOT / "bundles" / bundle / "configs" / "inference.json"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), "--method", "my_method",
               "--inferer#step", "0.2", "--target", "opposite", "--output_dir", "out", "--device", "cpu",
               *words]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (case,) = (path.parent for path in (tmp_path / "out").glob("*/case.json"))
    row = json.loads((case / "case.json").read_text())
    assert row["num_function_evaluations"] == 0  # it never asks the network
    assert row["iterations"] == 1
    assert len(row["confidences"]) == 2
    assert (case / "panel.png").is_file()
    difference = nib.load(case / "difference.nii.gz").get_fdata()
    assert np.median(difference[np.abs(difference) > 0]) == pytest.approx(0.1, abs=0.01)  # of the full range
    wrong = [*command, "--inferer#stepp", "0.2", "--overwrite", "True"]
    done = subprocess.run(wrong, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert "'my_method' does not take the option 'stepp'. Did you mean 'step'?" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_composed_method_runs_by_its_name_with_the_options_that_the_log_says(site, tmp_path):
    write_demo(tmp_path / "images", count=1, label=0, formats=("png",))
    config = ROOT / "bundles" / "diffice" / "configs" / "inference.json"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), "--method", "pulled_edit",
               "--method_options#pulled_edit", "{'strength': 0.4, 'num_iterations': 1}", "--inferer#pull", "0.3",
               "--shared_options#num_inference_steps", "10", "--dataset_dir", "images", "--output_dir", "out",
               "--device", "cpu"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = "The bundle sets options of pulled_edit in place of the method's own defaults: "
    (line,) = (line for line in done.stdout.splitlines() if said in line)
    assert "num_inference_steps 10 (50)" in line
    assert "strength 0.4 (0.6), by method_options" in line
    options = json.loads((tmp_path / "out" / "manifest.json").read_text())["options"]
    assert options["pull"] == {"value": 0.3, "from": "inferer", "default": 0.2}
    (row,) = (json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/case.json"))
    assert row["iterations"] == 1
    assert row["num_function_evaluations"] == 8  # four steps, each with and without the class
