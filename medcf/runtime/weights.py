# SPDX-License-Identifier: Apache-2.0
"""Loads weights, or says which file is wrong and how to make the right one; also the names of their classes."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from medcf.runtime.atomic import write_json

__all__ = ["class_names", "load_weights", "read_weights", "weights_sha256", "write_class_names"]

_CLASSES = "classes.json"

Module = TypeVar("Module", bound=nn.Module)

_SHOWN = 3  # number of differing parameters that an error names
_HOLDERS = ("state_dict", "model_state_dict", "model")  # checkpoint entries that may hold a state dict
_OLD_NAMES = (".proj_attn.", ".to_out.0.")  # parts of MONAI Generative's parameter names that MONAI renamed


def read_weights(path: str | Path, *, remedy: str = "") -> dict[str, Tensor]:
    """Read a state dict, including from a checkpoint that holds it among other things.

    Prefixes that `DataParallel` and ``torch.compile`` add to all names are removed.

    Args:
        path: file written by ``torch.save(module.state_dict(), path)``, or with the state dict under ``"state_dict"``,
            ``"model_state_dict"`` or ``"model"``.
        remedy: what to do if the file is missing or wrong, such as the training command; ends the message.

    Returns:
        Parameter name to tensor, on the CPU.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a state dict, is truncated, or holds non-finite values.
    """
    return _without_prefixes(_read(Path(path), remedy))


def load_weights(
    module: Module,
    path: str | Path,
    *,
    remedy: str = "",
    frozen: bool = True,
    device: torch.device | str | None = None,
    rename: Callable[[str], str | None] | None = None,
) -> Module:
    """Load a state dict into a network; it must match every parameter.

    Args:
        module: the network.
        path: see `read_weights`. Names from MONAI Generative are translated if the network knows them.
        remedy: what to do if the file is missing or wrong; ends the message.
        frozen: also set eval mode and disable parameter gradients.
        device: device to move the network to; None does not move it.
        rename: name in the file to the network's name, or None to leave an entry out. Batch normalization's counters of
            batches, which some files lack, are then left out, too: they only matter in a training.

    Returns:
        The same module.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is unusable or does not fit the network; the message names the first differences.
    """
    state = _read(Path(path), remedy)
    expected = module.state_dict()
    if not state.keys() <= expected.keys():  # a network may have a part named "module"
        state = _without_prefixes(state)
    state = _with_new_names(module, state)
    if rename is not None:
        renamed = {rename(name): value for name, value in state.items()}
        counters = {name: value for name, value in expected.items() if name.endswith(".num_batches_tracked")}
        state = {name: value for name, value in renamed.items() if name is not None} | counters
    differences = _differences(state, expected)
    if differences:
        shown = "; ".join(differences[:_SHOWN])
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        message = f"{path} does not fit {type(module).__name__}: {shown}{more}."
        if hasattr(module, "load_old_state_dict") and any(part in name for name in state for part in _OLD_NAMES):
            projected = any(".transformer_blocks." in name for name in state)
            message += (
                f" It is from MONAI Generative: give the network use_combined_linear=False, include_fc={projected}."
            )
        raise ValueError(_message(message, remedy))
    module.load_state_dict(state)
    if frozen:
        module.eval().requires_grad_(False)
    return module if device is None else module.to(device)


def weights_sha256(module: nn.Module) -> str:
    """Hash a network's weights by names, shapes and values; device, memory format and the type in a file do not matter.

    Args:
        module: the network; floating-point values are hashed in float32.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        kept = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype).contiguous()
        digest.update(f"{name} {tuple(kept.shape)}\n".encode())
        digest.update(kept.reshape(-1).numpy())
    return digest.hexdigest()


def _read(path: Path, remedy: str) -> dict[str, Tensor]:
    """Read a state dict with the names used in the file."""
    if not path.is_file():
        raise FileNotFoundError(_message(f"The weights file {path} does not exist.", remedy))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, runtime and end-of-file errors alike
        # torch's own text is hidden: it explains how to execute the contents of the file
        raise ValueError(_message(f"{path} is not a readable weights file: {_reason(error)}.", remedy)) from None
    state = content
    if isinstance(content, Mapping):
        state = next((content[name] for name in _HOLDERS if isinstance(content.get(name), Mapping)), content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        holds = f"keys {', '.join(map(str, list(state)[:4]))}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(_message(f"{path} is not a plain state dict of tensors (it holds: {holds}).", remedy))
    broken = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise ValueError(_message(f"{path} holds values that are not finite, in {broken[0]}.", remedy))
    return dict(state)


def _reason(error: Exception) -> str:
    """Summarize why torch could not load a file."""
    if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
        return "it holds more than tensors, none of which was executed; save module.state_dict() where it was made"
    return "it may be truncated, or of another kind"


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that `DataParallel` and ``torch.compile`` add to names."""
    state = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _with_new_names(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate names from MONAI Generative if the network accepts every one of them."""
    expected = module.state_dict()
    if not hasattr(module, "load_old_state_dict") or state.keys() <= expected.keys():
        return state
    # the old networks did not use these in their forward: one that has the layer would compute something else
    rest = {name: value for name, value in state.items() if ".proj_attn." not in name}
    complete = len(rest) == len(expected)
    renamed = copy.deepcopy(module)
    try:
        renamed.load_old_state_dict(rest)  # type: ignore[operator]  # takes what it uses out of the dict
    except (KeyError, RuntimeError):
        return state
    return renamed.state_dict() if complete and not rest else state


def _differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    differences = [f"missing {name}" for name in expected if name not in state]
    differences += [f"unexpected {name}" for name in state if name not in expected]
    differences += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    return differences


def class_names(folder: str | Path, default: Sequence[str]) -> list[str]:
    """Read the class names for the weights in a folder, in the order of their indices.

    Args:
        folder: folder of the weights.
        default: names to use if none were written, as when training on phantoms.
    """
    path = Path(folder) / _CLASSES
    return list(json.loads(path.read_text(encoding="utf-8"))["classes"]) if path.is_file() else list(default)


def write_class_names(folder: str | Path, names: Sequence[str]) -> None:
    """Write the class names for the weights in a folder.

    Raises:
        ValueError: if the folder holds weights for other classes.
    """
    known = class_names(folder, names)
    if known != list(names):
        raise ValueError(
            f"{folder} holds weights for the classes {', '.join(known)}, not {', '.join(names)}: give each set of "
            f"classes its own folder (--models_dir DIR), or delete {Path(folder) / _CLASSES} with its weights."
        )
    write_json(Path(folder) / _CLASSES, {"classes": list(names)})


def _message(problem: str, remedy: str) -> str:
    return f"{problem} {remedy}".rstrip()
