# SPDX-License-Identifier: Apache-2.0
"""Every method by prompt, in the latents of pictures and volumes: which prompt the network reads, and what follows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.inferers import create_method
from medcf.inferers.selection import method_arguments
from medcf.networks import BundleUNet, prompt_conditioner
from medcf.registry import METHODS
from medcf.sampling import LatentSpace
from medcf.schedulers import RespacedDDPMScheduler
from tests.inferers.tiny import Blocks, Brightness

IDS = ["a", "b"]
TEXTS = ["", "normal", "pneumonia", "large pneumonia on the left", "old pneumonia"]
GUIDED = ["diffice", "diffice_single", "dime", "fastdime", "universal"]
EDITS = ["controlcg", "ddim_inversion", "ddpm_inversion", "direct_inversion", "ilvr", "sdedit"]


class Embedding:
    """Stands for a text encoder: every text of the list has its own features."""

    def embed(self, prompts):
        rows = [torch.full((3, 8), float(TEXTS.index(prompt))) for prompt in prompts]
        return torch.stack(rows) + torch.linspace(0, 0.5, 8)


class Setting:
    """A tiny network with cross-attention, dark images, and the prompts that the network read."""

    def __init__(self, dims):
        torch.manual_seed(0)
        options = {"channels": (8, 8), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 4}
        options |= {"num_head_channels": 4, "with_conditioning": True, "cross_attention_dim": 8}
        self.network = BundleUNet(dims, 2**dims, 2**dims, **options).eval()
        for weight in self.network.parameters():
            if weight.ndim > 1 and not weight.any():
                nn.init.normal_(weight, std=0.1)
        self.network.register_forward_pre_hook(self._read, with_kwargs=True)
        self.space = LatentSpace(Blocks(dims), range=(-2.0, 2.0))
        self.images = torch.rand(2, 1, *(8,) * dims, generator=torch.Generator().manual_seed(1)) * 0.4 - 0.5
        self.read = []

    def _read(self, _module, _inputs, given):
        self.read += [TEXTS[int(row[0, 0])] for row in given["context"]]

    def method(self, name, *, prompt=None, own_prompt=None, **options):
        self.read.clear()
        conditioner = prompt_conditioner(Embedding(), TEXTS[1:3], prompt, own_prompt)
        given = {"scheduler": RespacedDDPMScheduler(1000), "classifier": Brightness(), "target": 1}
        given |= {"space": self.space, "conditioner": conditioner, "num_inference_steps": 20, "strength": 0.25}
        given |= {"classifier_scales": (30,), "perceptual_scale": 0.0, "progress": False, "num_iterations": 1}
        given |= {"null_class_labels": None, "guidance_scale": 2.0, "epsilon": 0.4}
        known = method_arguments(METHODS[name])[0]
        return create_method(name, **({key: value for key, value in given.items() if key in known} | options))

    def image(self, name, **options):
        method = self.method(name, **options)
        return method.explain(self.images, self.network, IDS, run_unchanged=True).image


@pytest.fixture(scope="module", params=[2, 3], ids=["2D", "3D"])
def setting(request):
    return Setting(request.param)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reads_the_prompt_of_the_target_or_the_one_in_its_place(setting, name):
    by_class = setting.image(name)
    own = {"normal"} if "inversion" in name else set()
    assert set(setting.read) == {"", "pneumonia"} | own
    free = setting.image(name, prompt="large pneumonia on the left")
    assert set(setting.read) == {"", "large pneumonia on the left"} | own
    assert (free - by_class).abs().max() > 1e-3


@pytest.mark.parametrize("name", EDITS)
def test_the_own_prompt_is_subtracted_and_toward_itself_nothing_changes(setting, name):
    options = {"subtract_reconstruction": True}
    setting.image(name, **options)
    assert set(setting.read) == {"", "pneumonia", "normal"}
    setting.image(name, own_prompt="old pneumonia", **options)
    assert set(setting.read) == {"", "pneumonia", "old pneumonia"}
    same = setting.image(name, prompt="old pneumonia", own_prompt="old pneumonia", **options)
    torch.testing.assert_close(same, setting.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm_inversion", "direct_inversion"])
def test_an_exact_inversion_returns_the_input_under_the_prompt_that_describes_it(setting, name):
    options = {"prompt": "old pneumonia", "own_prompt": "old pneumonia", "source_guidance_scale": 2.0}
    torch.testing.assert_close(setting.image(name, **options), setting.images, rtol=0, atol=1e-4)
    setting.image(name, source_condition="null", own_prompt="old pneumonia")
    assert set(setting.read) == {"", "pneumonia"}


@pytest.mark.parametrize("name", GUIDED)
def test_a_guided_method_reads_no_prompt_or_the_target_s_and_is_guided_through_the_decoder(setting, name):
    plain = setting.image(name)
    assert set(setting.read) == {""}
    assert (setting.image(name, classifier_scales=(0,)) - plain).abs().max() > 1e-4
    setting.image(name, class_labels="target", prompt="large pneumonia on the left", guidance_scale=1.0)
    assert set(setting.read) == {"large pneumonia on the left"}


@pytest.mark.parametrize("name", [*EDITS, *GUIDED])
def test_the_floors_of_the_latents_are_reported(setting, name):
    result = setting.method(name).explain(setting.images, setting.network, IDS, run_unchanged=True)
    assert (result.extras["floor"] < 1e-6).all()
    assert (result.extras["edit_rms"] > 1e-4).all()
    assert not result.extras["below_floor"].any()
    assert result.image.isfinite().all()


@pytest.mark.parametrize("name", [*GUIDED, "attack", "unchanged"])
def test_a_method_without_a_prompt_needs_a_class(setting, name):
    with pytest.raises(ValueError, match="give its index"):
        setting.method(name, target="reached", prompt="pneumonia").explain(setting.images, setting.network, IDS)
