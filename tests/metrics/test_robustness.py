# SPDX-License-Identifier: Apache-2.0
"""Harmless disturbances against SciPy and Pillow, and whose flips they end."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from medcf.metrics.robustness import DISTURBANCES, FlipSurvival, SeedAgreement, flip_survival, perturbations

NSP, SP = [3.0, 0.0], [0.0, 3.0]


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_default_disturbances_stay_blur_and_noise() -> None:
    assert list(perturbations(images(2, 1, 8, 8))) == ["blur", "noise"]
    kept = flip_survival(lambda x: torch.zeros(len(x), 2), images(2, 1, 8, 8), 0)
    assert list(kept) == ["blur", "noise", "all"]


@pytest.mark.parametrize("shape", [(2, 1, 7, 9), (1, 2, 5, 6, 4)])
def test_shifts_agree_with_scipy_both_ways_along_every_axis(shape: tuple[int, ...]) -> None:
    x = images(*shape)
    moved = perturbations(x, names=["shift"], shift=2)
    assert len(moved) == 2 * (len(shape) - 2)
    for axis in range(len(shape) - 2):
        for step in (-2, 2):
            offset = [0, 0, *(step if axis == other else 0 for other in range(len(shape) - 2))]
            expected = ndimage.shift(x.numpy(), offset, order=0, mode="nearest")
            assert np.array_equal(moved[f"shift{step:+d}_axis{axis}"].numpy(), expected)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_jpeg_is_pillows_at_the_quality_asked_for(channels: int) -> None:
    x = images(2, channels, 16, 24)
    decoded = perturbations(x, names=["jpeg"], jpeg_quality=60)["jpeg"]
    planes = x[1] if channels == 3 else x[1, -1:]
    array = ((planes + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array.squeeze()).save(file, "JPEG", quality=60)
    expected = np.asarray(Image.open(file), dtype=np.float32).reshape(array.shape) / 127.5 - 1
    got = decoded[1] if channels == 3 else decoded[1, -1:]
    assert np.allclose(got.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_jpeg_hurts_a_smooth_image_little_and_more_at_lower_quality() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    errors = [
        (perturbations(ramp, names=["jpeg"], jpeg_quality=quality)["jpeg"] - ramp).abs().mean().item()
        for quality in (90, 10)
    ]
    assert errors[0] < 0.01 < errors[1]


def test_shared_noise_does_not_depend_on_the_place_in_the_batch() -> None:
    x = images(4, 1, 8, 8)
    together = perturbations(x, names=["noise"], shared_noise=True)["noise"]
    alone = perturbations(x[3:], names=["noise"], shared_noise=True)["noise"]
    assert torch.equal(together[3:], alone)
    assert not torch.equal(perturbations(x, names=["noise"])["noise"][3:], perturbations(x[3:])["noise"])


@pytest.mark.parametrize(
    ("x", "names", "message"),
    [
        (images(1, 1, 8, 8), ["blurr"], "'blur', 'noise', 'shift', 'jpeg'"),
        (images(1, 1, 8, 8), [], "at least one"),
        (images(1, 1, 4, 4, 4), ["jpeg"], "leave it out"),
    ],
)
def test_disturbances_that_do_not_exist_are_refused(x: torch.Tensor, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perturbations(x, names=names)


def checkerboard(size: int = 32) -> torch.Tensor:
    grid = torch.arange(size)
    return ((grid[:, None] + grid[None]) % 2 * 2.0 - 1).expand(1, 1, size, size)


def patch(size: int = 32) -> torch.Tensor:
    image = torch.full((1, 1, size, size), -1.0)
    image[..., 8:24, 8:24] = 1
    return image


def correlate(template: torch.Tensor, bias: float) -> object:
    def classifier(x: torch.Tensor) -> torch.Tensor:
        score = (x * template).mean(dim=(1, 2, 3))
        return torch.stack([torch.full_like(score, bias), score], dim=1)

    return classifier


def test_a_flip_by_single_pixels_dies_of_a_shift_and_one_by_a_structure_does_not() -> None:
    checker = correlate(checkerboard(), 0.02)
    kept = flip_survival(checker, 0.5 * checkerboard(), names=("shift", "noise"))
    assert (kept["shift"].item(), kept["noise"].item(), kept["all"].item()) == (False, True, False)
    kept = flip_survival(correlate(patch(), 0.5), patch(), names=DISTURBANCES)
    assert all(value.item() for value in kept.values())


def test_a_shift_is_survived_only_if_every_direction_is() -> None:
    def right_edge(x: torch.Tensor) -> torch.Tensor:
        score = x[:, 0, :, 4:].amax(dim=(1, 2))  # bright beyond column 4: lost by a step to the left alone
        return torch.stack([torch.zeros_like(score), score], dim=1)

    x = torch.full((1, 1, 8, 8), -1.0)
    x[..., 3:5, 4] = 1
    moved = perturbations(x, names=["shift"])
    assert [name for name, image in moved.items() if right_edge(image).argmax(1) == 0] == ["shift-1_axis1"]
    assert not flip_survival(right_edge, x, names=["shift"])["shift"].item()


def test_survival_is_counted_over_flips_alone() -> None:
    f = correlate(patch(), 0.5)
    bad = -patch()
    inputs = torch.cat([bad, patch(), bad, bad])
    metric = FlipSurvival(f)
    metric(torch.cat([patch(), patch(), bad, 0.51 * patch()]), inputs)
    assert metric.counts().entered == 2
    assert metric.left_out_cases() == {
        "the input is already of the target class": [1],
        "the counterfactual did not reach the target class": [2],
    }
    rows = metric.by_disturbance()
    assert rows["blur"].mean == rows["all"].mean == metric.aggregate() == 0.5  # the faint patch does not survive
    assert rows["blur"].count == 2


def test_survival_does_not_depend_on_the_batches() -> None:
    checker = correlate(checkerboard(), 0.029)
    flips = torch.linspace(0.029, 0.031, 12).view(-1, 1, 1, 1) * checkerboard()
    whole, parts = (FlipSurvival(checker, names=("noise",), noise_std=0.1) for _ in range(2))
    whole(flips, torch.zeros_like(flips))
    for part in flips.split(5):
        parts(part, torch.zeros_like(part))
    assert torch.equal(whole.per_case().nan_to_num(-1), parts.per_case().nan_to_num(-1))


def test_no_flip_gives_no_share() -> None:
    x = images(3, 1, 8, 8)
    metric = FlipSurvival(lambda x: torch.tensor([NSP]).expand(len(x), 2))
    metric(x, x)
    assert math.isnan(metric.aggregate())
    assert metric.counts().left_out == {"the counterfactual did not reach the target class": 3}


def test_seed_agreement_asks_the_other_seeds_of_flips_only() -> None:
    metric = SeedAgreement()
    seeds = torch.tensor([[SP, SP, SP], [SP, NSP, SP], [NSP, SP, SP], [SP, SP, SP], [SP, NSP, NSP]])
    metric(seeds, torch.tensor([NSP, NSP, NSP, SP, NSP]))
    assert metric.aggregate() == pytest.approx((1 + 0.5 + 0) / 3)
    assert metric.left_out_cases() == {
        "the input is already of the target class": [3],
        "the counterfactual did not reach the target class": [2],
    }


def test_seeds_that_flip_by_chance_agree_as_often_as_they_flip() -> None:
    generator = torch.Generator().manual_seed(4)
    flips = torch.rand(4000, 2, generator=generator) < 0.3
    logits = torch.where(flips[..., None], torch.tensor(SP), torch.tensor(NSP))
    metric = SeedAgreement()
    metric(logits, torch.tensor(NSP).expand(4000, 2))
    assert metric.aggregate() == pytest.approx(0.3, abs=0.04)


def test_one_seed_is_no_agreement() -> None:
    with pytest.raises(ValueError, match="S >= 2 seeds"):
        SeedAgreement()(torch.zeros(3, 1, 2), torch.zeros(3, 2))
