# SPDX-License-Identifier: Apache-2.0
"""What the README shows works, and is what the bundle does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged
from PIL import Image

import medcf
from medcf.phantoms import write_demo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_example_does_what_the_bundles_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    record = write_demo(tmp_path / "in", split="demo", count=1, label=0, formats=("png",))[0]
    Path(record["path"]).rename(tmp_path / "head.png")
    monkeypatch.chdir(tmp_path)  # a foreign folder: the bundle is found by its name
    exec(code, {})  # the README's own words
    assert "does not exist" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "results" / "head").iterdir()}
    assert files >= {"counterfactual.nii.gz", "difference.nii.gz", "trajectory.nii.gz", "panel.png", "case.json"}
    (tmp_path / "images").mkdir()
    (tmp_path / "head.png").rename(tmp_path / "images" / "head.png")
    config = ROOT / "bundles" / "diffice" / "configs" / "inference.json"
    options = ["--dataset_dir", "images", "--output_dir", "job", "--progress", "False"]
    subprocess.run([sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), *options], check=True)
    images = (tmp_path / folder / "head" / "counterfactual.nii.gz" for folder in ("results", "job"))
    ours, theirs = (np.asarray(nib.load(image).dataobj) for image in images)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    row = json.loads((tmp_path / "results" / "head" / "case.json").read_text())
    assert row["flipped"]


@pytest.mark.slow
def test_parts_of_ones_own_make_an_explainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    record = write_demo(tmp_path / "in", split="demo", count=1, label=0, formats=("png",))[0]
    Path(record["path"]).rename(tmp_path / "head.png")
    monkeypatch.chdir(tmp_path)
    exec(code.replace('"num_inference_steps": 50', '"num_inference_steps": 5'), {})
    files = {path.name for path in (tmp_path / "results" / "head").iterdir()}
    images = {f"{name}.nii.gz" for name in ("original", "counterfactual", "difference", "trajectory")}
    assert files == {*images, ".medcf.json", "case.json"}


@pytest.mark.parametrize("options", [{}, {"ensure_channel_first": True}])
def test_an_image_that_monai_has_loaded_is_explained_as_its_file_is(tmp_path: Path, options: dict[str, bool]) -> None:
    record = write_demo(tmp_path, split="demo", count=1, label=0, formats=("png",), overlays=True, color=True)[0]
    Image.open(record["path"]).convert("RGB").save(record["path"])  # MONAI does not know of the spacing in its text
    explain = medcf.load("diffice", method="unchanged", progress=False)
    loaded = LoadImaged("image", **options)({"image": record["path"]})["image"]
    assert float(loaded.max()) > 200
    ours, theirs = explain(record["path"]), explain(loaded)
    np.testing.assert_allclose(theirs.on_grid["image"].numpy(), ours.on_grid["image"].numpy(), atol=1e-6)
    np.testing.assert_allclose(theirs.counterfactual, ours.counterfactual, atol=1e-5)


def test_every_page_the_readme_and_the_docs_link_to_exists() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("bundles/*/docs/*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
