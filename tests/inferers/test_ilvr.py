# SPDX-License-Identifier: Apache-2.0
"""ILVR: its filter against interpolation, and the low frequencies that it promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from medcf.inferers import LowPass, create_method
from medcf.sampling import make_generators, standard_noise
from medcf.schedulers import RespacedDDIMScheduler

TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()


@pytest.fixture
def network(gaussian_classes):
    """Class 0 is dark and class 1 bright; class 2 is the null class."""
    return gaussian_classes((-0.5, 0.5, 0.0), 0.2)


@pytest.fixture
def volumes():
    return torch.rand(2, 1, 8, 12, 8, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.9


def judge(image):
    bright = image.flatten(1).mean(1) * 5
    return torch.stack([-bright, bright], dim=1)


def make(**options):
    defaults = {"num_inference_steps": 10, "progress": False, "guidance_scale": 1.0, "clip_denoised": False}
    defaults["scheduler"] = RespacedDDIMScheduler(1000)
    return create_method("ilvr", classifier=judge, target=1, **(defaults | options))


@pytest.mark.parametrize("factor", [2, 4])
def test_filter_is_block_means_interpolated_back(volumes, factor):
    size = volumes.shape[2:]
    coarse = F.interpolate(volumes, size=[side // factor for side in size], mode="area")
    wanted = F.interpolate(coarse, size=size, mode="trilinear")
    torch.testing.assert_close(LowPass(size, factor, "interpolation")(volumes), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12, 8), (9, 7)])
@pytest.mark.parametrize("factor", [2, 4])
def test_projection_keeps_the_block_means_and_filters_once(size, factor):
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    lowpass, plain = LowPass(size, factor), LowPass(size, factor, "interpolation")
    once = lowpass(image)
    torch.testing.assert_close(lowpass(once), once, rtol=0, atol=1e-5)
    assert (plain(plain(image)) - plain(image)).abs().max() > 0.05  # linear interpolation alone is no projection
    coarse = [-(-side // factor) for side in size]
    means = [F.interpolate(x, size=coarse, mode="area") for x in (image, once)]
    torch.testing.assert_close(means[1], means[0], rtol=0, atol=1e-5)
    constant = torch.full((1, 1, *size), 0.3)
    torch.testing.assert_close(lowpass(constant), constant)
    assert once.var() < image.var()


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("w", [0.0, 2.0])
def test_result_has_the_low_frequencies_of_the_input_if_replaced_to_the_end(network, volumes, factor, w):
    small = volumes * 0.3  # stays inside [-1, 1], where nothing is clipped
    options = {"downsample_factor": factor, "stop_timestep": 0, "guidance_scale": 1 + w, "null_class_labels": 2}
    result = make(**options).explain(small, network, ["a", "b"], run_unchanged=True).image
    assert result.abs().max() < 1
    lowpass = LowPass(volumes.shape[2:], factor)
    torch.testing.assert_close(lowpass(result), lowpass(small), rtol=0, atol=1e-5)
    assert (result - small).abs().mean() > 0.01  # the rest is generated


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("noise", ["fresh", "shared"])
@pytest.mark.parametrize(("level", "final"), [("exact", 1.0), ("exact", TABLE[0]), ("published_code", 1.0)])
def test_the_loop_is_the_formula_written_out(network, volumes, passes, noise, level, final):
    """Every pass starts from noise of its own and holds on to the input, so the last says it all."""
    stop = 0 if final < 1 else 500
    options = {"num_iterations": passes, "reference_noise": noise, "level": level, "num_inference_steps": 4}
    scheduler = RespacedDDIMScheduler(1000, set_alpha_to_one=final == 1)
    result = make(scheduler=scheduler, stop_timestep=stop, **options).explain(volumes, network, ["a", "b"]).image

    def generators(stream):
        return make_generators(0, ["a", "b"], "cpu", (stream, passes - 1))

    x, other, lowpass = standard_noise(volumes, generators("pass")), generators("reference"), LowPass((8, 12, 8), 2)
    steps = [999, 666, 333, 0]
    for i, t in enumerate(steps):
        a, p = TABLE[t], TABLE[steps[i + 1]] if i < 3 else final
        epsilon = network(x, torch.full((2,), t), torch.tensor([1, 1]))
        x = p**0.5 * (x - (1 - a) ** 0.5 * epsilon) / a**0.5 + (1 - p) ** 0.5 * epsilon
        if t >= stop:
            other = generators("reference") if noise == "shared" else other
            q = a if level == "published_code" else p
            y = q**0.5 * volumes + (1 - q) ** 0.5 * torch.stack([torch.randn(1, 8, 12, 8, generator=g) for g in other])
            x = x - lowpass(x) + lowpass(y)
    torch.testing.assert_close(result, x.clamp(-1, 1), rtol=0, atol=1e-4)


def test_filter_is_exact_under_autocast(volumes):
    lowpass = LowPass(volumes.shape[2:], 2)
    expected = lowpass(volumes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lowpass(volumes), expected)


def test_the_longer_it_replaces_the_closer_it_stays(network, volumes):
    lowpass = LowPass(volumes.shape[2:], 2)
    distance = []
    for stop in (0, 250, 500, 1000):
        result = make(stop_timestep=stop, num_inference_steps=40).explain(volumes, network, ["a", "b"]).image
        distance.append(float(lowpass(result - volumes).abs().mean()))
    assert sorted(distance) == distance
    free = make(stop_timestep=1000).explain(volumes, network, ["a", "b"]).image
    same = make(stop_timestep=1000).explain(volumes * 0.9, network, ["a", "b"]).image
    assert torch.equal(free, same)  # nothing of the input is left


def test_coarser_filter_leaves_more_to_the_class(network, volumes):
    changes = [
        (make(stop_timestep=0, downsample_factor=n).explain(volumes, network, ["a", "b"]).image - volumes).var()
        for n in (2, 4)
    ]
    assert changes[0] < changes[1]


def test_published_code_noises_the_input_one_step_further(network, volumes):
    exact, code = (
        make(level=level, stop_timestep=500).explain(volumes, network, ["a", "b"]).image
        for level in ("exact", "published_code")
    )
    assert (exact - code).abs().max() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"downsample_factor": 1}, "2 or more"),
        ({"stop_timestep": 1001}, "outside"),
        ({"lowpass": "gauss"}, "'projection', 'interpolation'"),
        ({"strength": 0.5}, "strength"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
