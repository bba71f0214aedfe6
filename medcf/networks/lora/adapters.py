# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters of a network: trained, saved alone, loaded, mixed, merged (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from medcf.networks.lora.files import LayerWeights, peft_options, read_adapter, write_adapter
from medcf.networks.lora.layers import Part, Targets, adapted_parts, plain_name, target_layers
from medcf.networks.text_encoder import TextEncoder
from medcf.runtime.weights import weights_sha256

__all__ = ["Adapters"]

logger = logging.getLogger(__name__)


class Adapters:
    """The adapters of a network, whose layers peft changes in place: h = W x + m (alpha / r) B A x.

    The network's own weights W are frozen; m is the merging ratio of each adapter, 0 to 1.

    Args:
        network: `BundleUNet` in 2D or 3D, `PromptUNet`, also that of `load_stable_diffusion`, or `TextEncoder`, with
            the weights of its training: the base, whose hash every file of an adapter holds.

    Attributes:
        network: the same network.
        base_sha256: hash of the base, see `medcf.runtime.weights.weights_sha256`.
        ratios: name to merging ratio of the adapters in use.
        merged: whether they are in the weights rather than beside them.

    Raises:
        ValueError: if the network has adapters already.
    """

    def __init__(self, network: nn.Module) -> None:
        if any("lora_A" in name for name, _ in network.named_modules()):
            raise ValueError("The network has adapters already: use the Adapters that made them, or remove() them.")
        self.network = network
        self.base_sha256 = weights_sha256(network)
        self.ratios: dict[str, float] = {}
        self.merged = False
        self._parts = adapted_parts(network)

    def add(
        self,
        name: str = "adapter",
        *,
        rank: int = 8,
        alpha: float | None = None,
        targets: Targets = "cross-attention",
    ) -> Adapters:
        """Add an adapter to be trained, the only one in use and the only part of the network with gradients.

        A is Gaussian with a standard deviation of 1 / r and B is 0, so nothing changes before the first step.

        Args:
            name: its name.
            rank: r, the number of dimensions of each layer's update.
            alpha: the update is scaled by alpha / r; None means r.
            targets: see `medcf.networks.lora.layers.target_layers`.

        Returns:
            These adapters.

        Raises:
            ImportError: if peft is not installed.
            ValueError: if the network has no such layers, or the name is taken.
        """
        if rank < 1:
            raise ValueError(f"rank={rank}: it must be at least 1.")
        if alpha is not None and not 0 < alpha < math.inf:
            raise ValueError(f"alpha={alpha}: it must be a number above 0, or the adapter changes nothing.")
        names = {part: target_layers(part, targets) for part in self._parts}
        if not any(names.values()):
            raise ValueError(f"{type(self.network).__name__} has no layers of {targets}: choose other targets.")
        empty = torch.empty(rank, 0)
        weights = LayerWeights(empty, empty, float(rank if alpha is None else alpha))
        self._inject(name, {part: dict.fromkeys(layers, weights) for part, layers in names.items()})
        self.module(name).requires_grad_(True)
        return self

    def load(self, path: str | Path, name: str | None = None, *, any_base: bool = False) -> str:
        """Load an adapter, the only one in use afterward; its weights get no gradients.

        Args:
            path: safetensors file of ``save``, of diffusers' ``save_lora_weights``, or of kohya's trainer.
            name: its name; None takes that of the file.
            any_base: load it whatever it was trained on. Files of others do not say, and are loaded with a warning.

        Returns:
            The name.

        Raises:
            FileNotFoundError: if there is no such file.
            ImportError: if peft is not installed.
            ValueError: if the file is unusable, or the adapter was trained on another base.
        """
        name = Path(path).stem.replace(".", "_") if name is None else name
        file = read_adapter(path, self._parts)
        if file.base_sha256 is None:
            logger.warning("%s does not say what it was trained on; whether it fits this network is not known.", path)
        elif file.base_sha256 != self.base_sha256 and not any_base:
            raise ValueError(
                f"{path} was trained on another base: its weights have SHA-256 {file.base_sha256}, and those of this "
                f"network {self.base_sha256}. Load the weights that it was trained on, or train it again on these."
            )
        parts = {part: file.layers.get(part.name, {}) for part in self._parts}
        for part, layers in parts.items():
            for module, weights in layers.items():
                _check_shape(path, f"{part.name}.{module}", part.module.get_submodule(module), weights)
        self._inject(name, parts)
        for part, module, layer in self._layers(name):
            weights = parts[part][module]
            for own, stored in ((layer.lora_A, weights.down), (layer.lora_B, weights.up)):
                own[name].weight.data.copy_(stored.reshape(own[name].weight.shape))
        return name

    def save(self, path: str | Path, name: str = "adapter", dtype: str | None = None) -> Path:
        """Write an adapter alone, in diffusers' format, with the hash of its base in the metadata.

        Args:
            path: safetensors file.
            name: which adapter.
            dtype: floating-point type of the file, such as "float16"; None keeps the adapter's.

        Returns:
            The path.
        """
        self._check([name])
        kind = getattr(torch, dtype) if dtype else None
        parts: dict[Part, dict[str, LayerWeights]] = {}
        for part, module, layer in self._layers(name):
            down, up = (each[name].weight.detach().to(kind) for each in (layer.lora_A, layer.lora_B))
            parts.setdefault(part, {})[module] = LayerWeights(down, up, float(layer.lora_alpha[name]))
        return write_adapter(path, parts, self.base_sha256)

    def use(self, ratios: str | Mapping[str, float]) -> None:
        """Switch to some adapters; the others rest.

        Prompts that were embedded before were embedded by the text encoder as it was: build a `Conditioner` afterward.

        Args:
            ratios: an adapter, with ratio 1, or the merging ratio of each, 0 to 1; ``{}`` is the base.

        Raises:
            ValueError: if there is no such adapter, or a ratio is not from 0 to 1.
        """
        ratios = {ratios: 1.0} if isinstance(ratios, str) else dict(ratios)
        self._check(ratios)
        if wrong := {name: ratio for name, ratio in ratios.items() if not 0 <= ratio <= 1}:
            raise ValueError(f"The merging ratio must be from 0 to 1: {wrong}.")
        self.unmerge()
        for _, _, layer in self._layers():
            _activate(layer, list(ratios), enabled=bool(ratios))
            for name, ratio in ratios.items():
                layer.set_scale(name, ratio)
        self.ratios = {name: float(ratio) for name, ratio in ratios.items()}
        self._forget()

    def merge(self) -> None:
        """Add the adapters in use to the weights, so that they cost nothing; ``unmerge`` takes them out again."""
        self._change_weights(merged=True)

    def unmerge(self) -> None:
        """Take merged adapters out of the weights, which are then as before up to rounding."""
        self._change_weights(merged=False)

    def remove(self) -> nn.Module:
        """Remove peft's layers: the network has its own names again, and no adapters but those that are merged.

        Returns:
            The network.
        """
        for part, module, layer in list(self._layers()):
            owner, _, child = module.rpartition(".")
            setattr(part.module.get_submodule(owner), child, layer.get_base_layer())
            vars(part.module).pop("peft_config", None)
        self.ratios, self.merged = {}, False
        return self.network

    def module(self, name: str = "adapter") -> nn.ModuleList:
        """Return the matrices A and B of an adapter, for optimizer and checkpoint."""
        self._check([name])
        return nn.ModuleList(each[name] for _, _, layer in self._layers(name) for each in (layer.lora_A, layer.lora_B))

    def _inject(self, name: str, parts: Mapping[Part, Mapping[str, LayerWeights]]) -> None:
        """Let peft insert an adapter, without gradients and the only one in use."""
        peft = _peft()
        if not name or "." in name or name in self._names():
            raise ValueError(f"The name {name!r} is taken, empty, or has a dot: give the adapter another one.")
        self.unmerge()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
            for part, layers in ((part, layers) for part, layers in parts.items() if layers):
                peft.inject_adapter_in_model(peft.LoraConfig(**peft_options(layers)), part.module, name)
        self.network.requires_grad_(False)
        self.use(name)

    def _layers(self, name: str | None = None) -> Iterator[tuple[Part, str, Any]]:
        """Yield part, module name and layer of all adapted layers, or of those of one adapter."""
        for part in self._parts:
            for module, layer in part.module.named_modules():
                if hasattr(layer, "lora_A") and (name is None or name in layer.lora_A):
                    yield part, plain_name(module), layer

    def _names(self) -> set[str]:
        return {name for _, _, layer in self._layers() for name in layer.lora_A}

    def _check(self, names: Iterable[str]) -> None:
        known = self._names()
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"There is no adapter {unknown[0]!r}; there are: {', '.join(sorted(known)) or 'none'}.")

    @torch.no_grad()
    def _change_weights(self, merged: bool) -> None:
        """Add the adapters in use to the weights, or subtract them.

        peft's own merge fails for convolutions of 1 x 1 x 1.
        """
        if merged == self.merged:
            return
        for _, _, layer in self._layers():
            weight = layer.get_base_layer().weight
            for name in [each for each in self.ratios if each in layer.lora_A]:
                update = _update(layer, name).to(weight.dtype).reshape(weight.shape)
                weight.add_(update, alpha=1 if merged else -1)
            _activate(layer, list(self.ratios), enabled=not merged and bool(self.ratios))
        self.merged = merged
        self._forget()

    def _forget(self) -> None:
        """Empty the text encoder's cache, which sees no change of a ratio."""
        for module in self.network.modules():
            if isinstance(module, TextEncoder):
                module.forget()


