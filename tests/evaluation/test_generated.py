# SPDX-License-Identifier: Apache-2.0
"""What is said of a store of synthetic images, where it is known which of them are good, wrong or copied."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from medcf.data import StoreWriter
from medcf.evaluation.generated import Assessment
from medcf.evaluation.judges import Judge
from medcf.metrics.copies import PLANTED, plant
from medcf.metrics.frechet import frechet_distance
from medcf.runtime.subjects import subject_key

SIZE = (1, 16, 16)


class Brightness(torch.nn.Module):
    """Class 1 is brighter than 0 on average."""

    def forward(self, images):
        mean = images.flatten(1).mean(1)
        return torch.stack([-mean, mean], dim=1)


def textures(count, seed, mean):
    generator = torch.Generator().manual_seed(seed)
    return (mean + 0.2 * torch.randn(count, *SIZE, generator=generator)).clamp(-1, 1)


def dataset(seed, count=40):
    images = torch.cat([textures(count, seed, -0.4), textures(count, seed + 100, 0.4)])
    return [{"image": image, "label": torch.tensor(int(i >= count))} for i, image in enumerate(images)]


@pytest.fixture
def store(tmp_path):
    """Sixteen images of each class: of class 1, four are dark, and four are mirrored copies of training images."""
    dark, bright = textures(16, 7, -0.4), textures(16, 8, 0.4)
    bright[:4] = textures(4, 9, -0.4)
    bright[4:8] = torch.stack([one["image"] for one in dataset(0)[40:44]]).flip(-1)
    images = torch.stack([dark, bright], dim=1).flatten(0, 1)
    rows = [{"label": index % 2, "class_name": "", "caption": ""} for index in range(32)]
    writer = StoreWriter(
        tmp_path / "store", rows, shape=SIZE, class_names=["dark", "bright"], shard_size=32, dtype="float16"
    )
    writer.open()
    writer.write(0, images)
    return writer.close()


def both_ways(images):
    """Pixels in an order that mirroring does not change."""
    return torch.cat([images + images.flip(-1), (images - images.flip(-1)).abs()], 1).flatten(1)


@pytest.fixture
def figures(store, tmp_path):
    """The figures of that store."""
    assessment = Assessment(
        dataset(0),
        dataset(50),
        tmp_path,
        judges={"brightness": Judge(Brightness())},
        features={"mean": lambda images: images.flatten(1)[:, :6]},
        copies=both_ways,
    )
    return assessment.run(store)


def test_a_judge_recognizes_what_shows_its_class(figures):
    shares = {row["class"]: (row["share"], row["passed"]) for row in figures["recognized"]["brightness"]}
    assert shares == {"dark": (1.0, True), "bright": (12 / 16, False)}


def test_distances_are_those_of_the_two_sets(figures, store):
    unseen = torch.stack([one["image"] for one in dataset(50)]).flatten(1)[:, :6]
    made = torch.stack([one["image"] for one in store]).flatten(1)[:, :6]
    found = figures["distances"]["mean"]["generated"]
    assert found["all"] == pytest.approx(frechet_distance(made, unseen), rel=1e-6)
    assert found["dark"] == pytest.approx(frechet_distance(made[::2], unseen[:40]), rel=1e-6)
    assert figures["distances"]["mean"]["training"]["all"] < found["all"]


def test_copies_are_counted_on_both_sides_by_a_detector_that_was_measured(figures, tmp_path):
    copies = figures["copies"]
    assert copies["recall"]["mirrored"]["share"] == copies["recall"]["identical"]["share"] == 1
    assert copies["false_alarms"]["share"] <= 0.15
    found = copies["samples_that_are_copies"]
    assert found["count"] == 32
    assert 4 / 32 <= found["share"] <= 7 / 32
    assert copies["training_images_copied"]["share"] >= 4 / 80
    written = json.loads((tmp_path / "assessment.json").read_text())
    assert written["copies"]["threshold"] == pytest.approx(copies["threshold"])


def test_the_picture_puts_copies_first_and_marks_them_red(figures, tmp_path):
    picture = np.asarray(Image.open(tmp_path / "neighbors.png").convert("RGB"), int)
    scores = picture[-30:]
    red = (scores[..., 0] > 200) & (scores[..., 1] < 130)
    assert red[:, :500].any()  # the first four
    assert not red[:, -400:].any()


def test_what_cannot_be_measured_is_said(store, tmp_path):
    judge = Judge(Brightness(), {"": tmp_path / "missing.pt"})
    figures = Assessment(dataset(0), dataset(50), tmp_path, judges={"judge": judge}).run(store)
    assert figures["recognized"] == {}
    assert "judge was not asked" in figures["skipped"][0]
    assert Assessment(dataset(0), dataset(50), tmp_path).run(None) == {}


def test_planted_copies_are_what_they_are_called():
    images = textures(3, 1, 0.0)
    planted = {kind: plant(images, kind) for kind in PLANTED}
    assert torch.equal(planted["identical"], images)
    assert torch.equal(planted["mirrored"][..., 0], images[..., -1])
    assert torch.equal(planted["shifted"][..., 1:, 1:], images[..., :-1, :-1])
    assert planted["another gain"].mean() > images.mean()
    assert all(planted[kind].shape == images.shape for kind in PLANTED)
    with pytest.raises(ValueError, match="use one of identical"):
        plant(images, "upside down")


def test_it_says_of_how_many_of_the_subjects_that_the_generator_saw_copies_were_looked_for(store, tmp_path, capsys):
    class Training(list):
        subjects = ("a", "b", "c")

    assessment = Assessment(Training(dataset(0)), dataset(50), tmp_path, copies=both_ways)
    assert assessment.run(store)["subjects"] == {"seen": None, "compared": None}
    assert "whom the generator saw is not known" in capsys.readouterr().out
    store.header["subjects"] = [subject_key(name) for name in ("phantom b", "phantom c", "of an adapter", "another")]
    assert assessment.run(store)["subjects"] == {"seen": 4, "compared": 2}
    assert "compared with 2 of the 4 subjects" in capsys.readouterr().out


def test_too_few_unseen_images_are_refused_before_anything_is_measured(store, tmp_path):
    assessment = Assessment(dataset(0), dataset(50)[:30], tmp_path, copies=both_ways)
    with pytest.raises(ValueError, match=r"30 unseen images cannot show .* num_unseen=40 or more"):
        assessment.run(store)
