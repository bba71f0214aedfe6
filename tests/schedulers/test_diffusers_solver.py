# SPDX-License-Identifier: Apache-2.0
"""diffusers' solvers behind our interface: the exact flow of Gaussian data, their own loops, guidance, and chains."""

from __future__ import annotations

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from medcf.networks import Denoiser
from medcf.sampling import Hook, denoise
from medcf.schedulers import Prediction, RespacedDDIMScheduler, create_scheduler

diffusers = pytest.importorskip("diffusers")

SOLVERS = ["unipc", "dpmpp", "euler", "pndm"]
THEIRS = {
    "unipc": diffusers.UniPCMultistepScheduler,
    "dpmpp": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "pndm": diffusers.PNDMScheduler,
}
DOUBLE = torch.float64


def make(name, steps=20, **options):
    scheduler = create_scheduler(name, **{"num_train_timesteps": 1000, "clip_sample": False} | options)
    scheduler.set_timesteps(steps)
    return scheduler


def output(x: torch.Tensor, t: int) -> torch.Tensor:
    """What some pixelwise network returns; nothing makes its outputs consistent with each other."""
    return 0.7 * torch.tanh(x + 0.3) + 0.2 * math.cos(t / 300) * x


def network(x: torch.Tensor, timesteps: torch.Tensor, context: object = None) -> torch.Tensor:
    return output(x, int(timesteps[0]))


