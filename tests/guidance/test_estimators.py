# SPDX-License-Identifier: Apache-2.0
"""Gradient estimators against autograd and against loops written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.guidance import CounterfactualLoss, DiMEGradient, NoisyL1, X0Gradient, XtGradient
from medcf.guidance.estimators import GradientEstimator
from medcf.networks import Denoiser
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler
from medcf.schedulers.step import Step

TARGET = torch.tensor([1, 0, 1])


@pytest.fixture
def loss():
    torch.manual_seed(3)
    classifier = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 2))
    features = nn.Conv2d(1, 2, 3)
    reference = torch.rand(3, 1, 8, 8) * 2 - 1
    return CounterfactualLoss(classifier, features, 40.0, 30.0).bind(reference, TARGET)


@pytest.fixture
def sample():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def make_step(network, estimator, sample, t, *, clip=True, kind=RespacedDDPMScheduler):
    """One step of a loop, with the estimator as its hook; the plain step and the guided one."""
    scheduler = kind(1000, clip_sample=clip)
    scheduler.set_timesteps(20)
    sample = estimator.before_model(sample, t)
    with torch.set_grad_enabled(sample.requires_grad):
        step = scheduler.posterior(Denoiser(network, scheduler)(sample, t), t, sample)
    with torch.no_grad():
        return step, estimator.on_step(step)


def clean(network, scheduler, x, t, clip):
    """The predicted clean image, written out."""
    a = scheduler.alpha_bar(t)
    estimate = (x - (1 - a) ** 0.5 * network(x, timesteps=torch.full((len(x),), t))) / a**0.5
    return estimate.clamp(-1, 1) if clip else estimate


@pytest.mark.parametrize("kind", [RespacedDDPMScheduler, RespacedDDIMScheduler])
@pytest.mark.parametrize("clip", [True, False])
def test_x0_gradient_is_taken_at_the_predicted_clean_image(tiny_unet, loss, sample, clip, kind):
    network, estimator = tiny_unet(), X0Gradient(loss)
    plain, guided = make_step(network, estimator, sample, 473, clip=clip, kind=kind)
    point = clean(network, kind(1000), sample, 473, clip).detach().requires_grad_()
    terms = loss(point)
    (wanted,) = torch.autograd.grad(terms.total, point)
    torch.testing.assert_close(guided.mean, plain.mean - plain.gain * wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(estimator.logits, terms.logits.detach(), rtol=1e-4, atol=1e-4)
    assert not guided.mean.requires_grad
    assert not plain.pred_original.requires_grad


def test_x0_gradient_records_no_graph_through_the_network(tiny_unet, loss, sample):
    graphs = []
    network = tiny_unet()
    network.register_forward_hook(lambda _module, _inputs, output: graphs.append(output.requires_grad))
    make_step(network, X0Gradient(loss), sample, 473)
    assert graphs == [False]


def test_previous_gradient_lags_one_step_and_begins_at_the_start(tiny_unet, loss, sample):
    network, start = tiny_unet(), torch.rand(3, 1, 8, 8)
    estimator = X0Gradient(loss, gradient_step="previous", start=start)
    plain, guided = make_step(network, estimator, sample, 473)
    torch.testing.assert_close(guided.mean, plain.mean - plain.gain * X0Gradient(loss).at(start))
    later, later_guided = make_step(network, estimator, sample, 421)
    wanted = X0Gradient(loss).at(plain.pred_original)
    torch.testing.assert_close(later_guided.mean, later.mean - later.gain * wanted)


def test_previous_gradient_needs_a_start(loss):
    with pytest.raises(ValueError, match="start"):
        X0Gradient(loss, gradient_step="previous")
    with pytest.raises(ValueError, match="gradient_step='next'"):
        X0Gradient(loss, gradient_step="next")


@pytest.mark.parametrize("clip", [True, False])
def test_xt_gradient_is_autograd_through_the_network(tiny_unet, loss, sample, clip):
    network = tiny_unet()
    plain, guided = make_step(network, XtGradient(loss), sample, 473, clip=clip)
    point = sample.clone().requires_grad_()
    total = loss(clean(network, RespacedDDPMScheduler(1000), point, 473, clip)).total
    (wanted,) = torch.autograd.grad(total, point)
    torch.testing.assert_close(guided.mean, (plain.mean - plain.gain * wanted).detach(), rtol=1e-4, atol=1e-5)
    assert not any(value.requires_grad for value in vars(guided).values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("t", [0, 53, 473, 999])
def test_xt_gradient_has_the_gaussian_jacobian(gaussian_network, loss, sample, t):
    network = gaussian_network(0.3, 0.2)
    x0, xt = X0Gradient(loss), XtGradient(loss)
    step, _ = make_step(network, x0, sample, t, clip=False)
    leaf, _ = make_step(network, xt, sample, t, clip=False)
    a = network.table[t]
    jacobian = a**0.5 * 0.04 / (a * 0.04 + 1 - a)
    torch.testing.assert_close(xt.at(leaf.pred_original), x0.at(step.pred_original))
    with torch.enable_grad():
        prediction = Denoiser(network, RespacedDDPMScheduler(1000))(leaf.sample, t)
        (gradient,) = torch.autograd.grad(loss(prediction.original).total, leaf.sample)
    torch.testing.assert_close(gradient, jacobian * x0.at(step.pred_original), rtol=1e-3, atol=1e-5)
    guided = make_step(network, XtGradient(loss), sample, t, clip=False)[1]
    wanted = leaf.mean.detach() - step.gain * jacobian * x0.at(step.pred_original)
    torch.testing.assert_close(guided.mean, wanted, rtol=1e-4, atol=1e-4)


def test_dime_gradient_is_taken_at_the_completed_image(tiny_unet, loss, sample):
    network, completed = tiny_unet(), torch.rand(3, 1, 8, 8)
    seen = []

    def complete(step):
        seen.append(step)
        return completed

    scheduler = RespacedDDPMScheduler(1000)
    estimator = DiMEGradient(loss, complete, scheduler.alpha_bar)
    plain, guided = make_step(network, estimator, sample, 473)
    wanted = X0Gradient(loss).at(completed) / scheduler.alpha_bar(473) ** 0.5
    torch.testing.assert_close(guided.mean, plain.mean - plain.gain * wanted)
    assert seen[0].mean is plain.mean  # the inner chain begins unguided


def test_dime_gradient_may_begin_at_the_clean_input(tiny_unet, loss, sample):
    scheduler, start, completed = RespacedDDPMScheduler(1000), torch.rand(3, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    estimator = DiMEGradient(loss, lambda _step: completed, scheduler.alpha_bar, start=start)
    for t, point in ((473, start), (421, completed)):
        plain, guided = make_step(tiny_unet(), estimator, sample, t)
        wanted = X0Gradient(loss).at(point) / scheduler.alpha_bar(t) ** 0.5
        torch.testing.assert_close(guided.mean, plain.mean - plain.gain * wanted)


def test_dime_gradient_is_refused_where_there_is_no_signal_before_the_inner_chain_runs(tiny_unet, loss, sample):
    scheduler = RespacedDDPMScheduler(1000, rescale_zero_terminal_snr=True, prediction_type="v_prediction")

    def complete(step):
        assert step.timestep < 999
        return torch.zeros(3, 1, 8, 8)

    estimator = DiMEGradient(loss, complete, scheduler.alpha_bar)
    with pytest.raises(ValueError, match=r"divides .* 0 at timestep 999.*zero terminal SNR.*strength below 1"):
        estimator.gradient(Step(sample, 1.0, 1.0, sample, sample, 999))
    assert estimator.gradient(Step(sample, 1.0, 1.0, sample, sample, 998)).isfinite().all()


@pytest.mark.parametrize("clip", [True, False])
def test_xt_gradient_may_leave_the_perceptual_term_at_the_clean_image(tiny_unet, sample, clip):
    network, scheduler = tiny_unet(), RespacedDDPMScheduler(1000)
    reference, features = torch.rand(3, 1, 8, 8), nn.Conv2d(1, 2, 3)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    scales = torch.tensor([10.0, 20.0, 30.0])
    loss = CounterfactualLoss(classifier, features, perceptual_scale=30.0).bind(reference, TARGET, scales)
    plain, guided = make_step(network, XtGradient(loss, perceptual_at="x0"), sample, 473, clip=clip)
    noisy = sample.clone().requires_grad_()
    image = clean(network, scheduler, noisy, 473, clip)
    class_loss = (scales * nn.functional.cross_entropy(classifier(image), TARGET, reduction="none")).sum()
    (through,) = torch.autograd.grad(class_loss, noisy)
    point = image.detach().requires_grad_()
    distance = (features(point) - features(reference)).pow(2).flatten(1).mean(1).sum()
    (direct,) = torch.autograd.grad(30.0 * distance, point)
    wanted = plain.mean - plain.gain * (through + direct)
    torch.testing.assert_close(guided.mean, wanted.detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="perceptual_at='z'"):
        XtGradient(loss, perceptual_at="z")


def test_l1_hook_moves_the_mean_towards_the_reference_by_its_sign(tiny_unet, loss, sample):
    reference = torch.zeros(3, 1, 8, 8)
    plain, _ = make_step(tiny_unet(), X0Gradient(loss), sample, 473)
    moved = NoisyL1(reference, 0.05).on_step(plain)
    torch.testing.assert_close(moved.mean, plain.mean - plain.gain * 0.05 * sample.sign())


@pytest.mark.parametrize(
    ("every", "wanted"), [(1, [1, 2, 3, 4, 5, 6, 7]), (2, [1, 1, 2, 2, 3, 3, 4]), (3, [1, 1, 1, 2, 2, 2, 3])]
)
def test_a_gradient_is_taken_at_the_first_and_then_at_every_so_many_steps(every, wanted):
    class Numbered(GradientEstimator):
        taken = 0

        def gradient(self, step):
            self.taken += 1
            return torch.full_like(step.mean, self.taken)

    estimator, image = Numbered(lambda image: None, every=every), torch.zeros(1, 1, 1, 1)
    means = [estimator.on_step(Step(image, 0.0, 1.0, image, image, t)).mean.item() for t in range(7)]
    assert means == [-number for number in wanted]
