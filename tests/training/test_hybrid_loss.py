# SPDX-License-Identifier: Apache-2.0
"""The hybrid loss: its bound is that of torch's distributions, trains the variance only, and has the known optimum."""

from __future__ import annotations

import math

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn
from torch.distributions import Normal, kl_divergence

from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler
from medcf.training.inferer import DiffusionTrainingInferer
from medcf.training.losses import HybridLoss
from medcf.training.prepare_batch import ClassConditionalPrepareBatch
from medcf.training.pyramid_noise import PyramidNoisePrepareBatch

TYPES = ["epsilon", "sample", "v_prediction"]
DOUBLE = torch.float64


def make_scheduler(count=1000, **options):
    return RespacedDDPMScheduler(count, **{"variance_type": "learned_range", "clip_sample": False} | options)


def regression_target(scheduler, original, noise, times):
    kind = str(scheduler.prediction_type)
    velocity = scheduler.get_velocity(original, noise, times)
    return {"epsilon": noise, "sample": original, "v_prediction": velocity}[kind]


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    original, noise, output, position = (torch.randn(4, 2, 5, dtype=DOUBLE, generator=generator) for _ in range(4))
    return original.clamp(-1, 1), noise, torch.cat([output, position.clamp(-1, 1)], dim=1)


@pytest.mark.parametrize(
    ("kind", "zero_snr"), [*((kind, False) for kind in TYPES), *((kind, True) for kind in TYPES if kind != "epsilon")]
)
def test_the_bound_is_the_divergence_of_the_samplers_step_from_the_true_posterior(case, kind, zero_snr):
    original, noise, prediction = case
    scheduler = make_scheduler(prediction_type=kind, rescale_zero_terminal_snr=zero_snr)
    times = torch.tensor([1, 2, 300, 999])
    target = {
        "output": regression_target(scheduler, original, noise, times),
        "original": original,
        "timesteps": times,
    }
    found = HybridLoss(scheduler).variational_bound(prediction, target)

    exact = make_scheduler(prediction_type="sample", variance_type="fixed_small", rescale_zero_terminal_snr=zero_snr)
    noisy = scheduler.add_noise(original, noise, times)
    for i, t in enumerate(times.tolist()):
        one = slice(i, i + 1)
        steps = [
            each.posterior(each.convert(output[one], t, noisy[one]), t, noisy[one])
            for each, output in ((exact, original), (scheduler, prediction))
        ]
        true, model = (Normal(step.mean, torch.as_tensor(step.variance).sqrt()) for step in steps)
        expected = kl_divergence(true, model).mean() / math.log(2)
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("bin_width", [2 / 255, 2 / 15])
def test_the_first_term_is_a_distribution_over_gray_values(bin_width):
    """Minus its logarithm is the term, so that the probabilities of all gray values sum to 1, with open ends."""
    grays = torch.arange(-1, 1 + 1e-9, bin_width, dtype=DOUBLE)
    original = grays.reshape(-1, 1, 1)
    scheduler = make_scheduler(prediction_type="sample")
    for mean, position in ((0.3, 0.0), (-0.998, 1.0), (0.9995, -1.0)):
        prediction = torch.cat([torch.full_like(original, mean), torch.full_like(original, position)], dim=1)
        target = {"output": original, "original": original, "timesteps": torch.zeros(len(grays), dtype=torch.long)}
        bits = HybridLoss(scheduler, bin_width=bin_width).variational_bound(prediction, target)
        assert float((-bits * math.log(2)).exp().sum()) == pytest.approx(1, abs=1e-6)
        low, high = (math.log(bound) for bound in scheduler.variance_range(0))
        std = math.exp(((1 + position) / 2 * high + (1 - position) / 2 * low) / 2)
        index = int((grays - mean).abs().argmin())
        if 0 < index < len(grays) - 1:
            normal = Normal(mean, std)
            mass = normal.cdf(grays[index] + bin_width / 2) - normal.cdf(grays[index] - bin_width / 2)
            assert float(bits[index]) == pytest.approx(-math.log2(mass), rel=1e-6, abs=1e-9)


def test_without_bins_the_first_term_is_a_density():
    original = torch.linspace(-3, 3, 7, dtype=DOUBLE).reshape(1, 1, 7)
    scheduler = make_scheduler(prediction_type="sample")
    mean = original + 0.01
    prediction = torch.cat([mean, torch.zeros_like(mean)], dim=1)
    target = {"output": original, "original": original, "timesteps": torch.zeros(1, dtype=torch.long)}
    found = HybridLoss(scheduler, bin_width=None).variational_bound(prediction, target)
    low, high = scheduler.variance_range(0)
    expected = -Normal(mean, (low * high) ** 0.25).log_prob(original).mean() / math.log(2)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_the_bound_trains_the_variance_and_the_squared_error_the_mean(case):
    original, noise, prediction = case
    scheduler = make_scheduler()
    prediction.requires_grad_()
    target = {"output": noise, "original": original, "timesteps": torch.tensor([0, 1, 300, 999])}
    loss = HybridLoss(scheduler)
    (gradient,) = torch.autograd.grad(loss.variational_bound(prediction, target).sum(), prediction)
    assert float(gradient[:, :2].abs().max()) == 0
    assert bool((gradient[:, 2:].flatten(1).abs().amax(1) > 0).all())
    (gradient,) = torch.autograd.grad(loss(prediction, target), prediction)
    torch.testing.assert_close(gradient[:, :2], (2 * (prediction[:, :2] - noise) / noise.numel()).detach())

    half = HybridLoss(scheduler, vlb_weight=0.0005)(prediction, target)
    squared = nn.functional.mse_loss(prediction[:, :2], noise)
    torch.testing.assert_close(loss(prediction, target) - squared, 2 * (half - squared))
    bound = loss.variational_bound(prediction, target).mean()
    torch.testing.assert_close(loss(prediction, target), squared + bound)  # 0.001 times 1000 timesteps


