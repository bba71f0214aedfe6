# SPDX-License-Identifier: Apache-2.0
"""Guidance is exact: Gaussian data, its closed-form denoiser and a linear classifier leave no room for luck.

Data N(m, s^2) per pixel, tilted by exp(lambda w x), is N(m + lambda w s^2, s^2). With the loss -lambda w x the gradient
is constant, every step is affine, and mean and variance of the guided chain follow a recursion that is written out here
from the schedule alone. Nothing is sampled unless a test says so.
"""

from __future__ import annotations

import pytest
import torch

from medcf.guidance import CounterfactualLoss, DiMEGradient, X0Gradient, XtGradient
from medcf.networks import Denoiser
from medcf.sampling import Hook, denoise, make_generators
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

MEAN, STD, SCALE, WEIGHT = 0.3, 0.2, 4.0, 1.5
PULL = SCALE * WEIGHT  # minus the gradient of the loss
POSTERIOR = MEAN + PULL * STD**2
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()


def linear_classifier(image):
    """Logits 0 and w x, summed over pixels."""
    return torch.stack([image.new_zeros(len(image)), WEIGHT * image.flatten(1).sum(1)], dim=1)


class Moments(Hook):
    """Replaces each draw by the mean and multiplies out the slopes: three pixels tell an affine map."""

    def __init__(self):
        self.variance = 1.0

    def after_step(self, sample, step):
        low, middle, high = step.mean.flatten().tolist()
        x_low, _, x_high = step.sample.detach().flatten().tolist()
        assert middle == pytest.approx((low + high) / 2, abs=1e-6)
        self.variance = ((high - low) / (x_high - x_low)) ** 2 * self.variance + float(step.variance)
        return step.mean


def chain(network, scheduler, estimator):
    """Mean and variance of the guided chain that starts from N(0, 1)."""
    loss = CounterfactualLoss(linear_classifier, None, SCALE, class_loss="logit")
    probe = torch.tensor([-50.0, 0.0, 50.0], dtype=torch.float64).reshape(1, 1, 3, 1)
    moments = Moments()
    denoiser = Denoiser(network, scheduler)
    bound = loss.bind(probe, torch.tensor([1]))
    timesteps = scheduler.timesteps.tolist()
    final = denoise(denoiser, scheduler, probe, timesteps, hooks=(estimator(bound), moments))
    return final.flatten()[1].item(), moments.variance


def recursion(steps, solver, gradient, mean=MEAN, pull=PULL):
    """The same moments from the schedule alone (posterior of Gaussian data; DDPM eq. 7, DDIM eq. 12)."""
    kept = [round(i * 999 / (steps - 1)) for i in range(steps)]
    m, v = 0.0, 1.0
    for i in reversed(range(steps)):
        a, p = TABLE[kept[i]], TABLE[kept[i - 1]] if i else 1.0
        k = a**0.5 * STD**2 / (a * STD**2 + 1 - a)
        beta = 1 - a / p
        if solver == "ddim":
            c1, variance = ((1 - p) / (1 - a)) ** 0.5, 0.0
            c0 = p**0.5 - c1 * a**0.5
            gain = c0 * (1 - a) / a**0.5
        else:
            c0, c1 = p**0.5 * beta / (1 - a), (a / p) ** 0.5 * (1 - p) / (1 - a)
            gain = beta * (1 - p) / (1 - a)
            if solver == "fixed_large" and i:
                gain = beta
            elif solver == "fixed_large":  # the posterior variance of the step before
                after = TABLE[kept[1]]
                gain = (1 - after / a) * (1 - a) / (1 - after)
            variance = gain if i else 0.0
        jacobian = {"x0": 1.0, "xt": k}[gradient]
        m = c0 * (mean + k * (m - a**0.5 * mean)) + c1 * m + gain * jacobian * pull
        v = (c0 * k + c1) ** 2 * v + variance
    return m, v


def make_scheduler(solver, steps):
    if solver == "ddim":
        scheduler = RespacedDDIMScheduler(1000, clip_sample=False)
    else:
        scheduler = RespacedDDPMScheduler(1000, clip_sample=False, variance_type=solver)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [7, 50, 400])
