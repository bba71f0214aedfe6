# SPDX-License-Identifier: Apache-2.0
"""A Stable-Diffusion checkpoint in medcf against the same folder in diffusers' pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from medcf.inferers import SDEditInferer
from medcf.networks import prompt_conditioner
from medcf.networks.text_encoder import TextEncoder
from medcf.sampling import make_generators
from medcf.stable_diffusion import StableDiffusion, load_stable_diffusion
from tests import stable_diffusion as tiny

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

PROMPTS = ["pneumonia", "normal"]
COLOR: dict[str, Any] = {"image_channels": 3, "results": "decoded"}  # as the pipelines
SOLVERS = ["plms", "ddim", "unipc", "dpmpp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def image() -> torch.Tensor:
    gray = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return gray.repeat(1, 3, 1, 1)


def prompted_edit(model: StableDiffusion, strength: float = 0.55, **options: Any) -> SDEditInferer:
    """SDEdit toward the second prompt; the classifier calls every image the first class."""

    def classifier(image: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[4.0, 0.0]]).repeat(len(image), 1)

    parts: dict[str, Any] = {"space": model.space, "conditioner": prompt_conditioner(model.text_encoder, PROMPTS)}
    options = {"guidance_scale": 7.5, "num_inference_steps": 75, "progress": False, "seed": 3} | options
    return SDEditInferer(model.scheduler, classifier, 1, strength=strength, **parts, **options)


def of_diffusers(
    pipeline: Any, model: StableDiffusion, image: torch.Tensor, strength: float, embedded: bool = True
) -> torch.Tensor:
    """The pipeline's images for our latents, noise and prompt."""
    noise = make_generators(3, ["a", "b"], "cpu", ("pass", 0))
    text: dict[str, Any] = {"prompt": [PROMPTS[1]] * 2, "negative_prompt": ["", ""]}
    if embedded:
        prompts = prompt_conditioner(model.text_encoder, PROMPTS)
        text = {"prompt_embeds": prompts.contexts[1:].repeat(2, 1, 1)}
        text["negative_prompt_embeds"] = prompts.null_context.repeat(2, 1, 1)
    options = {"num_inference_steps": 75, "guidance_scale": 7.5, "output_type": "pt", "generator": noise}
    pipeline.set_progress_bar_config(disable=True)
    latents = model.space.encode(image)
    return pipeline(image=latents, strength=strength, **text, **options).images * 2 - 1


@pytest.mark.parametrize("strength", [0.55, 0.85])
@pytest.mark.parametrize("solver", SOLVERS)
def test_an_edit_is_diffusers_image_to_image_pipeline_s(folder: Path, image, solver: str, strength: float) -> None:
    model = load_stable_diffusion(folder, solver=solver, **COLOR)
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = model.folder_scheduler
    ours = prompted_edit(model, strength).explain(image, model.network, ["a", "b"]).image
    theirs = of_diffusers(pipeline, model, image, strength)
    assert (ours - model.space.decode(model.space.encode(image)).clamp(-1, 1)).abs().max() > 0.05
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()


@pytest.mark.parametrize(("strength", "start", "steps"), [(0.55, 534, 41), (0.85, 820, 63)])
def test_pndm_starts_where_the_paper_s_pipeline_does(folder: Path, strength: float, start: int, steps: int) -> None:
    method = prompted_edit(load_stable_diffusion(folder), strength)
    timesteps, level = method.schedule(0)
    assert level == timesteps[0] == start
    assert len(timesteps) == steps + 1  # diffusers' list names the second timestep twice, and is cut by steps
    assert timesteps[-1] == 1
    ddim = prompted_edit(load_stable_diffusion(folder, solver="ddim"), strength).schedule(0)
    assert len(ddim[0]) == steps
    assert ddim[1] == start - 13