@pytest.mark.parametrize("t", [1, 40, 998])
def test_with_the_exact_mean_the_bound_is_zero_at_the_true_posteriors_variance(t):
    noise = torch.randn(1, 1, 4, dtype=DOUBLE)
    target = {"output": noise, "original": torch.zeros_like(noise), "timesteps": torch.tensor([t])}
    loss = HybridLoss(make_scheduler())
    bounds = [
        float(loss.variational_bound(torch.cat([noise, torch.full_like(noise, position)], dim=1), target))
        for position in (-1.2, -1.1, -1.0, -0.9, -0.8)
    ]
    assert bounds[2] == pytest.approx(0, abs=1e-12)
    assert bounds[0] > bounds[1] > bounds[2] < bounds[3] < bounds[4]


class Toy(nn.Module):
    """A denoiser of two channels, linear in the image and free at every timestep."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(count, 3))

    def forward(self, x, timesteps, context=None, class_labels=None):
        weight, bias, position = self.table[timesteps].reshape(-1, 3, 1, 1).unbind(1)
        return torch.cat([weight * x + bias, position.expand_as(x)], dim=1)


@pytest.fixture(scope="module")
def trained():
    """A toy trained by MONAI's trainer on data N(m, s²), its scheduler, and m and s."""
    torch.manual_seed(0)
    count, m, s = 12, 0.3, 0.5
    scheduler = make_scheduler(count, prediction_type="sample", beta_start=0.02, beta_end=0.7)
    network = Toy(count)
    batches = [{"image": m + s * torch.randn(400, 1, 16), "label": torch.zeros(400)} for _ in range(20)]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / 20))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=20,
        train_data_loader=batches,
        network=network,
        optimizer=optimizer,
        loss_function=HybridLoss(scheduler, vlb_weight=0.01, bin_width=None),
        prepare_batch=ClassConditionalPrepareBatch(scheduler, dropout=0.0),
        inferer=DiffusionTrainingInferer(scheduler),
        decollate=False,
    )
    trainer.add_event_handler("EPOCH_COMPLETED", lambda: decay.step())
    trainer.run()
    return network.eval(), scheduler, m, s


def test_a_toy_learns_the_optimal_variance_of_gaussian_data(trained):
    """Σ* = σ² + c0² Var(x0 | x_t) (Bao et al. 2022, arXiv 2201.06503, theorem 1), known for Gaussian data."""
    network, scheduler, m, s = trained
    for t in range(1, scheduler.num_train_timesteps):
        a, p = scheduler.alpha_bar(t), scheduler.alpha_bar_prev(t)
        beta = 1 - a / p
        spread = s**2 * (1 - a) / (a * s**2 + 1 - a)
        optimal = beta * (1 - p) / (1 - a) + p * beta**2 / (1 - a) ** 2 * spread
        sample = torch.zeros(1, 1, 1)
        with torch.no_grad():
            output = network(sample, torch.tensor([t]))
        step = scheduler.posterior(scheduler.convert(output, t, sample), t, sample)
        low, high = scheduler.variance_range(t)
        assert low < optimal < high
        assert float(step.variance) == pytest.approx(optimal, rel=0.03)
        assert float(step.pred_original) == pytest.approx(m * (1 - a) / (a * s**2 + 1 - a), abs=0.02)


def test_the_learned_variance_gives_samples_the_spread_of_the_data(trained):
    """Neither bound does in so few steps. Nothing is drawn in the last step, which is left out."""
    network, scheduler, _, s = trained
    spread = {}
    for kind in ("learned_range", "fixed_small", "fixed_large"):
        sampler = make_scheduler(variance_type=kind).copy_schedule(scheduler)
        generator = torch.Generator().manual_seed(1)
        sample = torch.randn(1, 1, 40000, generator=generator)
        for t in sampler.timesteps.tolist()[:-1]:
            with torch.no_grad():
                sample, _ = sampler.step(network(sample, torch.tensor([t])), t, sample, generator)
        a = sampler.alpha_bar(0)
        spread[kind] = float(sample.std()) / math.sqrt(a * s**2 + 1 - a)
    assert spread["learned_range"] == pytest.approx(1, abs=0.02)
    assert spread["fixed_small"] < 0.93
    assert spread["fixed_large"] > 1.04


def test_what_cannot_learn_a_variance_is_refused():
    with pytest.raises(ValueError, match=r'give its scheduler `variance_type` "learned_range"'):
        HybridLoss(make_scheduler(variance_type="fixed_small"))
    with pytest.raises(ValueError, match=r'"learned_range"'):
        HybridLoss(RespacedDDIMScheduler())
    shortened = make_scheduler()
    shortened.set_timesteps(10)
    with pytest.raises(ValueError, match=r"10 of 1000 are kept: call set_timesteps\(1000\)"):
        HybridLoss(shortened)
    with pytest.raises(ValueError, match="white noise"):
        PyramidNoisePrepareBatch(make_scheduler())
    target = {"output": torch.zeros(1, 1, 4), "original": torch.zeros(1, 1, 4), "timesteps": torch.tensor([3])}
    with pytest.raises(ValueError, match="returned 1 channels; a learned variance needs 2"):
        HybridLoss(make_scheduler())(torch.zeros(1, 1, 4), target)
