# SPDX-License-Identifier: Apache-2.0
"""MONAI accepts the schedulers, and where its own are right they agree."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import DiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from medcf.registry import SCHEDULERS, lookup
from medcf.schedulers import DDIMInverseScheduler, RespacedDDIMScheduler, RespacedDDPMScheduler, create_scheduler


@pytest.mark.parametrize(
    ("kind", "options", "std"),
    [("ddpm", {"variance_type": "fixed_small"}, 0.1584), ("ddim", {}, 0.1758)],
)
def test_the_inferer_samples_the_distribution_of_the_exact_chain(make_scheduler, gaussian, kind, options, std):
    """100 000 pixels: four standard errors of the sampled std are about 0.0016, those of the mean 0.0022."""
    torch.manual_seed(0)
    scheduler = make_scheduler(kind, **options)
    scheduler.set_timesteps(50)
    noise = torch.randn(1, 1, 250, 400)
    sample = DiffusionInferer(scheduler).sample(noise, gaussian.network, scheduler, verbose=False)
    assert float(sample.std()) == pytest.approx(std, abs=0.0016)
    assert float(sample.mean()) == pytest.approx(0.3, abs=0.0022)


def test_the_inferer_inverts_and_samples_back(gaussian):
    image = gaussian.mean + gaussian.std * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    inverse, forward = DDIMInverseScheduler(), RespacedDDIMScheduler(clip_sample=False)
    for scheduler in (inverse, forward):
        scheduler.set_timesteps(400)
    latent = DiffusionInferer(inverse).sample(image, gaussian.network, verbose=False)
    assert float(latent.std()) == pytest.approx(float(image.std()) / gaussian.std, rel=0.03)
    back = DiffusionInferer(forward).sample(latent, gaussian.network, verbose=False)
    assert float((back - image).abs().max()) < 0.02


def test_the_inferer_trains_a_network_of_monai():
    network = DiffusionModelUNet(
        spatial_dims=2, in_channels=1, out_channels=1, num_res_blocks=1, channels=[8, 8],
        attention_levels=[False, False], norm_num_groups=4, num_head_channels=4,
    )  # fmt: skip
    scheduler = RespacedDDPMScheduler()
    image, noise = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    times = torch.tensor([3, 900])
    seen = {}
    network.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    prediction = DiffusionInferer(scheduler)(inputs=image, diffusion_model=network, noise=noise, timesteps=times)
    assert prediction.shape == image.shape
    assert torch.equal(seen["x"], scheduler.add_noise(image, noise, times))
    torch.nn.functional.mse_loss(prediction, noise).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_with_every_step_kept_ours_are_monai_s(prediction_type, clip_sample):
    image = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(1))
    output = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(2))
    options = {"prediction_type": prediction_type, "clip_sample": clip_sample}
    pairs = [
        (RespacedDDPMScheduler(**options), DDPMScheduler(**options), {}),
        (RespacedDDPMScheduler(variance_type="fixed_large", **options),
         DDPMScheduler(variance_type="fixed_large", **options), {}),
        (RespacedDDIMScheduler(**options), DDIMScheduler(**options), {"eta": 0.0}),
        (RespacedDDIMScheduler(**options), DDIMScheduler(**options), {"eta": 0.7}),
    ]  # fmt: skip
    for ours, theirs, arguments in pairs:
        theirs.set_timesteps(1000)
        for t in (0, 1, 298, 999):
            results = [
                s.step(output, t, image, generator=torch.Generator().manual_seed(3), **arguments)
                for s in (ours, theirs)
            ]
            for a, b in zip(*results, strict=True):
                assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_noising_and_velocity_are_monai_s():
    image, noise = torch.randn(3, 1, 5), torch.randn(3, 1, 5)
    times = torch.tensor([0, 400, 999])
    ours, theirs = RespacedDDPMScheduler(), DDPMScheduler()
    assert torch.allclose(ours.add_noise(image, noise, times), theirs.add_noise(image, noise, times), atol=1e-6)
    assert torch.allclose(ours.get_velocity(image, noise, times), theirs.get_velocity(image, noise, times), atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_the_inferer_computes_the_likelihood_that_monai_s_scheduler_gives(tiny_unet, prediction_type, variance_type):
    network, image = tiny_unet(), torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    options = {"num_train_timesteps": 12, "prediction_type": prediction_type, "variance_type": variance_type}
    found = []
    for scheduler in (RespacedDDPMScheduler(**options), DDPMScheduler(**options)):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(DiffusionInferer(scheduler).get_likelihood(image, network, verbose=False))
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)  # MONAI's tables are float32
    assert bool(found[0].isfinite().all())
    assert float((found[0][0] - found[0][1]).abs()) > 0


def test_the_likelihood_of_a_shortened_chain_is_refused(tiny_unet):
    scheduler = RespacedDDPMScheduler(num_train_timesteps=12)
    scheduler.set_timesteps(4)
    assert repr(scheduler) == "RespacedDDPMScheduler(4 of 12 steps)"
    with pytest.raises(ValueError, match=r"4 of 12 are kept: call set_timesteps\(12\)"):
        DiffusionInferer(scheduler).get_likelihood(torch.rand(1, 1, 8, 8), tiny_unet(), verbose=False)


def test_a_metatensor_keeps_its_geometry():
    affine = torch.diag(torch.tensor([1.75, 1.75, 1.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.rand(1, 1, 4, 4), affine=affine)
    for scheduler_type in (RespacedDDPMScheduler, RespacedDDIMScheduler, DDIMInverseScheduler):
        result, _ = scheduler_type().step(torch.zeros(1, 1, 4, 4), 500, image)
        assert isinstance(result, MetaTensor)
        assert torch.equal(result.affine, affine)


def test_schedulers_are_found_by_name_and_built_from_a_config():
    assert lookup(SCHEDULERS, "ddpm") is RespacedDDPMScheduler
    assert lookup(SCHEDULERS, "ddim") is RespacedDDIMScheduler
    assert lookup(SCHEDULERS, "ddim_inverse") is DDIMInverseScheduler
    config = {
        "_target_": "medcf.schedulers.RespacedDDPMScheduler",
        "num_train_timesteps": 100,
        "schedule": "scaled_linear_beta",
        "beta_end": 0.01,
        "variance_type": "fixed_large",
        "spacing": "trailing",
    }
    scheduler = ConfigParser({"scheduler": config}).get_parsed_content("scheduler")
    assert isinstance(scheduler, RespacedDDPMScheduler)
    assert isinstance(scheduler, DDPMScheduler)
    assert float(scheduler.betas[-1]) == pytest.approx(0.01)
    assert scheduler.spacing == "trailing"
    by_name = config | {"_target_": "medcf.schedulers.create_scheduler", "name": "ddpm"}
    again = ConfigParser({"scheduler": by_name}).get_parsed_content("scheduler")
    assert type(again) is RespacedDDPMScheduler
    assert torch.equal(again.betas, scheduler.betas)


def test_an_unknown_scheduler_or_argument_is_named():
    with pytest.raises(ValueError, match=r"'heun' is not one of the registered schedulers: .*ddim, ddim_i"):
        create_scheduler("heun")
    with pytest.raises(ValueError, match=r"'ddim', one of the registered schedulers, rejects .*beta_final"):
        create_scheduler("ddim", beta_final=0.01)
