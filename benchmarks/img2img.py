# SPDX-License-Identifier: Apache-2.0
"""Image-to-image with the same weights, by medcf and by diffusers' pipeline, timed in turn in one run.

``python -m benchmarks.img2img`` edits images toward a prompt by both and prints the ratio of their times (medcf over
diffusers, the median over repeats) and the largest difference of their images, which start from the same noise. Both
sides encode the image, run the chain with classifier-free guidance and decode. The weights are random, in the
architecture of Stable Diffusion 1 (``--size full``) or smaller; ``--folder FOLDER`` takes a checkpoint. A machine whose
clock varies is measured with more ``--repeats``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import interleaved, median_ratio
from medcf.inferers import SDEditInferer
from medcf.networks import Conditioner
from medcf.networks.stable_diffusion import StableDiffusionAutoencoder, StableDiffusionUNet
from medcf.sampling import LatentSpace, make_generators
from medcf.schedulers import adapt_scheduler
from medcf.stable_diffusion import load_stable_diffusion

__all__ = ["compare", "parts"]

#: Channels of the U-Net and of the autoencoder, blocks per level, features of a token, pixels of a side.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int, int]] = {
    "tiny": ((8, 16), (8, 16), 1, 16, 16),
    "small": ((64, 128, 256), (32, 64, 64), 1, 128, 64),
    "full": ((320, 640, 1280, 1280), (128, 256, 512, 512), 2, 768, 512),
}
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
SOLVERS = {"plms": "PNDMScheduler", "ddim": "DDIMScheduler", "unipc": "UniPCMultistepScheduler"}
SOLVERS |= {"dpmpp": "DPMSolverMultistepScheduler"}


def parts(size: str, solver: str) -> tuple[Any, Any, Any, Tensor]:
    """Return a U-Net, an autoencoder and a scheduler of diffusers with random weights, and 3 embedded prompts."""
    import diffusers

    channels, coder, blocks, features, pixels = SIZES[size]
    torch.manual_seed(0)
    plain, groups = len(channels) - 1, min(32, channels[0] // 2)
    unet = diffusers.UNet2DConditionModel(
        sample_size=pixels // 2 ** (len(coder) - 1),
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * plain + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * plain,
        layers_per_block=blocks,
        norm_num_groups=groups,
        cross_attention_dim=features,
        attention_head_dim=8 if channels[0] >= 64 else 2,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=coder,
        down_block_types=("DownEncoderBlock2D",) * len(coder),
        up_block_types=("UpDecoderBlock2D",) * len(coder),
        layers_per_block=blocks,
        norm_num_groups=groups,
        latent_channels=4,
    )
    pndm = diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **NOISE)
    scheduler = getattr(diffusers, SOLVERS[solver]).from_config(pndm.config)
    if "clip_sample" in scheduler.config:
        scheduler.register_to_config(clip_sample=False)
    return unet.eval(), vae.eval(), scheduler, torch.randn(3, 77, features)


def loaded(folder: str, solver: str) -> tuple[Any, Any, Any, Tensor]:
    """Return the parts of a checkpoint, and its embedded prompts: a disease, normal, and none."""
    model = load_stable_diffusion(folder, solver=solver)
    prompts = model.text_encoder.embed(["pneumonia", "normal chest x-ray", ""])
    return model.network.unet.unet, model.space.autoencoder.vae, model.folder_scheduler, prompts  # type: ignore[union-attr]


def _first_class(image: Tensor) -> Tensor:
    return torch.tensor([[4.0, 0.0]], device=image.device).repeat(len(image), 1)


def sides(
    given: tuple[Any, Any, Any, Tensor], image: Tensor, strength: float, steps: int
) -> dict[str, Callable[[], Tensor]]:
    """Return the two functions to compare, which give images (B, 3, H, W) in [-1, 1]."""
    import diffusers

    unet, vae, scheduler, prompts = given
    options: dict[str, Any] = {"num_inference_steps": steps, "strength": strength, "guidance_scale": 7.5}
    ids, network = list(range(len(image))), StableDiffusionUNet(unet)
    space = LatentSpace(StableDiffusionAutoencoder(vae, image.shape[1]), results="decoded", measure_floors=False)
    conditioner = Conditioner(contexts=prompts[:2], null_context=prompts[2:], by_class=False)
    edit = SDEditInferer(
        adapt_scheduler(scheduler), _first_class, 1, space=space, conditioner=conditioner, progress=False, **options
    )
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def theirs() -> Tensor:
        latents = vae.encode(image).latent_dist.mean * vae.config.scaling_factor
        found = pipeline(
            image=latents,  # which it takes as they are; of pixels it would draw the latents with the same generator
            prompt_embeds=prompts[1:2].repeat(len(image), 1, 1),
            negative_prompt_embeds=prompts[2:].repeat(len(image), 1, 1),
            generator=make_generators(0, ids, image.device, ("pass", 0)),
            output_type="pt",
            **options,
        )
        return found.images * 2 - 1

    return {"medcf": lambda: edit.explain(image, network, ids).image, "diffusers": theirs}


def compare(
    given: tuple[Any, Any, Any, Tensor], image: Tensor, strength: float = 0.55, steps: int = 75, repeats: int = 5
) -> dict[str, float]:
    """Time both sides in turn.

    Args:
        given: U-Net, autoencoder and scheduler of diffusers, and 3 embedded prompts: own, target, null.
        image: (B, 3, H, W) in [-1, 1].
        strength: fraction of the steps to noise and denoise.
        steps: number of steps of the whole chain.
        repeats: measured calls of each side.

    Returns:
        ``ratio`` of the times, ``difference``, the largest between the images, and the median ``seconds`` of each side.
    """
    functions = sides(given, image, strength, steps)
    difference = float((functions["medcf"]() - functions["diffusers"]()).abs().max())
    seconds = interleaved(functions, repeats, image.device)
    medians = {f"{name}_s": statistics.median(each) for name, each in seconds.items()}
    return {"ratio": median_ratio(seconds["medcf"], seconds["diffusers"]), "difference": difference, **medians}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row per solver and strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--folder", type=Path, help="a checkpoint in diffusers' format instead of random weights")
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.55])
    parser.add_argument("--steps", type=int, default=75)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    if given.device == "cpu":
        torch.set_num_threads(1)
    get = partial(parts, given.size) if given.folder is None else partial(loaded, given.folder)
    pixels = SIZES["full" if given.folder else given.size][-1]
    image = torch.rand(given.images, 3, pixels, pixels, generator=torch.Generator().manual_seed(0)) * 2 - 1
    print("| solver | strength | medcf, s | diffusers, s | ratio | largest difference |\n|" + " --- |" * 6)
    for solver in given.solvers:
        for strength in given.strengths:
            made = tuple(part.to(given.device) if hasattr(part, "to") else part for part in get(solver))
            row = compare(made, image.to(given.device), strength, given.steps, given.repeats)
            times = f"{row['medcf_s']:.2f} | {row['diffusers_s']:.2f}"
            print(f"| {solver} | {strength:g} | {times} | {row['ratio']:.3f} | {row['difference']:.1e} |", flush=True)


if __name__ == "__main__":
    main()
