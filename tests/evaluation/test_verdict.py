# SPDX-License-Identifier: Apache-2.0
"""The verdict of a gate says when it rests on too few images or samples, and how many would do."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor, nn

from medcf.evaluation import Gate
from medcf.evaluation.verdict import denoising_row, report, share_row, verdict
from medcf.schedulers import create_scheduler


def figures(steps: list = (), shares: list = (), images: int = 8, samples: int = 32) -> dict:
    counts = {"images": images, "samples_per_class": samples, "weights": None, "components": 3, "training_images": 40}
    return {**counts, "denoising": list(steps), "samples": {"f": list(shares)} if shares else {}, "skipped": []}


def errors(count: int, ratio: float = 0.9, spread: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Errors of a network and of the bound for some images, with this expected ratio."""
    rng = np.random.default_rng(seed)
    bounds = rng.uniform(0.5, 1.5, count)
    return bounds * ratio * rng.lognormal(-(spread**2) / 2, spread, count), bounds


def test_the_interval_of_a_ratio_is_that_of_the_delta_method() -> None:
    found, bounds = errors(400)
    row = denoising_row(300, found, bounds, 1.0)
    assert row["ratio"] == pytest.approx(found.sum() / bounds.sum())
    deviation = (found - row["ratio"] * bounds).std(ddof=1) / 20 / bounds.mean()
    assert row["interval"] == pytest.approx([row["ratio"] + z * deviation for z in (-1.96, 1.96)], abs=0.2 * deviation)


def test_the_interval_covers_the_ratio_as_often_as_it_says() -> None:
    intervals = [denoising_row(0, *errors(30, seed=seed), 1.0)["interval"] for seed in range(100)]
    assert 0.88 <= np.mean([low < 0.9 < high for low, high in intervals]) <= 1


@pytest.mark.parametrize(("hits", "count"), [(32, 32), (24, 32), (1, 5), (0, 5)])
def test_the_interval_of_a_share_is_the_exact_one(hits: int, count: int) -> None:
    row = share_row("SP", hits, count, 0.6)
    low = 0 if hits == 0 else beta.ppf(0.025, hits, count - hits + 1)
    high = 1 if hits == count else beta.ppf(0.975, hits + 1, count - hits)
    assert row["interval"] == pytest.approx([low, high])
    assert row["passed"] == (hits / count >= 0.6)


def test_the_recommended_number_of_images_excludes_the_limit() -> None:
    few = [denoising_row(300, *errors(8, spread=0.4, seed=6), 1.0)]
    found = verdict(figures(few), available=8, wanted=64)
    assert few[0]["interval"][1] > 1
    assert found["passed"]
    assert found["weak"] == ["8 images do not exclude a ratio above its limit at t = 300"]
    (number,) = re.fullmatch(r"PASS \(weak: 8 images; use --num_val (\d+)\)", found["verdict"]).groups()
    assert 8 < int(number) < 64
    more = [denoising_row(300, *errors(2 * int(number), spread=0.4, seed=6), 1.0)]
    assert verdict(figures(more, images=2 * int(number)), 256, 64)["verdict"] == "PASS"


def test_both_options_are_named_where_both_are_too_small() -> None:
    row = {"t": 5, "ratio": 0.75, "limit": 1.0, "interval": [0.25, 1.25], "passed": True}
    found = verdict(figures([row], images=64), available=64, wanted=64)
    assert found["verdict"] == "PASS (weak: 64 images; use --num_val 256 --gate#num_images 256)"  # half as wide
    found = verdict(figures([row], images=64), available=2000, wanted=64)
    assert found["verdict"].endswith("use --gate#num_images 256)")
    at_limit = verdict(figures([row | {"ratio": 1.0}], images=64), 64, 64)
    assert at_limit["verdict"] == "PASS (weak: 64 images)"  # no number of images would tell


def test_fewer_than_five_images_have_no_interval_and_pass_weakly() -> None:
    row = denoising_row(300, *errors(4, ratio=0.1), 1.0)
    assert (row["interval"], row["passed"]) == (None, True)
    found = figures([row], images=4)
    found |= verdict(found, available=4, wanted=64)
    assert found["verdict"] == "PASS (weak: 4 images; use --num_val 64)"
    assert "n too small" in report(found, "")


def test_few_samples_that_are_all_recognized_do_not_exclude_a_high_aim() -> None:
    found = verdict(figures(shares=[share_row("NSP", 32, 32, 0.95)]), 64, 64)
    said = re.fullmatch(r"PASS \(weak: 32 samples per class; use --gate#num_samples (\d+)\)", found["verdict"])
    number = said[1]
    assert share_row("NSP", int(number), int(number), 0.95)["interval"][0] >= 0.95
    assert math.log(0.025) / math.log(0.95) <= int(number) < 1.1 * math.log(0.025) / math.log(0.95) + 1
    assert verdict(figures(shares=[share_row("NSP", 80, 80, 0.95)]), 64, 64)["verdict"] == "PASS"


def test_a_failure_is_a_failure_whatever_else_is_weak() -> None:
    steps = [denoising_row(50, *errors(8, 1.5), 1.0), denoising_row(300, *errors(8, spread=0.4, seed=6), 1.0)]
    found = verdict(figures(steps, [share_row("SP", 20, 32, 0.6)]), 8, 64)
    assert found["verdict"] == "FAIL: the x0 error is above its limit at t = 50"
    assert len(found["weak"]) == 2
    diverged = denoising_row(50, np.full(8, np.nan), np.ones(8), 1.0)
    assert not verdict(figures([diverged]), 8, 64)["passed"]


class Images:
    def __init__(self, count: int) -> None:
        self.images = 0.3 * torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(count))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index]}


class Constant(nn.Module):
    num_class_embeds = None

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return 0 * x


@pytest.mark.parametrize(("count", "weak"), [(8, True), (2000, False)])
def test_a_gate_prints_and_writes_how_sure_it_is(tmp_path: Path, capsys, count: int, weak: bool) -> None:
    scheduler = create_scheduler("ddim", schedule="linear_beta", prediction_type="sample")
    options = {"num_images": 2000, "batch_size": 500, "limits": {"450": 1.15}}
    gate = Gate(Constant(), None, scheduler, Images(4000), Images(count), tmp_path / "gate.json", **options)
    found = gate.run()
    (row,) = found["denoising"]
    assert row["passed"]
    assert row["interval"][0] < row["ratio"] < row["interval"][1]
    assert (row["interval"][1] > 1.15) == weak
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == found["verdict"]
    assert last.startswith("PASS (weak: 8 images; use --num_val ") if weak else last == "PASS"
    assert json.loads((tmp_path / "gate.json").read_text()) == found
