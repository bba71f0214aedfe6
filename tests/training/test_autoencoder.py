# SPDX-License-Identifier: Apache-2.0
"""Training of an autoencoder: its losses in closed form, and the scale that makes its latents unit normal."""

from __future__ import annotations

import pytest
import torch
from monai.engines import AdversarialTrainer
from monai.networks.nets import AutoencoderKL, PatchDiscriminator
from monai.utils import AdversarialIterationEvents

from medcf.guidance import PerceptualFeatures
from medcf.networks import BundleAutoencoder
from medcf.runtime.weights import load_weights
from medcf.sampling import LatentSpace
from medcf.training.autoencoder import AutoencoderInferer, AutoencoderLoss, MeasureLatents, PatchLoss
from medcf.training.handlers import GradientClipping, LossCurve, loss_of
from medcf.training.prepare_batch import TargetPrepareBatch
from medcf.training.state import ResumableCheckpoint

LEVELS = {"channels": (8, 8), "attention_levels": (False, False), "num_res_blocks": 1, "norm_num_groups": 4}


def tiny(**options):
    torch.manual_seed(0)
    plain = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    return BundleAutoencoder(2, latent_channels=2, **LEVELS, **plain, **options)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(3)
    return [{"image": torch.rand(1, 16, 16, generator=generator) * 2 - 1} for _ in range(40)]


def test_shift_and_scale_make_the_latents_unit_normal_and_travel_with_the_weights(images, tmp_path):
    network = tiny()
    MeasureLatents(network, images, batch_size=7)(None)
    torch.save(network.state_dict(), tmp_path / "autoencoder.pt")
    space = LatentSpace(load_weights(tiny(), tmp_path / "autoencoder.pt"))
    stack = torch.stack([item["image"] for item in images])
    with torch.no_grad():
        latent = space.encode(stack)
        torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(latent.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(space.decode(latent), network.eval().reconstruct(stack), atol=1e-4, rtol=1e-4)


def test_measuring_leaves_the_mode_of_the_network(images):
    network = tiny().train()
    MeasureLatents(network, images)(None)
    assert network.training


def test_without_the_unshuffle_it_is_monais_network():
    network = tiny(pixel_unshuffle=1).eval()
    own = AutoencoderKL(
        2,
        1,
        1,
        latent_channels=2,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
        **LEVELS,
    ).eval()
    state = network.state_dict()
    own.load_state_dict({name: value for name, value in state.items() if not name.startswith("latent_")})
    image = torch.randn(1, 1, 16, 16)
    assert torch.equal(network.reconstruct(image), own.reconstruct(image))


def test_volumes_are_not_unshuffled():
    with pytest.raises(ValueError, match="give pixel_unshuffle=1"):
        BundleAutoencoder(3, latent_channels=2, **LEVELS)


def test_the_loss_has_its_closed_form():
    inferer = AutoencoderInferer(None)
    mean, deviation = torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4) + 0.5
    inferer.posterior = (mean, deviation)
    image, reconstruction = torch.randn(2, 3, 1, 16, 16)
    error = reconstruction - image
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0.0, 1.0)
    )
    features = PerceptualFeatures(torch.nn.Conv2d(1, 4, 3))
    squares = (features.extractor(reconstruction) - features.extractor(image)) ** 2
    expected = error.abs().mean() + 4 * (error**2).mean() + 0.1 * divergence.sum((1, 2, 3)).mean()
    torch.testing.assert_close(AutoencoderLoss(inferer, kl_weight=0.1)(reconstruction, image), expected)
    loss = AutoencoderLoss(inferer, kl_weight=0.1, features=features, perceptual_weight=2.0)
    torch.testing.assert_close(loss(reconstruction, image), expected + 2 * squares.mean())


def test_the_loss_needs_its_inferer():
    with pytest.raises(RuntimeError, match="the same inferer"):
        AutoencoderLoss(AutoencoderInferer(None))(torch.zeros(1), torch.zeros(1))


def test_reconstructions_are_sampled_in_training_and_means_in_validation():
    network, inferer, image = tiny(), AutoencoderInferer(None), torch.randn(2, 1, 16, 16)
    network.quant_conv_log_sigma.conv.bias.data.fill_(0.0)
    assert not torch.equal(inferer(image, network.train()), inferer(image, network))
    assert inferer.posterior is not None
    assert torch.equal(inferer(image, network.eval()), network.reconstruct(image))


def test_the_adversarial_losses_are_least_squares_on_the_last_output():
    loss = PatchLoss(weight=0.1)
    real, fake = torch.rand(2, 3, 1, 4, 4)  # positive, where MONAI's leaky activation is the identity
    noise = [torch.full((3, 1, 4, 4), 9.0)]
    torch.testing.assert_close(loss.generator([*noise, fake]), 0.1 * ((fake - 1) ** 2).mean())
    expected = 0.5 * (((real - 1) ** 2).mean() + (fake**2).mean())
    torch.testing.assert_close(loss.discriminator([*noise, real], [*noise, fake]), expected)


def adversarial(images, folder, epochs):
    """A trainer that can be killed, with everything that a bundle attaches to it."""
    network, inferer, patches = tiny(), AutoencoderInferer(None), PatchLoss()
    torch.manual_seed(1)
    discriminator = PatchDiscriminator(2, 4, 1, num_layers_d=1, norm="INSTANCE")
    optimizers = [torch.optim.Adam(each.parameters(), 0.01) for each in (network, discriminator)]
    curve = LossCurve(folder / "loss.csv", optimizers[0])
    state = {"network": network, "discriminator": discriminator, "optimizer": optimizers[0], "curve": curve}
    clipping = GradientClipping(network, event=AdversarialIterationEvents.GENERATOR_BACKWARD_COMPLETED)
    trainer = AdversarialTrainer(
        "cpu",
        epochs,
        torch.utils.data.DataLoader(images, batch_size=8),
        network,
        optimizers[0],
        patches.generator,
        AutoencoderLoss(inferer),
        discriminator,
        optimizers[1],
        patches.discriminator,
        g_inferer=inferer,
        d_inferer=inferer,
        event_names=[AdversarialIterationEvents],  # MONAI registers them after it attaches the handlers
        prepare_batch=TargetPrepareBatch("image"),
        train_handlers=[clipping, curve, ResumableCheckpoint(folder, {**state, "d_optimizer": optimizers[1]})],
        decollate=False,
    )
    return trainer, network, curve


def test_monais_adversarial_trainer_learns_and_resumes(images, tmp_path):
    trainer, network, curve = adversarial(images, tmp_path, 4)
    trainer.run()
    losses = [row[1] for row in curve.rows]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert loss_of(trainer.state.output) == losses[-1]
    trainer, again, curve = adversarial(images, tmp_path, 5)
    trainer.run()
    assert [row[1] for row in curve.rows[:20]] == losses
    assert len(curve.rows) == 25
    assert not torch.equal(again.decoder.blocks[0].conv.weight, network.decoder.blocks[0].conv.weight)
