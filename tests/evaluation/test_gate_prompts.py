# SPDX-License-Identifier: Apache-2.0
"""The gate of a network that works in latents and is asked by prompts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.evaluation import Gate, Judge
from medcf.sampling import LatentSpace, PixelSpace
from medcf.schedulers import create_scheduler

WORDS = {"": 0.0, "dark": -0.5, "darkness": -0.5, "bright": 0.5}


class Halves(nn.Module):
    """An autoencoder that doubles an image and adds 1."""

    def encode(self, image):
        return 2 * image + 1, torch.zeros_like(image)

    def decode(self, latent):
        return (latent - 1) / 2


class Words(nn.Module):
    """A text encoder of one number."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def embed(self, prompts):
        self.asked += prompts
        return torch.tensor([WORDS[prompt] for prompt in prompts]).reshape(-1, 1, 1)


class Prompted(nn.Module):
    """With prediction type "sample", it answers with the image its prompt names, as the space has it."""

    def __init__(self, decoded=lambda image: image):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.text_encoder, self.decoded = Words(), decoded

    def forward(self, x, timesteps, context):
        return self.decoded(context.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)) + self.bias


class Brightness(nn.Module):
    """Class 1 is brighter than 0."""

    def forward(self, image):
        mean = image.flatten(1).mean(1)
        return torch.stack([-mean, mean], dim=1)


class Rows(list):
    def __getitem__(self, index):
        return {"image": super().__getitem__(index)}


def images(count, seed):
    return 0.2 * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).cumsum(-1)


def gate(tmp_path, network, change=lambda image: image, **options):
    scheduler = create_scheduler("ddim", num_train_timesteps=1000, schedule="linear_beta", prediction_type="sample")
    return Gate(
        network=network,
        weights=None,
        scheduler=scheduler,
        training=Rows(change(images(100, 1))),
        held_out=Rows(change(images(12, 2))),
        path=tmp_path / "gate.json",
        num_components=5,
        **options,
    )


def test_errors_and_bound_are_those_of_the_latents(tmp_path):
    space = LatentSpace(Halves(), scale_factor=1.0, shift=0.0)
    prompts = {"prompts": ["dark", "bright"]}
    found = gate(tmp_path, Prompted(), space=space, **prompts).run()["denoising"]
    own = gate(tmp_path, Prompted(), lambda image: 2 * image + 1, space=PixelSpace(None), **prompts).run()["denoising"]
    for row, expected in zip(found, own, strict=True):
        assert row["error"] == pytest.approx(expected["error"], rel=1e-4)
        assert row["bound"] == pytest.approx(expected["bound"], rel=1e-4)


def test_errors_are_those_of_the_null_prompt(tmp_path):
    rows = gate(tmp_path, Prompted(), prompts=["dark", "bright"]).run()["denoising"]
    expected = float((images(12, 2).clamp(-1, 1) ** 2).mean())
    assert rows[0]["error"] == pytest.approx(expected, rel=0.05)


def test_judges_see_the_decoded_samples_of_each_class_prompt(tmp_path):
    network = Prompted(lambda image: 2 * image + 1)
    options = {
        "space": LatentSpace(Halves(), scale_factor=1.0, shift=0.0),
        "prompts": [["dark", "darkness"], "bright"],
        "judges": {"f": Judge(Brightness())},
        "class_names": ["dark", "bright"],
        "aims": [1.0, 1.0],
        "num_samples": 6,
    }
    figures = gate(tmp_path, network, **options).run()
    assert [row["share"] for row in figures["samples"]["f"]] == [1.0, 1.0]
    swapped = gate(tmp_path, network, **{**options, "prompts": ["bright", "dark"]}).run()
    assert [row["share"] for row in swapped["samples"]["f"]] == [0.0, 0.0]
    assert "f recognizes 0.00 of the dark samples, less than 1.00" in swapped["failures"]


def test_several_prompts_of_a_class_are_taken_in_turn(tmp_path):
    own = gate(tmp_path, Prompted(), prompts=[["dark", "darkness"]], num_samples=5)
    network = Prompted()
    own._condition(network, 0, torch.arange(5))
    assert network.text_encoder.asked[1:] == ["dark", "darkness", "dark", "darkness", "dark"]
