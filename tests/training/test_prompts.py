# SPDX-License-Identifier: Apache-2.0
"""Training by prompts: the null prompt at its rate, and DreamBooth's two halves."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import AutoencoderKL

from medcf.networks import BundleUNet, PromptUNet, TextEncoder
from medcf.networks.tokenizer import fit_tokenizer
from medcf.sampling import LatentSpace
from medcf.schedulers import RespacedDDPMScheduler, create_scheduler
from medcf.training.dreambooth import DreamBoothDataset, drawn_priors
from medcf.training.inferer import DiffusionTrainingInferer
from medcf.training.prompts import DreamBoothPrepareBatch, PriorPreservationLoss, PromptPrepareBatch, captions_of

CAPTIONS = ["normal", "opacity left", "opacity right"]


@pytest.fixture
def parts(tmp_path):
    """A tiny model of everything: autoencoder, U-Net and text encoder."""
    torch.manual_seed(0)
    encoder = TextEncoder.small_bert(
        fit_tokenizer(CAPTIONS, tmp_path / "tokenizer.json"), 6, hidden_size=8, num_heads=2
    )
    levels = {"channels": (8, 8), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 4}
    unet = BundleUNet(2, 2, 2, num_head_channels=4, with_conditioning=True, cross_attention_dim=8, **levels)
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    flat = {**levels, "attention_levels": (False, False)}
    autoencoder = AutoencoderKL(2, 1, 1, latent_channels=2, **flat)
    scheduler = RespacedDDPMScheduler(1000, prediction_type="v_prediction")
    return PromptUNet(unet, encoder), LatentSpace(autoencoder, scale_factor=2.0), scheduler


def batch(size=4):
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(2 * size, 1, 16, 16, generator=generator) * 2 - 1
    captions = [CAPTIONS[i % 3] for i in range(2 * size)]
    return {
        "image": image[:size],
        "caption": captions[:size],
        "prior_image": image[size:],
        "prior_caption": captions[size:],
    }


@pytest.mark.parametrize("dropout", [0.0, 0.15, 1.0])
def test_captions_become_the_null_prompt_at_the_rate_asked_for(parts, dropout):
    network, _, scheduler = parts
    prepare = PromptPrepareBatch(scheduler, network.text_encoder, dropout=dropout)
    torch.manual_seed(0)
    ids = prepare.get_condition(["normal"] * 4000)
    null = (ids == network.text_encoder.tokenize([""])).all(1)
    assert float(null.float().mean()) == pytest.approx(dropout, abs=0.02)
    assert (ids[~null] == network.text_encoder.tokenize(["normal"])).all()


def test_the_network_learns_scaled_latents_and_their_velocity(parts):
    network, space, scheduler = parts
    prepare = PromptPrepareBatch(scheduler, network.text_encoder, space, dropout=0.0)
    given = batch()
    latents, target, _, arguments = prepare(given, "cpu")
    with torch.no_grad():
        mean = space.autoencoder.encode(given["image"])[0]
    torch.testing.assert_close(latents, 2 * mean)
    a = torch.tensor([scheduler.alpha_bar(int(t)) for t in arguments["timesteps"]]).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(target, a.sqrt() * arguments["noise"] - (1 - a).sqrt() * latents, atol=1e-5, rtol=1e-5)
    assert torch.equal(arguments["condition"], network.text_encoder.tokenize(given["caption"]))


def test_images_without_captions_take_the_prompts_of_their_classes(parts):
    network, _, scheduler = parts
    prepare = PromptPrepareBatch(scheduler, network.text_encoder, dropout=0.0, class_prompts=CAPTIONS)
    given = {"image": torch.zeros(2, 2, 8, 8), "label": torch.tensor([2, 0])}
    expected = network.text_encoder.tokenize(["opacity right", "normal"])
    assert torch.equal(prepare(given, "cpu")[3]["condition"], expected)
    with pytest.raises(ValueError, match="class_prompts, one per class"):
        prepare({**given, "label": torch.tensor([3, 0])}, "cpu")


def test_a_dropout_that_is_no_probability_is_refused(parts):
    with pytest.raises(ValueError, match="must be a probability"):
        PromptPrepareBatch(parts[2], parts[0].text_encoder, dropout=1.5)


def test_the_loss_is_the_instances_mean_and_lambda_times_the_priors():
    prediction, target = torch.randn(2, 6, 2, 4, 4)
    for weight in (0.0, 1.0, 2.5):
        error = (prediction - target) ** 2
        expected = error[:3].mean() + weight * error[3:].mean()
        torch.testing.assert_close(PriorPreservationLoss(weight)(prediction, target), expected)
    assert PriorPreservationLoss(1.0)(prediction, target) == pytest.approx(2 * float(error.mean()))
    with pytest.raises(ValueError, match="has no halves"):
        PriorPreservationLoss()(prediction[:5], target[:5])


def trained(network, prepare, loss, scheduler, given, steps=3):
    """Return a copy of the network after some steps of gradient descent."""
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    inferer = DiffusionTrainingInferer(scheduler)
    for iteration in range(steps):
        torch.manual_seed(iteration)
        inputs, target, args, arguments = prepare(given, "cpu")
        optimizer.zero_grad()
        loss(inferer(inputs, network, *args, **arguments), target).backward()
        optimizer.step()
    return network


def test_without_the_prior_it_is_plain_training_and_with_it_is_not(parts):
    network, space, scheduler = parts
    options = (scheduler, network.text_encoder, space, 0.3)
    plain = trained(network, PromptPrepareBatch(*options), torch.nn.MSELoss(), scheduler, batch())
    found = [
        trained(network, DreamBoothPrepareBatch(*options), PriorPreservationLoss(weight), scheduler, batch())
        for weight in (0.0, 1.0)
    ]
    names = [name for name, value in plain.named_parameters() if value.requires_grad]
    states = [model.state_dict() for model in (network, plain, *found)]
    for name in names:
        torch.testing.assert_close(states[2][name], states[1][name], atol=1e-6, rtol=1e-4)
    differing = [name for name in names if not torch.allclose(states[3][name], states[1][name], atol=1e-4)]
    assert any(name.startswith("unet.") for name in differing)
    assert any(name.startswith("text_encoder.") for name in differing)


def test_both_parts_learn_and_the_autoencoder_stays_bit_equal(parts):
    network, space, scheduler = parts
    before = copy.deepcopy(space.autoencoder.state_dict())
    prepare = DreamBoothPrepareBatch(scheduler, network.text_encoder, space, 0.3)
    after = trained(network, prepare, PriorPreservationLoss(), scheduler, batch()).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in space.autoencoder.state_dict().items())
    assert not any(weight.requires_grad for weight in space.autoencoder.parameters())
    moved = {name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(value, after[name])}
    assert moved == {"unet", "text_encoder"}


def test_the_halves_hold_instances_and_priors_with_their_own_captions(parts):
    network, space, scheduler = parts
    prepare = DreamBoothPrepareBatch(scheduler, network.text_encoder, space, dropout=0.0)
    given = batch()
    latents, _, _, arguments = prepare(given, "cpu")
    torch.testing.assert_close(latents[4:], space.encode(given["prior_image"]))
    ids = network.text_encoder.tokenize([*given["caption"], *given["prior_caption"]])
    assert torch.equal(arguments["condition"], ids)
    for half in arguments["timesteps"].chunk(2):
        assert ((half.sort().values // 250) == torch.arange(4)).all()


def test_priors_start_over_when_there_are_fewer():
    instances = [{"image": torch.tensor([i]), "caption": f"own {i}", "label": i} for i in range(5)]
    priors = [{"image": torch.tensor([-i]), "caption": f"prior {i}", "label": 9} for i in range(2)]
    own = DreamBoothDataset(instances, priors)
    assert [int(own[i]["prior_image"]) for i in range(len(own))] == [0, -1, 0, -1, 0]
    assert [own[3][key] for key in ("caption", "prior_caption", "label")] == ["own 3", "prior 1", 3]
    assert DreamBoothDataset(instances, priors, "COVID 19")[3]["caption"] == "COVID 19"
    by_class = DreamBoothDataset(instances, priors, [f"class {i}" for i in range(5)])
    assert [by_class[i]["caption"] for i in (4, 2)] == ["class 4", "class 2"]
    with pytest.raises(ValueError, match="at least one each"):
        DreamBoothDataset(instances, [])


def test_priors_are_drawn_once_from_the_general_prompt(parts, tmp_path):
    network, _, _ = parts
    scheduler = create_scheduler("ddim", num_train_timesteps=1000, prediction_type="v_prediction", clip_sample=False)
    arguments = (network, scheduler, "normal", (2, 8, 8), tmp_path / "priors.pt")
    options = {"count": 3, "num_inference_steps": 2, "batch_size": 2}
    first = drawn_priors(*arguments, **options)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1)
    again = drawn_priors(*arguments, **options)
    assert [item["caption"] for item in first] == ["normal"] * 3
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    (tmp_path / "priors.pt").unlink()
    assert not torch.equal(drawn_priors(*arguments, **options)[0]["image"], first[0]["image"])
    with pytest.raises(ValueError, match="delete it"):
        drawn_priors(*arguments, **{**options, "count": 4})


def test_all_captions_and_class_prompts_are_read():
    rows = [{"caption": "left"}, {"label": 1}]
    assert list(captions_of(rows, ["normal"])) == ["left", "normal"]