def start(dtype: torch.dtype = DOUBLE, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(dtype)


def flow(gaussian, x: torch.Tensor, a: float, p: float) -> torch.Tensor:
    """The exact solution of the probability flow from A to P: the quantile of x stays the same."""
    spread = math.sqrt((p * gaussian.std**2 + 1 - p) / (a * gaussian.std**2 + 1 - a))
    return math.sqrt(p) * gaussian.mean + spread * (x - math.sqrt(a) * gaussian.mean)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpmpp", 2), ("unipc", 3), ("pndm", 2)])
def test_halving_the_steps_reduces_the_error_by_the_order(gaussian, name, order):
    """UniPC's corrector adds one to its order of 2; PNDM's first step, DDIM's, limits it to 2."""
    count, last = 1025, 128
    table = np.cumprod(1 - np.linspace(1e-4, 2e-2, count))
    data = type(gaussian)(std=1.5, alpha_bar=table)
    errors = []
    for stride in (16, 8, 4):
        scheduler = create_scheduler(name, num_train_timesteps=count, clip_sample=False)
        scheduler.keep(range(last, count, stride))
        sample = start()
        exact = flow(data, sample, table[-1], table[last])
        for t in scheduler.timesteps.tolist()[:-1]:
            sample, _ = scheduler.step(data.output(sample, t), t, sample)
        errors.append(float((sample - exact).abs().max()))
    rates = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert rates == pytest.approx([order, order], abs=0.1)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_chain_ends_at_the_exact_flow(gaussian, name, prediction_type, strength):
    scheduler = make(name, 100, spacing="trailing", prediction_type=prediction_type)
    timesteps = scheduler.timesteps_from(strength)
    sample = start()
    exact = flow(gaussian, sample, gaussian.alpha_bar[timesteps[0]], 1.0)
    for t in timesteps:
        sample, _ = scheduler.step(gaussian.output(sample, t, prediction_type), t, sample)
    assert sample.dtype == DOUBLE
    assert float((sample - exact).abs().max()) < (0.03 if name == "euler" else 0.006)
    assert float(exact.std()) > 0.1


CASES = [(name, kind) for name in SOLVERS[:3] for kind in ("epsilon", "v_prediction", "sample")] + [("pndm", "epsilon")]


@pytest.mark.parametrize(("name", "prediction_type"), CASES)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_chain_is_the_loop_of_diffusers(name, prediction_type, strength):
    """PNDM with ε only: of other outputs diffusers averages v itself over timesteps, or refuses them."""
    count = 20
    own = {"skip_prk_steps": True, "set_alpha_to_one": True} if name == "pndm" else {}
    theirs = THEIRS[name](
        beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing", prediction_type=prediction_type, **own
    )
    theirs.set_timesteps(count)
    ours = make(name, count, spacing="trailing", prediction_type=prediction_type)
    timesteps = ours.timesteps_from(strength)
    if name != "pndm":
        theirs.set_begin_index(count - len(timesteps))
        assert theirs.timesteps.tolist()[-len(timesteps) :] == timesteps
    growth = [1.0] * (count + 1)
    if name == "euler":
        growth = [float((1 + sigma**2) ** 0.5) for sigma in theirs.sigmas]
    first = count - len(timesteps)
    sample = expected = start(torch.float32)
    expected = expected * growth[first]
    for i, t in enumerate(timesteps):
        sample, _ = ours.step(output(sample, t), t, sample)
        given = expected if name == "pndm" else theirs.scale_model_input(expected, torch.tensor(float(t)))
        at = t if name == "pndm" else torch.tensor(float(t))
        expected = theirs.step(output(given, t), at, expected).prev_sample
        if name == "pndm" and i == 0:
            theirs.counter += 1  # without the second call at the second timestep
        torch.testing.assert_close(sample, expected / growth[first + i + 1], rtol=1e-5, atol=1e-5)


def test_euler_in_sigma_and_dpm_solver_of_first_order_are_ddim():
    results = []
    for scheduler in (
        make("euler", spacing="leading"),
        make("dpmpp", spacing="leading", solver_options={"solver_order": 1}),
        RespacedDDIMScheduler(1000, clip_sample=False, spacing="leading"),
    ):
        scheduler.set_timesteps(20)
        sample = start()
        for t in scheduler.timesteps.tolist():
            sample, _ = scheduler.step(output(sample, t), t, sample)
        results.append(sample)
    for result in results[:2]:  # diffusers rounds to float32 inside
        torch.testing.assert_close(result, results[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_first_step_of_a_partial_chain_is_ddims_and_the_last_returns_the_clean_image(name):
    scheduler, ddim = make(name), RespacedDDIMScheduler(1000, clip_sample=False)
    ddim.set_timesteps(20)
    timesteps = scheduler.timesteps_from(0.4)
    sample = start()
    t = timesteps[0]
    steps = [each.posterior(each.convert(output(sample, t), t, sample), t, sample) for each in (scheduler, ddim)]
    torch.testing.assert_close(steps[0].mean, steps[1].mean, rtol=1e-6, atol=1e-6)
    assert steps[0].gain == pytest.approx(steps[1].gain, rel=1e-5)
    for t in timesteps[1:]:
        last = scheduler.posterior(scheduler.convert(output(sample, t), t, sample), t, sample)
    assert last.variance == 0.0
    if name != "pndm":  # which extrapolates ε to the end
        torch.testing.assert_close(last.mean, last.pred_original)


@pytest.mark.parametrize("name", SOLVERS)
def test_guidance_equals_a_network_whose_noise_is_changed_at_every_step(name):
    """Also in the steps after it, and past UniPC's corrector: the history keeps the guided prediction."""
    scheduler, reference = make(name), make(name)
    generator = torch.Generator().manual_seed(5)
    sample = expected = start()
    for t in scheduler.timesteps.tolist():
        gradient = torch.randn(sample.shape, dtype=DOUBLE, generator=generator)
        guided = scheduler.posterior(scheduler.convert(output(sample, t), t, sample), t, sample).guide(0.1 * gradient)
        guided = guided.guide(0.2 * gradient)  # two hooks guide the same step
        sample = guided.draw()

        a = scheduler.alpha_bar(t)
        noise = reference.convert(output(expected, t), t, expected).noise + math.sqrt(1 - a) * 0.3 * gradient
        original = (expected - math.sqrt(1 - a) * noise) / math.sqrt(a)
        expected = reference.posterior(Prediction(noise, original, noise), t, expected).draw()
        torch.testing.assert_close(sample, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_what_a_hook_does_to_a_sample_is_not_undone(name):
    """UniPC's corrector would forget it: it starts from the sample before."""

    def run(move: float) -> tuple[torch.Tensor, float]:
        scheduler, sample = make(name, prediction_type="sample"), start()
        timesteps = scheduler.timesteps.tolist()
        for t in timesteps[:8]:
            prediction = scheduler.convert(torch.full_like(sample, math.sin(t)), t, sample)
            noise = torch.full_like(sample, math.cos(t))
            step = scheduler.posterior(Prediction(noise, prediction.original, noise), t, sample)
            sample = step.draw() + (move if t == timesteps[6] else 0.0)
        a, p = scheduler.alpha_bar(timesteps[7]), scheduler.alpha_bar_prev(timesteps[7])
        return sample, math.sqrt(p / a) if name == "pndm" else math.sqrt((1 - p) / (1 - a))

    (moved, scale), (still, _) = run(0.5), run(0.0)
    torch.testing.assert_close(moved - still, torch.full_like(still, 0.5 * scale), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_chain_inside_a_chain_does_not_disturb_it(name):
    """As in DiME, which completes an inner chain at every step of the outer one."""

    class Inner(Hook):
        def on_step(self, step):
            rest = timesteps[timesteps.index(step.timestep) + 1 :]
            self.last = denoise(denoiser, scheduler, step.draw(), rest)
            return step

    scheduler = make(name)
    denoiser = Denoiser(network, scheduler)
    timesteps = scheduler.timesteps.tolist()
    plain = denoise(denoiser, scheduler, start(), timesteps)
    torch.testing.assert_close(denoise(denoiser, scheduler, start(), timesteps, hooks=[Inner()]), plain, rtol=0, atol=0)

    for t in timesteps[:3]:  # by hand, in the middle of a chain that is not the loop's
        scheduler.step(start(), t, start())
    torch.testing.assert_close(denoise(denoiser, scheduler, start(), timesteps), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    scheduler = make(name)
    denoiser = Denoiser(network, scheduler)
    timesteps = scheduler.timesteps_from(0.6)
    together = denoise(denoiser, scheduler, start(torch.float32, 5), timesteps)
    alone = denoise(denoiser, scheduler, start(torch.float32, 5)[3:4], timesteps)
    torch.testing.assert_close(alone, together[3:4], rtol=1e-6, atol=1e-6)
    assert float((together[0] - together[3]).abs().max()) > 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_follows_float64_and_half_precision_is_computed_in_float32(name):
    scheduler = make(name)
    denoiser, timesteps = Denoiser(network, scheduler), scheduler.timesteps.tolist()
    double = denoise(denoiser, scheduler, start(), timesteps)
    single = denoise(denoiser, scheduler, start(torch.float32), timesteps)
    assert double.dtype == DOUBLE
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
    assert not torch.equal(single.double(), double)
    half, t = start(torch.bfloat16), timesteps[0]
    step = scheduler.posterior(scheduler.convert(half, t, half), t, half)
    assert step.mean.dtype == torch.float32
    assert step.draw().dtype == torch.bfloat16


@pytest.mark.parametrize("name", SOLVERS)
def test_the_clean_image_is_clipped_before_the_step(name):
    scheduler = make(name, clip_sample=True)
    sample = 5 * start()
    for t in scheduler.timesteps.tolist():
        step = scheduler.posterior(scheduler.convert(output(sample, t), t, sample), t, sample)
        sample = step.draw()
    assert float(step.pred_original.abs().max()) <= 1
    assert float(sample.abs().max()) <= (1.2 if name == "pndm" else 1 + 1e-6)


def test_what_cannot_work_is_refused_by_name(monkeypatch):
    with pytest.raises(
        ValueError, match=r"'use_karras_sigmas' is not one of the `solver_options` of 'unipc': solver_o"
    ):
        make("unipc", solver_options={"use_karras_sigmas": True})
    with pytest.raises(ValueError, match=r"solver.*heun"):
        create_scheduler("unipc", solver="heun")
    open_end = make("unipc", solver_options={"lower_order_final": False})
    with pytest.raises(ValueError, match="leave `lower_order_final` on"):
        open_end.step(start(), open_end.kept[2], start())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"'dpmpp' needs diffusers. Run: python -m pip install 'medcf\[diffusers\]'"):
        make("dpmpp")