@pytest.mark.parametrize("solver", ["fixed_small", "fixed_large", "ddim"])
@pytest.mark.parametrize(("gradient", "estimator"), [("x0", X0Gradient), ("xt", XtGradient)])
def test_guided_chain_follows_the_exact_recursion(
    gaussian_network, solver, steps, gradient, estimator, prediction_type
):
    scheduler = make_scheduler(solver, steps)
    scheduler.prediction_type = prediction_type
    mean, variance = chain(gaussian_network(MEAN, STD, prediction_type), scheduler, estimator)
    wanted_mean, wanted_variance = recursion(steps, solver, gradient)
    assert mean == pytest.approx(wanted_mean, abs=1e-5)
    assert variance == pytest.approx(wanted_variance, rel=1e-4)
    unguided, _ = recursion(steps, solver, gradient, pull=0.0)
    assert mean - unguided > 0.005  # the guidance did something


@pytest.mark.parametrize("steps", [7, 50, 400])
def test_deterministic_xt_guidance_is_the_chain_of_the_posterior_at_any_step_count(gaussian_network, steps):
    mean, variance = chain(gaussian_network(MEAN, STD), make_scheduler("ddim", steps), XtGradient)
    wanted_mean, wanted_variance = recursion(steps, "ddim", "xt", mean=POSTERIOR, pull=0.0)
    assert mean == pytest.approx(wanted_mean, abs=1e-5)
    assert variance == pytest.approx(wanted_variance, rel=1e-4)


@pytest.mark.parametrize("solver", ["fixed_small", "fixed_large"])
def test_stochastic_xt_guidance_approaches_the_posterior_with_many_steps(gaussian_network, solver):
    error = {steps: abs(recursion(steps, solver, "xt")[0] - POSTERIOR) for steps in (250, 500, 1000)}
    assert error[1000] < error[500] < error[250]
    assert error[1000] < 0.05 * PULL * STD**2
    mean, variance = chain(gaussian_network(MEAN, STD), make_scheduler(solver, 1000), XtGradient)
    assert mean == pytest.approx(POSTERIOR, abs=error[1000] + 1e-5)
    assert variance == pytest.approx(STD**2, rel=abs(recursion(1000, solver, "xt")[1] / STD**2 - 1) + 1e-4)
    assert variance == pytest.approx(STD**2, rel=0.05)


def test_drawn_samples_have_the_moments_of_the_recursion(gaussian_network):
    scheduler = make_scheduler("fixed_small", 20)
    generators = make_generators(0, ["a", "b"])
    start = torch.stack([torch.randn(1, 300, 300, generator=generator) for generator in generators])
    loss = CounterfactualLoss(linear_classifier, None, SCALE, class_loss="logit").bind(start, torch.tensor([1, 1]))
    denoiser = Denoiser(gaussian_network(MEAN, STD), scheduler)
    timesteps = scheduler.timesteps.tolist()
    x = denoise(denoiser, scheduler, start, timesteps, generators=generators, hooks=(X0Gradient(loss),))
    mean, variance = recursion(20, "fixed_small", "x0")
    assert float(x.mean()) == pytest.approx(mean, abs=4 * (variance / x.numel()) ** 0.5)
    assert float(x.var()) == pytest.approx(variance, rel=4 * (2 / x.numel()) ** 0.5)


def test_dime_guidance_follows_its_own_recursion(gaussian_network):
    """With a linear loss the inner chain's end does not matter: DiME is the x0 gradient over sqrt(A)."""
    scheduler = make_scheduler("ddim", 12)
    network = gaussian_network(MEAN, STD)

    def complete(step):
        rest = [t for t in scheduler.timesteps.tolist() if t < step.timestep]
        return denoise(Denoiser(network, scheduler), scheduler, step.draw(), rest)

    mean, _ = chain(network, scheduler, lambda loss: DiMEGradient(loss, complete, scheduler.alpha_bar))
    kept, m = [round(i * 999 / 11) for i in range(12)], 0.0
    for i in reversed(range(12)):
        a, p = TABLE[kept[i]], TABLE[kept[i - 1]] if i else 1.0
        k, c1 = a**0.5 * STD**2 / (a * STD**2 + 1 - a), ((1 - p) / (1 - a)) ** 0.5
        c0 = p**0.5 - c1 * a**0.5
        m = c0 * (MEAN + k * (m - a**0.5 * MEAN)) + c1 * m + c0 * (1 - a) / a**0.5 * PULL / a**0.5
    assert mean == pytest.approx(m, rel=1e-5)
