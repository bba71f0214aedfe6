# SPDX-License-Identifier: Apache-2.0
"""Difference maps: sign, floor, seeds and units, and maps of counterfactuals that changed nothing for the class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Compose
from torch import Tensor

from medcf.transforms import DifferenceMap, DifferenceMapd, ToGrid


def stacks(seeds: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Image, predictions and reconstructions of 12 x 10 pixels; noise of a seed is common to the two."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 12, 10, generator=generator) - 0.5
    noise = 0.1 * torch.randn(seeds, 1, 12, 10, generator=generator)
    finding = torch.zeros(1, 12, 10)
    finding[:, 3:6, 3:6] = -0.6
    return image, image + finding + noise, image + noise


def test_the_sign_is_prediction_minus_input() -> None:
    image, preds, _ = stacks()
    maps = DifferenceMap()(image, preds[0])
    torch.testing.assert_close(maps["signed"], preds[0] - image)
    torch.testing.assert_close(maps["absolute"], (preds[0] - image).abs())
    assert set(maps) == {"signed", "absolute"}


def test_maps_equal_numpys_over_seeds_with_and_without_a_floor() -> None:
    image, preds, floors = stacks()
    p, r = (np.asarray(each - image) for each in (preds, floors))
    for maps, signed, absolute in (
        (DifferenceMap()(image, preds), p, np.abs(p)),
        (DifferenceMap()(image, preds, floors), p - r, np.abs(p) - np.abs(r)),
    ):
        np.testing.assert_allclose(maps["signed"], signed.mean(0), atol=1e-6)
        np.testing.assert_allclose(maps["absolute"], np.maximum(absolute.mean(0), 0), atol=1e-6)
        np.testing.assert_allclose(maps["signed_std"], signed.std(0, ddof=1), atol=1e-6)
        np.testing.assert_allclose(maps["absolute_std"], absolute.std(0, ddof=1), atol=1e-6)


def test_seeds_are_averaged_before_negative_values_are_cut_off() -> None:
    image = torch.zeros(1, 1, 3)
    preds = torch.tensor([[0.3, 0.1, -0.4], [0.1, 0.2, 0.1]]).reshape(2, 1, 1, 3)
    floors = torch.tensor([[0.1, 0.4, 0.1], [-0.2, 0.1, 0.0]]).reshape(2, 1, 1, 3)
    # of the seeds: 0.2 and -0.1, -0.3 and 0.1, 0.3 and 0.1
    maps = DifferenceMap()(image, preds, floors)
    torch.testing.assert_close(maps["absolute"], torch.tensor([0.05, 0.0, 0.2]).reshape(1, 1, 3))
    torch.testing.assert_close(maps["signed"], torch.tensor([0.25, -0.1, -0.2]).reshape(1, 1, 3))


def test_the_floor_takes_common_noise_away_and_leaves_the_finding() -> None:
    image, preds, floors = stacks()
    plain, honest = DifferenceMap()(image, preds), DifferenceMap()(image, preds, floors)
    assert plain["absolute"][:, 6:].mean() > 0.05
    assert honest["absolute"][:, 6:].max() < 1e-6
    torch.testing.assert_close(honest["signed"][:, 3:6, 3:6], torch.full((1, 3, 3), -0.6))
    assert honest["signed_std"].max() < 1e-6
    one = DifferenceMap()(image, preds, floors[:1])
    assert one["signed_std"].max() > 0.05


def test_a_counterfactual_that_only_reconstructs_leaves_an_empty_map_and_units_are_fixed() -> None:
    image, _, floors = stacks()
    for maps in (DifferenceMap()(image, floors, floors), DifferenceMap()(image, image)):
        assert all(each.abs().max() == 0 for each in maps.values())
    faint = DifferenceMap()(image, image + 0.01)
    assert faint["absolute"].max().item() == pytest.approx(0.01, rel=1e-4)
    levels = DifferenceMap(units="gray_levels")(image, image + 0.01)
    assert levels["absolute"].max().item() == pytest.approx(1.275, rel=1e-4)
    inside = image.sigmoid()
    unit = DifferenceMap(units="gray_levels", intensity=(0, 1))(inside, inside - 0.01)
    assert unit["signed"].min().item() == pytest.approx(-2.55, rel=1e-4)


def test_maps_are_zero_outside_the_organ() -> None:
    image, preds, _ = stacks()
    mask = torch.zeros(1, 12, 10, dtype=torch.bool)
    mask[:, :4] = True
    whole, masked = DifferenceMap()(image, preds), DifferenceMap()(image, preds, mask=mask)
    for name, each in masked.items():
        torch.testing.assert_close(each[:, :4], whole[name][:, :4])
        assert each[:, 4:].abs().max() == 0


def test_the_dictionary_version_writes_one_map_a_key_and_keeps_the_rest() -> None:
    image, preds, floors = stacks()
    data: dict[Any, Any] = {
        "image": image,
        "pred": preds,
        "floor": floors,
        "organ": torch.ones_like(image),
        "case": "a",
    }
    result = Compose([DifferenceMapd("pred", reconstruction_key="floor", mask_key="organ")])(data)
    expected = DifferenceMap()(image, preds, floors)
    assert set(result) == set(data) | {f"pred_{name}" for name in expected}
    for name, each in expected.items():
        torch.testing.assert_close(result[f"pred_{name}"], each)
    assert set(DifferenceMapd(["pred", "other"], allow_missing_keys=True)(data)) - set(data)
    with pytest.raises(KeyError, match="other"):
        DifferenceMapd(["pred", "other"])(data)


def test_affine_and_the_way_back_to_the_study_are_kept() -> None:
    study = MetaTensor(torch.rand(1, 100, 120), affine=torch.diag(torch.tensor([0.7, 0.7, 1.0, 1.0])))
    to_grid = ToGrid((64, 80), 1.4)
    image = to_grid(study)
    maps = DifferenceMap()(image, image + 0.5)
    assert isinstance(maps["signed"], MetaTensor)
    torch.testing.assert_close(maps["signed"].affine, image.affine)
    assert maps["signed"].meta["difference_sign"] == "prediction minus input"
    assert "difference_sign" not in image.meta
    native = to_grid.inverse(maps["signed"])
    assert native.shape == study.shape
    assert native[0, 50, 60].item() == pytest.approx(0.5, abs=1e-4)


def test_shapes_that_do_not_fit_are_refused() -> None:
    image, preds, floors = stacks()
    with pytest.raises(ValueError, match="pred has shape"):
        DifferenceMap()(image, preds[..., :5])
    with pytest.raises(ValueError, match="one per seed"):
        DifferenceMap()(image, preds, floors[:2])
    with pytest.raises(ValueError, match="mask has shape"):
        DifferenceMap()(image, preds, mask=torch.ones(12, 10))
    with pytest.raises(ValueError, match="units"):
        DifferenceMap("percent")  # type: ignore[arg-type]


def test_maps_of_one_case_collate_back_from_a_batch() -> None:
    image, preds, _ = stacks()
    batch = MetaTensor(torch.stack([image, image]), meta={"affine": torch.eye(4)[None].repeat(2, 1, 1)})
    batch.is_batch = True
    maps = [DifferenceMap()(one, preds) for one in decollate_batch(batch)]
    torch.testing.assert_close(maps[0]["signed"], maps[1]["signed"])
