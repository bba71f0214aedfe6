# SPDX-License-Identifier: Apache-2.0
"""From two folders of images to a counterfactual in three commands, as the documentation has them, but tiny."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medcf.bundle import expect_own_models

BUNDLES = Path(__file__).parents[2] / "bundles"
CLASSES = ("round", "striped")
UNET = {"network_def#channels": "[8,16]", "network_def#attention_levels": "[False,True]"}
SHORT = {"device": "cpu", "iterations": 2, "batch_size": 4}
PLANES: dict[str, Any] = {
    "common": {"spatial_size": "[16,20]", "spacing": 7.0},
    "classifier": {"segmentation_guided": False, "predictor#features": 4, "predictor#num_blocks": 2},
    "model": {**UNET, "network_def#num_head_channels": 8},
    "inference": {
        **UNET,
        "network_def#num_head_channels": 8,
        "segmentation_guided": False,
        "predictor_def#features": 4,
        "predictor_def#num_blocks": 2,
        "inferer#num_inference_steps": 4,
        "inferer#num_iterations": 1,
    },
}
TOKENS = {"network_def#norm_num_groups": 8, "network_def#num_head_channels": 8, "network_def#cross_attention_dim": 8}
SMALL_DENSENET = {"init_features": 4, "growth_rate": 2, "block_config": "[1,1]"}
VOLUMES: dict[str, Any] = {
    "common": {"spatial_size": "[16,16,16]", "spacing": 2.0},
    "classifier": {f"network_def#{key}": value for key, value in SMALL_DENSENET.items()},
    "model": {**UNET, **TOKENS},
    "inference": {
        **UNET,
        **TOKENS,
        **{f"classifier_def#{key}": value for key, value in SMALL_DENSENET.items()},
        "num_inference_steps": 2,
    },
}

pytestmark = pytest.mark.bundle


def run(bundle: str, folder: Path, configs: tuple[str, ...], *, fails: bool = False, **options: Any) -> str:
    """Run one command in a folder of its own, as a user does, and return what it prints."""
    files = str([str(BUNDLES / bundle / "configs" / f"{name}.json") for name in configs])
    words = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(BUNDLES.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stdout + done.stderr


def pattern(kind: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A ball, or stripes within it, of varying brightness on a black ground: 0 to 255."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.7
    texture = np.where(np.sin(9 * axes[0]) > 0, 1.0, 0.4) if kind else 0.8
    return (inside * texture * rng.uniform(180, 250) + inside * rng.uniform(0, 5, shape)).astype(np.uint8)


def folders_of(root: Path, spatial_dims: int) -> Path:
    for kind, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(10):
            seed = 100 * kind + number
            if spatial_dims == 2:
                Image.fromarray(pattern(kind, (32, 40), seed)).save(root / name / f"{number}.png")
            else:
                volume = pattern(kind, (16, 16, 16), seed).astype(np.int16)
                nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2, 2, 1])), root / name / f"{number}.nii.gz")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bundle", "sizes", "dims"), [("diffice", PLANES, 2), pytest.param("controlcg", VOLUMES, 3, marks=pytest.mark.long)]
)
def test_two_folders_become_counterfactuals_in_three_commands(bundle, sizes, dims, tmp_path):
    data = folders_of(tmp_path / "data", dims)
    demo = {path: path.stat().st_mtime_ns for path in (BUNDLES / bundle / "models").iterdir()}
    common = {"dataset_dir": data, "models_dir": "models", **sizes["common"]}
    printed = run(bundle, tmp_path, ("train", "train_classifier"), **common, **SHORT, **sizes["classifier"])
    assert "0 = round (8 images), 1 = striped (8 images)" in printed
    assert "0 = round (2 images), 1 = striped (2 images)" in printed
    run(bundle, tmp_path, ("train",), **common, **SHORT, **sizes["model"])
    names = {path.name for path in (tmp_path / "models").iterdir()}
    assert names == {"classifier.pt", "novelty.pt", "model.pt", "classes.json"}
    for training in (tmp_path / "output" / bundle).glob("[!p]*"):  # all but the cache, "phantoms"
        assert (training / "checkpoint.pt").is_file()
        assert json.loads((training / "metrics.json").read_text())["metrics"]

    run(
        bundle,
        tmp_path,
        ("inference",),
        **common,
        **sizes["inference"],
        target="opposite",
        output_dir="out",
        device="cpu",
    )
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert all(row["target"] != row["label_before"] for row in rows)
    assert all(float(row["novelty"]) > 0 for row in rows)
    changed = nib.load(tmp_path / "out" / "round__0" / "difference.nii.gz")
    assert float(np.abs(changed.get_fdata()).max()) > 0
    assert {path: path.stat().st_mtime_ns for path in (BUNDLES / bundle / "models").iterdir()} == demo


@pytest.mark.long
def test_a_table_with_words_for_labels_trains_the_same_classifier(tmp_path):
    data = folders_of(tmp_path / "data", 2)
    rows = ["file,label,subject,split"]
    for name in CLASSES:
        rows += [f"{name}/{n}.png,{name},{name}{n},{'val' if n < 3 else 'train'}" for n in range(10)]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    options = {**PLANES["common"], **SHORT, **PLANES["classifier"], "models_dir": "models"}
    table = {"dataset_dir": data, "datalist": "table.csv"}
    printed = run("diffice", tmp_path, ("train", "train_classifier"), **options, **table)
    assert "0 = round (7 images), 1 = striped (7 images)" in printed
    assert json.loads((tmp_path / "models" / "classes.json").read_text()) == {"classes": list(CLASSES)}
    weights = torch.load(tmp_path / "models" / "classifier.pt", weights_only=True)
    assert next(iter(weights.values())).shape[1] == 1, "the predictor sees the image alone"

    fewer = (tmp_path / "table.csv").read_text().replace("striped/9.png,striped", "striped/9.png,round")
    (tmp_path / "table.csv").write_text(fewer)
    printed = run("diffice", tmp_path, ("train", "train_classifier"), **options, **table, fails=True)
    assert "cannot be resumed: the images or their labels" in printed


@pytest.mark.slow
def test_the_demos_weights_are_never_replaced_by_own_ones(tmp_path):
    data = folders_of(tmp_path / "data", 2)
    printed = run("diffice", tmp_path, ("train",), dataset_dir=data, **SHORT, fails=True)
    assert "name a folder for them with --models_dir DIR" in printed.splitlines()[-1]


def test_only_own_images_are_kept_out_of_a_bundles_models(tmp_path):
    weights = tmp_path / "models" / "model.pt"
    expect_own_models(weights, tmp_path, None, None)
    expect_own_models(tmp_path / "mine" / "model.pt", tmp_path, tmp_path, None)
    for own in ((tmp_path, None), (None, tmp_path / "t.csv")):
        with pytest.raises(ValueError, match="--models_dir DIR"):
            expect_own_models(weights, tmp_path, *own)
