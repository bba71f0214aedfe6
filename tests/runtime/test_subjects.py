# SPDX-License-Identifier: Apache-2.0
"""Whom a network saw: hashed names beside its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import CacheDataset

from medcf.phantoms import PlanesDataset
from medcf.runtime.subjects import read_subjects, subject_key, subjects_of, write_subjects
from medcf.training.state import ExportWeights


def test_subjects_of_own_images_are_those_of_their_table_and_no_name_is_kept():
    items = [{"image": np.zeros((1, 4, 4)), "subject": name} for name in ("Ann", "Bob", "Ann")]
    found = subjects_of(CacheDataset(items, transform=lambda item: item, progress=False))
    assert found == sorted([subject_key("Ann"), subject_key("Bob")])
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in found)


def test_subjects_of_phantoms_are_those_of_their_planes():
    planes = PlanesDataset("demo", 6, planes=3, size=(16, 16), progress=False)
    assert len(subjects_of(planes)) == 2


def test_a_set_that_names_nobody_is_unknown():
    assert subjects_of([{"image": 1}]) is None


def test_a_training_leaves_them_beside_its_weights_and_several_networks_add_up(tmp_path):
    for name, seen in (("model", ["a", "b"]), ("adapter", ["b", "c"])):
        trainer = Engine(lambda engine, batch: None)
        ExportWeights(torch.nn.Linear(1, 1), tmp_path / f"{name}.pt", subjects=seen).attach(trainer)
        trainer.run([0], max_epochs=1)
        assert (tmp_path / f"{name}.pt").is_file()
    assert read_subjects([tmp_path / "model.pt", tmp_path / "adapter.pt"]) == {"a", "b", "c"}


@pytest.mark.parametrize("subjects", [None, []])
def test_unknown_subjects_are_not_the_same_as_none(tmp_path, subjects):
    weights = tmp_path / "model.pt"
    write_subjects(weights, ["of the weights that stood here before"])
    write_subjects(weights, subjects)
    assert read_subjects([weights]) == (None if subjects is None else set())
