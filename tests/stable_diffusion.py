# SPDX-License-Identifier: Apache-2.0
"""A tiny Stable Diffusion with random weights, in diffusers' format; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ("normal", "chest", "x", "-", "ray", "pneumonia", "covid", "19", "lung", "opacity", "of", "a")


def unet(**options: Any) -> torch.nn.Module:
    import diffusers

    shape = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "sample_size": 8}
    blocks |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16}
    return diffusers.UNet2DConditionModel(**(shape | blocks | options)).eval()


def autoencoder() -> torch.nn.Module:
    import diffusers

    shape = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(**shape, **blocks, sample_size=16).eval()


def clip(folder: Path) -> tuple[Any, Any]:
    """Return a CLIP text model and its tokenizer, which spells unknown words."""
    import transformers

    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=12)
    config = transformers.CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        eos_token_id=len(pieces) - 1,
        bos_token_id=len(pieces) - 2,
        pad_token_id=len(pieces) - 1,
    )
    return transformers.CLIPTextModel(config).eval(), tokenizer


def bert(folder: Path, hidden_size: int = 16) -> Path:
    """Write a BERT and its tokenizer, as RadBERT is stored."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]), encoding="utf-8")
    tokenizer = transformers.BertTokenizer.from_pretrained(folder, model_max_length=12)
    config = transformers.BertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=80,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path) -> Path:
    """Write a checkpoint with Stable Diffusion 1.4's schedule."""
    import diffusers

    torch.manual_seed(0)
    model, tokenizer = clip(folder.with_name(folder.name + "_words"))
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    pipeline = diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=model,
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
