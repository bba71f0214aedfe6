# SPDX-License-Identifier: Apache-2.0
"""A classification script that knows nothing of medcf gains synthetic data by two more lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medcf.data import StoreWriter

SCRIPT = Path(__file__).with_name("classify.py")
AFTER = ("from monai.utils import set_determinism\n", "    augment = [\n")


def run(folder: Path, lines: tuple[str, str] | None, *arguments: str) -> dict[str, float]:
    """Run the script, with two lines more if they are given."""
    source = SCRIPT.read_text(encoding="utf-8")
    for place, line in zip(AFTER, lines or (), strict=False):
        assert source.count(place) == 1
        source = source.replace(place, f"{place}{line}\n")
    script = folder / "script.py"
    script.write_text(source, encoding="utf-8")
    command = [sys.executable, str(script), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def picture(label: int, generator: np.random.Generator, contrast: float = 90) -> np.ndarray:
    """Stripes along the rows (0) or the columns (1), in noise."""
    stripes = np.sin(np.arange(32) * 0.5 + generator.uniform(0, 6)) * contrast
    values = 128 + (stripes[:, None] if label == 0 else stripes[None]) + generator.normal(0, 20, (32, 32))
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    """Two dozen pictures to train on, which show nothing but noise, a hundred to test, and a store of 200."""
    folder = tmp_path_factory.mktemp("planes")
    generator = np.random.default_rng(0)
    for split, count, contrast in (("train", 12, 0), ("test", 50, 90)):
        for label, name in enumerate(("disc", "ring")):
            (folder / split / name).mkdir(parents=True)
            for n in range(count):
                Image.fromarray(picture(label, generator, contrast)).save(folder / split / name / f"{n}.png")
    rows = [{"label": n % 2} for n in range(200)]
    writer = StoreWriter(folder / "store", rows, shape=(1, 32, 32), class_names=["disc", "ring"], shard_size=200)
    writer.open()
    made = np.stack([picture(row["label"], generator) for row in rows])
    writer.write(0, torch.from_numpy(made[:, None]).float() / 127.5 - 1)
    writer.close()
    return folder


def synthetic(folder: Path) -> tuple[str, str]:
    return (
        "from medcf.transforms import RandSyntheticd",
        f'        RandSyntheticd("image", {str(folder / "store")!r}, prob=0.9),',
    )


@pytest.mark.slow
def test_with_the_two_lines_a_classifier_learns_what_its_own_pictures_do_not_show(planes):
    epochs = ("--epochs", "40")
    without, with_lines = run(planes, None, *epochs), run(planes, synthetic(planes), *epochs)
    assert without["synthetic"] == 0
    assert with_lines["seen"] == without["seen"]  # as many gradient steps
    assert with_lines["synthetic"] == pytest.approx(0.9 * with_lines["seen"], rel=0.1)
    assert without["accuracy"] < 0.75
    assert with_lines["accuracy"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["CacheDataset", "PersistentDataset"])
@pytest.mark.parametrize(("loader", "workers"), [("DataLoader", "0"), ("DataLoader", "2"), ("ThreadDataLoader", "0")])
def test_any_dataset_and_loader_of_monai_takes_them(planes, dataset, loader, workers):
    arguments = ("--dataset", dataset, "--loader", loader, "--workers", workers, "--epochs", "2")
    found = run(planes, synthetic(planes), *arguments)
    assert found["seen"] == 48
    assert 36 <= found["synthetic"] <= 48


@pytest.mark.long
@pytest.mark.bundle
def test_volumes_take_the_counterfactuals_of_a_bundle_s_inference(tmp_path):
    """The demo brains are explained by controlcg; the same script learns from them and their counterfactuals."""
    bundle = Path(__file__).parents[2] / "bundles" / "controlcg" / "configs" / "inference.json"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle)]
    command += ["--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(file.read_text()) for file in sorted((tmp_path / "run").glob("*/case.json"))]
    flipped = [row for row in rows if row["flipped"]]
    assert flipped
    for split in ("train", "test"):
        for label in ("0", "1"):
            (tmp_path / split / label).mkdir(parents=True)
    for row in rows:
        image = nib.load(row["file"])
        nib.save(image, tmp_path / "train" / str(row["label_before"]) / Path(row["file"]).name)
    lines = (
        "from medcf.transforms import RandCounterfactuald",
        f'        RandCounterfactuald("image", {str(tmp_path / "run")!r}, prob=1.0),',
    )
    found = run(tmp_path, lines, "--size", "32", "32", "32", "--workers", "2", "--epochs", "2")
    assert found["synthetic"] == 2 * len(flipped)
    assert found["seen"] == 2 * len(rows)
