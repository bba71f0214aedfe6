# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion from a folder in diffusers' format, as the parts that methods and trainings take, and back."""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from medcf.networks.prompt_unet import PromptUNet
from medcf.networks.stable_diffusion import StableDiffusionAutoencoder, StableDiffusionUNet
from medcf.networks.text_encoder import TextEncoder
from medcf.sampling import LatentSpace
from medcf.schedulers import RespacedScheduler, adapt_scheduler

__all__ = ["StableDiffusion", "load_stable_diffusion", "weight_files"]

#: Our names of solvers to diffusers' classes.
_SOLVERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "plms": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """A latent diffusion model with prompts.

    Attributes:
        network: the U-Net together with the text encoder, one module to train.
        space: the latents of its autoencoder, which no training changes.
        scheduler: its noise schedule and solver.
        folder_scheduler: the same in diffusers' class, as ``save`` writes it.
    """

    network: PromptUNet
    space: LatentSpace
    scheduler: RespacedScheduler
    folder_scheduler: Any

    @property
    def text_encoder(self) -> TextEncoder:
        """The text encoder."""
        return self.network.text_encoder

    def save(self, folder: str | Path) -> Path:
        """Write a folder that diffusers' ``from_pretrained`` loads as a pipeline.

        Args:
            folder: does not exist yet, or is empty.

        Returns:
            The folder.

        Raises:
            FileExistsError: if the folder holds anything.
            ValueError: if the text encoder has a projection, for which diffusers has no place.
        """
        path, encoder = Path(folder), self.text_encoder
        own: Any = encoder.model
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(f"{path} exists: give a new folder.")
        if encoder.num_features != own.config.hidden_size:
            raise ValueError(
                f"The text encoder maps its {own.config.hidden_size} features to {encoder.num_features}, and "
                "diffusers has no place for that layer: save network.state_dict(), or train a text encoder without."
            )
        model, tokenizer = copy.copy(own), copy.deepcopy(encoder.tokenizer)
        model.config = copy.deepcopy(own.config)
        model.config.use_attention_mask = not encoder.keep_padding
        tokenizer.model_max_length = encoder.max_length
        pipeline = _diffusers().StableDiffusionPipeline(
            vae=self.space.autoencoder.vae,
            text_encoder=model,
            tokenizer=tokenizer,
            unet=self.network.unet.unet,
            scheduler=self.folder_scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as partial:
            pipeline.save_pretrained(Path(partial) / "model")
            os.replace(Path(partial) / "model", path)
        return path


def load_stable_diffusion(
    folder: str | Path,
    text_encoder: TextEncoder | str | Path | None = None,
    *,
    solver: str | None = None,
    image_channels: int = 1,
    device: torch.device | str = "cpu",
    **space: Any,
) -> StableDiffusion:
    """Load a checkpoint folder in diffusers' format: ``unet``, ``vae``, ``text_encoder``, ``tokenizer``, ``scheduler``.

    Nothing is downloaded. The schedule is the folder's, with the two corrections that the pipelines of diffusers make
    to old ones: ``steps_offset`` is 1 and nothing is clipped.

    Args:
        folder: the checkpoint.
        text_encoder: another one in place of the folder's, such as RadBERT: a `TextEncoder`, or the folder of a text
            model and its tokenizer, whose prompts are padded as the pipelines pad them.
        solver: "plms", "ddim", "ddpm", "unipc", "dpmpp" or "euler" in place of the folder's.
        image_channels: channels of the images, 1 or 3.
        device: where the networks are.
        **space: options of `LatentSpace`: ``results="decoded"`` is what the pipelines return.

    Raises:
        ImportError: if diffusers or transformers is not installed.
        FileNotFoundError: if a part of the folder is missing.
        ValueError: if the text encoder's features do not fit the U-Net, or the solver is unknown.
    """
    diffusers, path = _diffusers(), Path(folder)
    own = () if text_encoder is not None else ("text_encoder", "tokenizer")
    missing = [part for part in ("unet", "vae", "scheduler", *own) if not (path / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{path} lacks {', '.join(missing)}: give the folder of a checkpoint in diffusers' format, as "
            "pipeline.save_pretrained(folder) writes it."
        )
    unet = StableDiffusionUNet(diffusers.UNet2DConditionModel.from_pretrained(path / "unet"))
    encoder = _text_encoder(path, text_encoder)
    if encoder.num_features != unet.cross_attention_dim:
        raise ValueError(
            f"The text encoder gives {encoder.num_features} features, but the U-Net takes cross_attention_dim="
            f"{unet.cross_attention_dim}: choose a text model of that hidden size, or train a layer between them with "
            f"TextEncoder.from_pretrained(name, projection={unet.cross_attention_dim})."
        )
    vae = diffusers.AutoencoderKL.from_pretrained(path / "vae")
    autoencoder = StableDiffusionAutoencoder(vae, image_channels).to(device)
    scheduler = _folder_scheduler(path, solver)
    return StableDiffusion(
        network=PromptUNet(unet, encoder).to(device).eval(),
        space=LatentSpace(autoencoder, **space),
        scheduler=adapt_scheduler(scheduler),
        folder_scheduler=scheduler,
    )


def weight_files(folder: str | Path) -> dict[str, Path]:
    """Return the files of a folder that decide about images, by part and name, for a manifest's hashes."""
    parts = ("text_encoder", "tokenizer", "unet", "vae")
    files = (file for part in parts for file in sorted((Path(folder) / part).glob("*")))
    kinds = (".bin", ".safetensors", ".json", ".txt")
    return {f"{file.parent.name}/{file.name}": file for file in files if file.suffix in kinds}


def _text_encoder(path: Path, given: TextEncoder | str | Path | None) -> TextEncoder:
    """Return the given text encoder, or that of the folder."""
    if isinstance(given, TextEncoder):
        return given
    if given is not None:
        return TextEncoder.from_pretrained(given, keep_padding=True)
    import transformers

    config = transformers.AutoConfig.from_pretrained(path / "text_encoder")
    is_clip = str(config.model_type).startswith("clip")
    loader = transformers.CLIPTextModel if is_clip else transformers.AutoModel
    more = {"add_pooling_layer": False} if config.model_type in ("bert", "roberta") else {}
    model = loader.from_pretrained(path / "text_encoder", **more)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path / "tokenizer")
    length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return TextEncoder(model, tokenizer, length, keep_padding=not getattr(config, "use_attention_mask", False))


def _folder_scheduler(path: Path, solver: str | None) -> Any:
    """Return the scheduler of the folder in its own class of diffusers, or in another solver's."""
    diffusers = _diffusers()
    config = diffusers.DDIMScheduler.load_config(path / "scheduler")
    if solver is not None and solver not in _SOLVERS:
        raise ValueError(f"solver={solver!r} is not one of {', '.join(_SOLVERS)}.")
    known = getattr(diffusers, config["_class_name"]).from_config(config)
    kind = type(known) if solver is None else getattr(diffusers, _SOLVERS[solver])
    made, fixed = kind.from_config(known.config), {"steps_offset": 1, "clip_sample": False}
    return kind.from_config(made.config, **{name: value for name, value in fixed.items() if name in made.config})


def _diffusers() -> ModuleType:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "Stable Diffusion needs diffusers. Run: python -m pip install 'medcf[text]', or '.[text]' in a clone."
        ) from error
    return diffusers
