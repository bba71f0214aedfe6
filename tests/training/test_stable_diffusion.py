# SPDX-License-Identifier: Apache-2.0
"""The parts that train every prompted model train Stable Diffusion: U-Net and text encoder, not the autoencoder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer

from medcf.stable_diffusion import load_stable_diffusion
from medcf.training.inferer import DiffusionTrainingInferer
from medcf.training.prompts import DreamBoothPrepareBatch, PriorPreservationLoss, PromptPrepareBatch
from tests import stable_diffusion as tiny

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("dreambooth", [False, True])
@pytest.mark.parametrize("with_bert", [False, True])
def test_a_step_moves_u_net_and_text_encoder_and_no_bit_of_the_autoencoder(
    tmp_path: Path, dreambooth: bool, with_bert: bool
) -> None:
    folder = tiny.write(tmp_path / "model")
    model = load_stable_diffusion(folder, tiny.bert(tmp_path / "bert") if with_bert else None)
    network, autoencoder = model.network, model.space.autoencoder
    before, frozen = (copy.deepcopy(part.state_dict()) for part in (network, autoencoder))
    batch: dict[str, Any] = {"image": images(2), "caption": ["normal chest x-ray", "covid 19"]}
    batch |= {"prior_image": images(2), "prior_caption": ["chest x-ray"] * 2}
    kind = DreamBoothPrepareBatch if dreambooth else PromptPrepareBatch
    SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), 1e-3),
        loss_function=PriorPreservationLoss() if dreambooth else torch.nn.MSELoss(),
        inferer=DiffusionTrainingInferer(model.scheduler),
        prepare_batch=kind(model.scheduler, model.text_encoder, model.space, dropout=0.0),
    ).run()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("unet.") for name in moved)
    assert any("embeddings" in name for name in moved)  # the gradient reached the first layer of the text encoder
    assert all(torch.equal(value, frozen[name]) for name, value in autoencoder.state_dict().items())
    assert not any(name.startswith("space") or "vae" in name for name in network.state_dict())
    saved = load_stable_diffusion(model.save(tmp_path / "saved"))
    for name, value in network.state_dict().items():
        if name in saved.network.state_dict():
            assert torch.equal(saved.network.state_dict()[name], value), name


def test_the_target_of_the_training_is_the_folder_s_noise(tmp_path: Path) -> None:
    model = load_stable_diffusion(tiny.write(tmp_path / "model"))
    prepare = PromptPrepareBatch(model.scheduler, model.text_encoder, model.space, dropout=1.0)
    latents, target, _, given = prepare({"image": images(2), "caption": ["normal", "covid"]})
    assert torch.equal(target, given["noise"])
    assert torch.allclose(latents, model.space.encode(images(2)))
    assert torch.equal(given["condition"], model.text_encoder.tokenize(["", ""]))
    theirs = model.folder_scheduler.add_noise(latents, given["noise"], given["timesteps"])
    assert torch.allclose(model.scheduler.add_noise(latents, given["noise"], given["timesteps"]), theirs, atol=1e-5)
