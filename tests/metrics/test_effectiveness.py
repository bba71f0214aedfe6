# SPDX-License-Identifier: Apache-2.0
"""Effectiveness and amplification: their definitions, their identity with the error, and a closed-form posterior."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medcf.metrics import Amplification, ClassEffectiveness, Effectiveness, RelativeTruthError, Sharpness, TruthError

SUBJECTS = [0, 0, 1, 2, 3, 4]


def images(shape: tuple[int, ...] = (6, 1, 16, 20), count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator) * 2 - 1 for _ in range(count)]


def value(metric, *args: Tensor, **kwargs: Tensor) -> float:
    metric(*args, **kwargs)
    return metric.aggregate()


@pytest.mark.parametrize("shape", [(6, 1, 16, 20), (6, 2, 8, 10, 6)])
def test_each_case_follows_the_definition(shape) -> None:
    pred, truth, image, _ = images(shape)
    e, a = Effectiveness(smoothing=0), Amplification(smoothing=0)
    e(pred, truth, image=image), a(pred, truth, image=image)
    for case in range(6):
        z = (truth - image)[case].double().numpy().ravel()
        made = (pred - image)[case].double().numpy().ravel()
        expected = z @ made / (z @ z)
        assert float(e.per_case()[case]) == pytest.approx(expected, abs=1e-6)
        rest = np.linalg.norm(made - expected * z) / np.linalg.norm(z)
        assert float(a.per_case()[case]) == pytest.approx(rest, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_the_error_over_doing_nothing_is_the_sum_of_both_parts(smoothing: float, masked: bool) -> None:
    pred, truth, image, other = images()
    further = {"image": image} | ({"mask": other > 0.3} if masked else {})
    made = [kind(smoothing=smoothing) for kind in (Effectiveness, Amplification, RelativeTruthError)]
    for metric in made:
        metric(pred, truth, **further)
    e, a, ratio = (metric.aggregate() for metric in made)
    assert ratio == pytest.approx((1 - e) ** 2 + a**2, abs=1e-9)
    e, a, ratio = (metric.per_case() for metric in made)
    torch.testing.assert_close(ratio, (1 - e) ** 2 + a**2, atol=1e-9, rtol=0)


def test_shrinking_a_change_moves_the_error_along_the_parabola() -> None:
    pred, truth, image, _ = images()
    e = value(Effectiveness(), pred, truth, image=image)
    a = value(Amplification(), pred, truth, image=image)
    for s in (0.0, 0.3, 1.7):
        ratio = value(RelativeTruthError(), image + s * (pred - image), truth, image=image)
        assert ratio == pytest.approx(1 - 2 * s * e + s**2 * (e**2 + a**2), abs=1e-6)


def test_the_class_is_what_the_target_adds_to_regeneration() -> None:
    pred, truth, image, own = images()
    both = [value(Effectiveness(), each, truth, image=image) for each in (pred, own)]
    metric = ClassEffectiveness()
    metric(pred, truth, image=image, own=own)
    assert metric.aggregate() == pytest.approx(both[0] - both[1], abs=1e-6)
    low, high = metric.interval(groups=SUBJECTS, num_resamples=200)
    assert low < metric.aggregate() < high
    with pytest.raises(ValueError, match="as own="):
        ClassEffectiveness()(pred, truth, image=image)


def test_a_mask_counts_only_what_is_inside_and_does_not_blur_its_edge() -> None:
    pred, truth, image, _ = images()
    mask = torch.zeros_like(image, dtype=torch.bool)
    mask[..., :9] = True
    outside = torch.where(mask, pred, truth)  # perfect outside the mask
    for kind in (Effectiveness, Amplification, RelativeTruthError):
        inner = value(kind(smoothing=0), outside, truth, image=image, mask=mask)
        cut = value(kind(smoothing=0), pred[..., :9], truth[..., :9], image=image[..., :9])
        assert inner == pytest.approx(cut, abs=1e-9)
    assert value(TruthError(smoothing=0), pred, truth, mask=mask) == pytest.approx(
        float((pred - truth)[..., :9].square().mean()), rel=1e-6
    )
    with pytest.raises(ValueError, match="mask has the shape"):
        Effectiveness()(pred, truth, image=image, mask=mask[..., :8])


def test_a_case_without_a_true_change_does_not_count() -> None:
    pred, truth, image, _ = images()
    image[0] = truth[0]
    metric = Effectiveness(smoothing=0)
    metric(pred, truth, image=image)
    assert metric.counts().left_out == {"no difference between input and truth": 1}
    assert torch.isnan(metric.per_case()[0])
    assert all(np.isfinite(metric.interval(groups=SUBJECTS, num_resamples=100)))


class Posterior:
    """A linear Gaussian world: the truth is the input plus m(x) + s n, n white noise that no input shows.

    Its posterior mean and its samples are known, and so is all that is measured of them. With M = |m|² and V = s² per
    pixel, the true change has the power M + V.
    """

    M, V = 0.5, 0.3

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.shape = shape
        ramp = torch.linspace(-1, 1, shape[-1]).expand(shape)  # which a symmetric blur leaves as it is
        self.mean = ramp * (self.M / ramp.square().mean()).sqrt()
        self.image = torch.zeros(shape)
        self.truth = self.sample()

    def sample(self) -> Tensor:
        return self.mean + self.V**0.5 * torch.randn(self.shape, generator=self.generator)

    def measured(self, pred: Tensor) -> tuple[float, float, float, float]:
        kinds = (Effectiveness, Amplification, RelativeTruthError)
        figures = [value(kind(smoothing=0), pred, self.truth, image=self.image) for kind in kinds]
        middle = torch.zeros(self.shape, dtype=torch.bool)
        middle[(..., *[slice(8, -8)] * (len(self.shape) - 2))] = True
        return (*figures, value(Sharpness(), pred, self.truth, mask=middle))


@pytest.mark.parametrize("shape", [(4, 1, 160, 200), (2, 1, 40, 60, 50)])
def test_mean_sample_and_mean_of_samples_of_a_gaussian_posterior_have_the_known_values(shape) -> None:
    world = Posterior(shape)
    m, v = world.M, world.V
    e = m / (m + v)
    expected = {
        "mean": (e, v / (m + v), 0.0, world.mean),
        "sample": (e, 2 * v / (m + v), 1.0, world.sample()),
        "of 4": (e, v / (m + v) * (1 + 1 / 4), 1 / 4, torch.stack([world.sample() for _ in range(4)]).mean(0)),
    }
    for name, (effect, ratio, fine, pred) in expected.items():
        found = world.measured(pred)
        assert found[0] == pytest.approx(effect, abs=0.01), name
        assert found[1] ** 2 == pytest.approx(ratio - (1 - effect) ** 2, abs=0.015), name
        assert found[2] == pytest.approx(ratio, abs=0.015), name
        assert found[3] == pytest.approx(fine, abs=0.015), name
    # The best factor for a sample is cos² of its angle to the true change; then it is as near as it can be.
    sample = world.sample()
    s = e / (e**2 + world.measured(sample)[1] ** 2)
    assert world.measured(s * sample)[2] == pytest.approx(
        1 - e**2 / (e**2 + (2 * v / (m + v) - (1 - e) ** 2)), abs=0.015
    )


def test_sharpness_is_the_square_of_the_fine_amplitude() -> None:
    truth = images()[0]
    assert value(Sharpness(), truth, truth) == 1
    flat = torch.full_like(truth, 0.7)
    assert value(Sharpness(), flat + 0.5 * (truth - 0.7), truth) == pytest.approx(0.25, abs=1e-5)
    assert value(Sharpness(), flat, truth) == pytest.approx(0, abs=1e-10)
    metric = Sharpness()
    metric(truth, torch.cat([truth[:5], 0 * flat[:1]]))
    assert metric.counts().left_out == {"the truth has no fine structure": 1}
    with pytest.raises(ValueError, match="positive"):
        Sharpness(0)
