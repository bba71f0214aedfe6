# SPDX-License-Identifier: Apache-2.0
"""Files of adapters: safetensors in diffusers' format; kohya's are read, too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcf.networks.lora.layers import Part
from medcf.runtime.atomic import replace_file

__all__ = ["AdapterFile", "LayerWeights", "read_adapter", "write_adapter"]

_BASE = "medcf_base_sha256"
_CONFIG = "lora_adapter_metadata"  # diffusers' name of peft's configs, packed by part
_SHOWN = 3
#: Ends of names: peft's, kohya's, and those that diffusers' training scripts still write for U-Net and text encoder.
_KINDS = {
    f"{kind}.weight": "up" if kind.endswith(("B", "up")) else "down"
    for kind in (
        *(".lora_A", ".lora_B", ".lora_down", ".lora_up", ".lora.down", ".lora.up"),
        *(".lora_linear_layer.down", ".lora_linear_layer.up"),
    )
}


@dataclass(frozen=True)
class LayerWeights:
    """The update of one layer, (alpha / r) B A.

    Attributes:
        down: A (r, d_in), with the convolution's ones at the end.
        up: B (d_out, r), likewise.
        alpha: the numerator of the scale.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rank r."""
        return len(self.down)


@dataclass(frozen=True)
class AdapterFile:
    """What a file holds.

    Attributes:
        layers: by part and module.
        base_sha256: `weights_sha256` of the network it was trained on; None if the file does not say.
    """

    layers: dict[str, dict[str, LayerWeights]]
    base_sha256: str | None


def write_adapter(path: str | Path, parts: Mapping[Part, Mapping[str, LayerWeights]], base_sha256: str) -> Path:
    """Write an adapter as the pipelines of diffusers do, with the hash of its base beside it.

    Args:
        path: file to write.
        parts: for each part, the weights by module.
        base_sha256: `weights_sha256` of the network without adapters.

    Returns:
        The path.
    """
    from safetensors.torch import save

    state: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for part, layers in parts.items():
        for name, weights in layers.items():
            for kind, value in (("lora_A", weights.down), ("lora_B", weights.up)):
                stored = value.detach().to("cpu").contiguous()
                state[f"{part.name}.{part.inner}{name}.{kind}.weight"] = stored
        config |= {f"{part.name}.{option}": value for option, value in peft_options(layers).items()}
    metadata = {"format": "pt", _BASE: base_sha256, _CONFIG: json.dumps(config, sort_keys=True)}
    content = save(state, metadata)
    return replace_file(path, lambda file: file.write(content), binary=True)


def peft_options(layers: Mapping[str, LayerWeights]) -> dict[str, Any]:
    """Return the options of peft's ``LoraConfig`` for some layers, as JSON values."""
    first = next(iter(layers.values()))
    return {
        "r": first.rank,
        "lora_alpha": first.alpha,
        "target_modules": list(layers),
        "rank_pattern": {name: each.rank for name, each in layers.items() if each.rank != first.rank},
        "alpha_pattern": {name: each.alpha for name, each in layers.items() if each.alpha != first.alpha},
        "init_lora_weights": "gaussian",
    }


def read_adapter(path: str | Path, parts: Sequence[Part]) -> AdapterFile:
    """Read an adapter in diffusers' format (peft's names) or kohya's.

    kohya's names are those of diffusers with "_" for ".", so they are found among the network's own.

    Args:
        path: a safetensors file.
        parts: the network's parts, by whose modules the names are understood.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another format, or names layers that the network lacks.
    """
    state, metadata = _read(Path(path))
    config = _config(path, metadata)
    unsupported = [name for name in config if name.endswith((".use_rslora", ".use_dora")) and config[name]]
    kinds: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, kind = _split(key)
        kinds.setdefault(name, {})[kind] = value
    wrong = [name for name, found in kinds.items() if not {"down", "up"} <= found.keys() <= {"down", "up", "alpha"}]
    if unsupported or wrong or not kinds:
        shown = ", ".join([*unsupported, *wrong][:_SHOWN]) or "it is empty"
        raise ValueError(f"{path} is no LoRA adapter in the format of diffusers (peft) or kohya: {shown}.")
    known = _names(parts)
    layers: dict[str, dict[str, LayerWeights]] = {}
    lacking = [name for name in kinds if name not in known]
    if lacking:
        raise ValueError(
            f"{path} changes {len(lacking)} layers that the network lacks, such as {', '.join(lacking[:_SHOWN])}: it "
            "is for another architecture."
        )
    for name, found in kinds.items():
        part, module = known[name]
        alpha = float(found["alpha"]) if "alpha" in found else _alpha(config, part, module, len(found["down"]))
        layers.setdefault(part.name, {})[module] = LayerWeights(found["down"], found["up"], alpha)
    return AdapterFile(layers, metadata.get(_BASE))


def _names(parts: Sequence[Part]) -> dict[str, tuple[Part, str]]:
    """Map the names of layers in files, in both formats, to the modules."""
    names: dict[str, tuple[Part, str]] = {}
    for part in parts:
        short = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part.name]
        for module, _ in part.module.named_modules():
            inner = f"{part.inner}{module}"
            files = (f"{part.name}.{module}", f"{part.name}.{inner}", short + inner.replace(".", "_"))
            names |= dict.fromkeys(files, (part, module))
    return names


def _split(key: str) -> tuple[str, str]:
    """Return the layer and the kind of a tensor: down, up, alpha, or its last word."""
    for ending, kind in _KINDS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), kind
    name, _, last = key.rpartition(".")
    return name, last


def _config(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return peft's options of all parts, packed by part; empty if the file has none."""
    try:
        config = json.loads(metadata.get(_CONFIG, "{}"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: its {_CONFIG} is no JSON object.")
    return config


def _alpha(config: Mapping[str, Any], part: Part, module: str, rank: int) -> float:
    """Return a layer's alpha as peft finds it, by the ends of names; without a config diffusers takes the rank."""
    default = config.get(f"{part.name}.lora_alpha")
    default = rank if default is None else default
    pattern = config.get(f"{part.name}.alpha_pattern") or {}
    ends = (value for end, value in pattern.items() if re.match(rf"(.*\.)?({end})$", f"{part.inner}{module}"))
    return float(next(ends, default))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"The adapter {path} does not exist: train it with train_lora.json, or give its file.")
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}).") from None
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"{path} holds values that are not finite, in {broken[0]}.")
    return state, metadata