def test_the_folder_s_schedule_and_prompts_are_kept(folder: Path) -> None:
    model = load_stable_diffusion(folder)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    levels = torch.tensor([model.scheduler.alpha_bar(t) for t in range(1000)], dtype=torch.float64)
    assert torch.allclose(levels, torch.cumprod(1 - betas, 0), rtol=1e-4)
    assert model.scheduler.alpha_bar(-1) == model.scheduler.alpha_bar(0)  # set_alpha_to_one is False
    assert str(model.scheduler.prediction_type) == "epsilon"
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    theirs, null = pipeline.encode_prompt(["normal"], "cpu", 1, True, [""])
    prompts = prompt_conditioner(model.text_encoder, PROMPTS)
    assert torch.allclose(prompts.contexts[1:], theirs, atol=1e-6)
    assert torch.allclose(prompts.null_context, null, atol=1e-6)


def test_one_channel_becomes_three_and_the_mean_of_three_differentiably(folder: Path, image) -> None:
    image = image[:, :1]
    autoencoder = load_stable_diffusion(folder).space.autoencoder
    mean, deviation = autoencoder.encode(image)
    posterior = autoencoder.vae.encode(image.repeat(1, 3, 1, 1)).latent_dist
    assert posterior.std.min() > 0
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(deviation, posterior.std)
    latent = mean.detach().requires_grad_()
    decoded = autoencoder.decode(latent)
    assert torch.equal(decoded, autoencoder.vae.decode(latent).sample.mean(1, keepdim=True))
    (slope,) = torch.autograd.grad(decoded.sum(), latent)
    assert slope.abs().min() > 0


@pytest.mark.parametrize("with_bert", [False, True])
def test_a_saved_model_gives_the_same_images_in_diffusers(folder: Path, image, tmp_path: Path, with_bert: bool) -> None:
    encoder = tiny.bert(tmp_path / "bert") if with_bert else None
    model = load_stable_diffusion(folder, encoder, **COLOR)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.mul_(1.05)  # stands for a training
    saved = model.save(tmp_path / "new" / "saved")
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(saved, safety_checker=None)
    ours = prompted_edit(model).explain(image, model.network, ["a", "b"]).image
    assert torch.allclose(ours, of_diffusers(pipeline, model, image, 0.55, embedded=False), atol=1e-4)
    again = load_stable_diffusion(saved, **COLOR)
    assert torch.equal(again.text_encoder.embed(PROMPTS), model.text_encoder.embed(PROMPTS))
    assert torch.equal(prompted_edit(again).explain(image, again.network, ["a", "b"]).image, ours)
    index = json.loads((saved / "model_index.json").read_text(encoding="utf-8"))
    assert index["text_encoder"][1] == ("BertModel" if with_bert else "CLIPTextModel")
    with pytest.raises(FileExistsError, match="new folder"):
        model.save(saved)


def test_a_text_encoder_that_keeps_no_padding_says_so_in_the_folder(folder: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.from_pretrained(tiny.bert(tmp_path / "bert"), max_length=12, keep_padding=False)
    saved = load_stable_diffusion(folder, encoder).save(tmp_path / "saved")
    again = load_stable_diffusion(saved).text_encoder
    assert not again.keep_padding
    assert torch.equal(again.embed(PROMPTS), encoder.eval().embed(PROMPTS))


def test_parts_that_do_not_fit_are_refused_with_a_remedy(folder: Path, tmp_path: Path) -> None:
    wide = tiny.bert(tmp_path / "wide", hidden_size=32)
    with pytest.raises(ValueError, match=r"32 features.*cross_attention_dim=16.*projection=16"):
        load_stable_diffusion(folder, wide)
    projected = load_stable_diffusion(folder, TextEncoder.from_pretrained(wide, 12, projection=16))
    with pytest.raises(ValueError, match="no place for that layer"):
        projected.save(tmp_path / "saved")
    with pytest.raises(FileNotFoundError, match="lacks unet, vae"):
        load_stable_diffusion(tmp_path)
    with pytest.raises(ValueError, match="not one of ddim"):
        load_stable_diffusion(folder, solver="heun")
