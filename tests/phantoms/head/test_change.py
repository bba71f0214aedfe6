# SPDX-License-Identifier: Apache-2.0
"""The true change is that of expected images, not of speckle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medcf.phantoms import FetalHead, PairedPhantomDataset
from medcf.phantoms.head.change import TrueChangeDataset, expected_image, true_change
from medcf.phantoms.head.datasets import draw_case, shrink


class Rendered:
    """A phantom that nothing is known of but its renderings."""

    def __init__(self, subject: FetalHead) -> None:
        self.render = subject.render


def test_the_expected_image_is_the_mean_over_many_renderings() -> None:
    subject, sample = draw_case("fetal_head", "test", 0, label=0)
    images = np.stack([subject.render(sample.pose, seed=seed).image for seed in range(40)]).astype(float)
    deviation = (images.mean(0) - expected_image(subject, sample.pose)) / (images.std(0) / 40**0.5 + 0.5 / 255)
    assert np.abs(deviation).max() < 5
    assert abs(deviation.mean()) < 0.1
    averaged = expected_image(Rendered(subject), sample.pose, num_seeds=3)  # type: ignore[arg-type]
    np.testing.assert_allclose(averaged, images[:3].mean(0), atol=1e-6)


def test_a_plane_and_its_own_other_speckle_do_not_differ() -> None:
    subject = FetalHead(5)
    images = [shrink(subject.render(seed=seed).image, (64, 80)) for seed in (1, 2)]
    assert np.abs(images[0] - images[1]).max() > 0.1  # speckle alone would pass for a change
    assert np.array_equal(expected_image(subject), expected_image(subject, subject.standard_pose()))


def test_the_change_is_bright_where_the_pairs_differ_on_average() -> None:
    pairs = PairedPhantomDataset(count=3, progress=False)
    changes = TrueChangeDataset(count=3, progress=False)
    for pair, change in zip(pairs, changes, strict=True):
        assert pair["case"] == change["case"]
        seen = pair["image_true"] - pair["image"]
        correlation = np.corrcoef(seen.flatten(), change["difference"].flatten())[0, 1]
        assert correlation > 0.9
        assert torch.equal(change["appearance"], change["difference"].abs() > 0.2)
        labels = pair["segmentation"], pair["segmentation_true"]
        differ = (labels[0] != labels[1]) & (torch.maximum(*labels) > 1)
        assert bool((change["structure"] <= differ).all())
        assert bool((change["structure"] & ~change["organ"]).sum() == 0)
        assert 0.005 < float(change["structure"].float().mean()) < float(change["appearance"].float().mean()) < 0.5


def test_a_higher_threshold_leaves_less_and_must_be_a_share() -> None:
    wide, narrow = (true_change("fetal_head", "demo", 3, threshold=share) for share in (0.05, 0.2))
    assert (narrow.appearance <= wide.appearance).all()
    assert narrow.appearance.sum() < wide.appearance.sum()
    assert np.array_equal(narrow.structure, wide.structure)
    with pytest.raises(ValueError, match="fraction of the dynamic range"):
        true_change("fetal_head", "demo", 3, threshold=25)


def test_the_cache_is_read_again_and_never_for_another_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"split": "demo", "cache_file": tmp_path / "change.npz", "progress": False}
    first = TrueChangeDataset(count=1, **options)[0]
    with monkeypatch.context() as patch:
        patch.setattr("medcf.phantoms.head.change.true_change", None)
        again = TrueChangeDataset(count=1, **options)[0]
    assert all(torch.equal(first[key], again[key]) for key in ("difference", "appearance", "structure", "organ"))
    assert len(TrueChangeDataset(count=2, **options)) == 2
    assert "another set" in caplog.text
    options["cache_file"].write_bytes(b"no archive")
    assert len(TrueChangeDataset(count=1, **options)) == 1
    assert "damaged" in caplog.text