def _activate(layer: Any, names: list[str], enabled: bool) -> None:
    """Choose the adapters that a layer adds; peft would also choose which of them have gradients."""
    trained = [(weight, weight.requires_grad) for weight in layer.parameters()]
    layer.enable_adapters(enabled)
    layer.set_adapter(names, inference_mode=True)
    for weight, had_gradient in trained:
        weight.requires_grad_(had_gradient)


def _update(layer: Any, name: str) -> Tensor:
    """Return m (alpha / r) B A, (d_out, d_in)."""
    matrices = (each[name].weight.flatten(1) for each in (layer.lora_A, layer.lora_B))
    down, up = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in matrices)
    product: Tensor = layer.scaling[name] * (up @ down)
    return product


def _check_shape(path: str | Path, name: str, layer: nn.Module, weights: LayerWeights) -> None:
    """Refuse an update of another shape than the layer's; a linear layer and a convolution of 1 x 1 have the same."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        raise ValueError(f"{path} changes {name}, a {type(layer).__name__}: it is for another architecture.")
    if not weights.rank or weights.up.ndim < 2 or weights.up.shape[1] != weights.rank:
        raise ValueError(f"{path} does not fit: {name} has ranks of {weights.rank} and {tuple(weights.up.shape)[1:]}.")
    expected, own = (weight.shape[0], weight[0].numel()), (len(weights.up), weights.down[0].numel())
    if own != expected:
        raise ValueError(
            f"{path} does not fit: its update of {name} is {own[0]} x {own[1]}, and the layer {expected[0]} x "
            f"{expected[1]}. It is for another architecture."
        )


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "Adapters need peft, which is not installed: python -m pip install 'medcf[text]', or '.[text]' in a clone."
        ) from error
    return peft
