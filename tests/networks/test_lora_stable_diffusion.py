# SPDX-License-Identifier: Apache-2.0
"""Adapters of a Stable-Diffusion folder: what is saved here diffusers loads, and its files and kohya's load here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from safetensors.torch import save_file

from medcf.networks.lora import Adapters
from medcf.networks.lora.layers import target_layers
from medcf.stable_diffusion import load_stable_diffusion
from tests import stable_diffusion as tiny

CROSS, ALL = "cross-attention", "all attention and feed-forward"
CAPTIONS = ["normal chest x-ray", "covid 19"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "stable-diffusion")


def pipeline(folder: Path) -> Any:
    import diffusers

    made = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made


def randomized(adapters: Adapters) -> Adapters:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapters.module().parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return adapters


@torch.no_grad()
def predicted(network: Any) -> Tensor:
    """Return what our network predicts."""
    sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return network(sample, torch.tensor([5, 700]), network.text_encoder.tokenize(CAPTIONS))


@torch.no_grad()
def theirs(pipe: Any) -> Tensor:
    """Return what the networks of a pipeline predict for the same input."""
    sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    embedded, _ = pipe.encode_prompt(CAPTIONS, "cpu", 1, False)
    return pipe.unet(sample, torch.tensor([5, 700]), embedded, return_dict=False)[0]


def drawn(pipe: Any) -> Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return pipe(CAPTIONS, latents=latents, num_inference_steps=3, output_type="latent").images


@pytest.mark.parametrize(("targets", "alpha"), [(CROSS, None), (ALL, None), (ALL, 6)])
def test_diffusers_loads_what_is_saved_here(folder: Path, targets: str, alpha: float | None, tmp_path: Path) -> None:
    model = load_stable_diffusion(folder)
    base = predicted(model.network)
    adapters = randomized(Adapters(model.network).add(rank=4, alpha=alpha, targets=targets))
    path = adapters.save(tmp_path / "adapter.safetensors")
    pipe = pipeline(folder)
    pipe.load_lora_weights(path)
    ours = predicted(model.network)
    assert (ours - base).abs().max() > 1e-3
    torch.testing.assert_close(theirs(pipe), ours, atol=1e-5, rtol=0)

    adapters.merge()
    adapters.remove()
    torch.testing.assert_close(drawn(pipe), drawn(pipeline(model.save(tmp_path / "merged"))), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("old_names", [False, True])  # its training scripts still write them
def test_what_diffusers_saves_loads_here(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, old_names: bool
) -> None:
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    pipe = pipeline(folder)
    names = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"]}
    layers: dict[str, Any] = {}
    for part, targets in names.items():
        network = getattr(pipe, part)
        network.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False))
        state = get_peft_model_state_dict(network)
        layers[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(state) if old_names else state
        layers[f"{part}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
    pipe.save_lora_weights(tmp_path, **layers)
    adapters = Adapters(load_stable_diffusion(folder).network)
    adapters.load(tmp_path / "pytorch_lora_weights.safetensors")
    assert "does not say what it was trained on" in caplog.text
    torch.testing.assert_close(predicted(adapters.network), theirs(pipe), atol=1e-5, rtol=0)


def test_a_file_of_kohya_s_trainer_loads_as_diffusers_loads_it(folder: Path, tmp_path: Path) -> None:
    """Its names are those of modules with "_" for ".", with an alpha for each layer, half the rank here."""
    torch.manual_seed(0)
    adapters = Adapters(load_stable_diffusion(folder).network)
    state: dict[str, Tensor] = {}
    for part in adapters._parts:
        short = "lora_unet_" if part.name == "unet" else "lora_te_text_model_"
        for module in target_layers(part, ALL):
            weight = part.module.get_submodule(module).weight
            rest, name = weight.shape[2:], short + module.removeprefix("text_model.").replace(".", "_")
            state[f"{name}.lora_down.weight"] = 0.3 * torch.randn(4, weight.shape[1], *rest)
            state[f"{name}.lora_up.weight"] = 0.3 * torch.randn(weight.shape[0], 4, *rest)
            state[f"{name}.alpha"] = torch.tensor(2.0)
    path = tmp_path / "kohya.safetensors"
    save_file(state, path)
    base = predicted(adapters.network)
    adapters.load(path)
    pipe = pipeline(folder)
    pipe.load_lora_weights(path)
    assert (predicted(adapters.network) - base).abs().max() > 1e-2
    torch.testing.assert_close(predicted(adapters.network), theirs(pipe), atol=1e-5, rtol=0)

    again = Adapters(load_stable_diffusion(folder).network)
    again.load(adapters.save(tmp_path / "again.safetensors", "kohya"))
    assert torch.equal(predicted(again.network), predicted(adapters.network))
