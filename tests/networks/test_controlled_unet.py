# SPDX-License-Identifier: Apache-2.0
"""A ControlNet on a mask: nothing at its start, the mask alone after a step, and each image its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.networks.nets import ControlNet

from medcf.inferers import AttentionInjectionInferer, SDEditInferer
from medcf.networks import Condition, ControlledUNet, Denoiser, StructureMask
from medcf.schedulers import RespacedDDIMScheduler
from medcf.training.control import ControlPrepareBatch
from medcf.training.inferer import DiffusionTrainingInferer
from medcf.training.prepare_batch import ClassConditionalPrepareBatch

SHAPE = {"channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": 1}
SHAPE |= {"norm_num_groups": 8, "num_head_channels": 8, "num_class_embeds": 3}


def controlled(tiny_unet: Any, trained: bool = False, **options: Any) -> ControlledUNet:
    unet = tiny_unet(num_class_embeds=3)
    controlnet = ControlNet(2, 1, conditioning_embedding_num_channels=(8,), include_fc=False, **SHAPE)
    network = ControlledUNet(unet, controlnet, **options)
    if trained:
        for name, weight in controlnet.named_parameters():
            if "controlnet_" in name:
                torch.nn.init.normal_(weight, std=0.3)
    return network.eval()


def masks() -> torch.Tensor:
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, :8], mask[1, :, :, 8:] = 1, 1
    return mask


def test_a_new_controlnet_changes_nothing_and_starts_as_the_encoder(tiny_unet) -> None:
    network = controlled(tiny_unet)
    x, t, label = torch.randn(2, 1, 16, 16), torch.tensor([10, 500]), torch.tensor([0, 1])
    alone = network.unet(x, timesteps=t, class_labels=label)
    assert torch.allclose(network(x, t, class_labels=label, control=masks()), alone, atol=1e-6)
    assert torch.equal(network(x, t, class_labels=label), alone)
    encoder = network.unet.down_blocks.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in network.controlnet.down_blocks.state_dict().items())


def test_a_training_step_moves_the_controlnet_only_and_makes_the_mask_count(tiny_unet) -> None:
    torch.manual_seed(0)
    network = controlled(tiny_unet)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scheduler = RespacedDDIMScheduler(1000)
    batch = {"image": torch.rand(2, 1, 16, 16), "label": torch.tensor([0, 1]), "lungs": masks()}
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=3,  # the first step moves the convolutions of 0, the later ones what lies before them
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-2),
        loss_function=torch.nn.MSELoss(),
        inferer=DiffusionTrainingInferer(scheduler),
        prepare_batch=ControlPrepareBatch(ClassConditionalPrepareBatch(scheduler), key="lungs"),
    )
    trainer.run()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("controlnet.") for name in changed)
    network.eval()
    x, t, label = torch.randn(2, 1, 16, 16), torch.tensor([10, 500]), torch.tensor([0, 1])
    with_mask, other = (network(x, t, class_labels=label, control=each) for each in (masks(), masks().flip(0)))
    assert (with_mask - other).abs().max() > 1e-4
    assert torch.equal(network(x, t, class_labels=label), network.unet(x, timesteps=t, class_labels=label))


def test_every_row_of_a_call_follows_its_own_image(tiny_unet) -> None:
    network, scheduler = controlled(tiny_unet, trained=True), RespacedDDIMScheduler(1000)
    guided = Condition(labels=torch.tensor([0, 1]), null=Condition(labels=2), scale=3.0)
    x = torch.randn(2, 1, 16, 16)
    both = Denoiser(network, scheduler, guided, inputs={"control": masks()})(x, 300).noise
    for i in range(2):
        one = guided.rows(torch.tensor([i]))
        alone = Denoiser(network, scheduler, one, inputs={"control": masks()[i : i + 1]})(x[i : i + 1], 300).noise
        assert torch.allclose(both[i : i + 1], alone, atol=1e-5)
    swapped = Denoiser(network, scheduler, guided, inputs={"control": masks().flip(0)})(x, 300).noise
    assert (both - swapped).abs().max() > 1e-2
    with pytest.raises(ValueError, match="1 rows for a batch of 2"):
        Denoiser(network, scheduler, guided, inputs={"control": masks()[:1]})(x, 300)


@pytest.mark.parametrize("kind", [SDEditInferer, AttentionInjectionInferer])
def test_a_method_follows_the_segmenter_s_mask_of_each_input(tiny_unet, kind) -> None:
    network, image = controlled(tiny_unet, trained=True), torch.rand(2, 1, 16, 16) - 0.5
    image[0, :, :8], image[1, :, :, 8:] = 0.9, 0.9

    def segmenter(image: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.8 - image, image - 0.8], dim=1)

    def classifier(image: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(image), 1)

    parts = {"scheduler": RespacedDDIMScheduler(1000), "classifier": classifier, "target": 1}
    options = {"num_inference_steps": 4, "null_class_labels": 2, "progress": False}
    assert torch.equal(StructureMask(segmenter, structures=[1])(image), masks())
    controls = StructureMask(segmenter), lambda image: masks(), None
    result, expected, without = (
        kind(**parts, control=control, **options).explain(image, network, ["a", "b"]).image for control in controls
    )
    assert torch.equal(result, expected)
    assert (result - without).abs().max() > 1e-2
    only = kind(**parts, control=controls[0], **options).explain(image[1:], network, ["b"]).image
    assert torch.allclose(result[1:], only, atol=1e-4)


def test_a_controlnet_of_another_shape_is_refused(tiny_unet) -> None:
    other = ControlNet(2, 1, conditioning_embedding_num_channels=(8,), **{**SHAPE, "channels": (16, 16)})
    with pytest.raises(ValueError, match=r"another shape than the U-Net .*: give both the same channels"):
        ControlledUNet(tiny_unet(num_class_embeds=3), other)
