# SPDX-License-Identifier: Apache-2.0
"""Load weights, or say at once which file is wrong and what makes the right one; and what their classes are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from medcf.runtime.atomic import write_json

__all__ = ["class_names", "load_weights", "read_weights", "write_class_names"]

_CLASSES = "classes.json"

Module = TypeVar("Module", bound=nn.Module)

_SHOWN = 3  # how many differing parameters an error names


def read_weights(path: str | Path, *, remedy: str = "") -> dict[str, Tensor]:
    """Read a plain state dict.

    Args:
        path: file written by ``torch.save(module.state_dict(), path)``.
        remedy: what to do when the file is missing or wrong, for example the training command; ends the message.

    Returns:
        Parameter name to tensor, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no state dict, is truncated, or holds values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(_message(f"The weights file {path} does not exist.", remedy))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, runtime and end-of-file errors alike
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            _message(f"{path} is not a readable weights file; it may be truncated ({first_line[:200]}).", remedy)
        ) from error
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        content = f"keys {', '.join(map(str, list(state)[:4]))}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(_message(f"{path} is not a plain state dict of tensors (it holds: {content}).", remedy))
    broken = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise ValueError(_message(f"{path} holds values that are not finite, in {broken[0]}.", remedy))
    return dict(state)


def load_weights(
    module: Module,
    path: str | Path,
    *,
    remedy: str = "",
    frozen: bool = True,
    device: torch.device | str | None = None,
) -> Module:
    """Load a state dict into a network whose every parameter it must match.

    Args:
        module: the network.
        path: file with a plain state dict.
        remedy: what to do when the file is missing or wrong; ends the message.
        frozen: also set evaluation mode and switch gradients of the parameters off.
        device: where to move the network; None leaves it where it is.

    Returns:
        The same module.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unusable or does not fit the network; the message names the first differences.
    """
    state = read_weights(path, remedy=remedy)
    expected = module.state_dict()
    differences = [f"missing {name}" for name in expected if name not in state]
    differences += [f"unexpected {name}" for name in state if name not in expected]
    differences += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if differences:
        shown = "; ".join(differences[:_SHOWN])
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ValueError(_message(f"{path} does not fit {type(module).__name__}: {shown}{more}.", remedy))
    module.load_state_dict(state)
    if frozen:
        module.eval().requires_grad_(False)
    return module if device is None else module.to(device)


def class_names(folder: str | Path, default: Sequence[str]) -> list[str]:
    """Read what the classes of the weights in a folder are called, in the order of their indices.

    Args:
        folder: folder of the weights.
        default: the names where a training of phantoms, or nobody, wrote any.
    """
    path = Path(folder) / _CLASSES
    return list(json.loads(path.read_text(encoding="utf-8"))["classes"]) if path.is_file() else list(default)


def write_class_names(folder: str | Path, names: Sequence[str]) -> None:
    """Write what the classes of a folder's weights are called.

    Raises:
        ValueError: the folder holds weights of other classes.
    """
    known = class_names(folder, names)
    if known != list(names):
        raise ValueError(
            f"{folder} holds weights of the classes {', '.join(known)}, not {', '.join(names)}: give every set of "
            f"classes a folder of its own (--models_dir DIR), or delete {Path(folder) / _CLASSES} with its weights."
        )
    write_json(Path(folder) / _CLASSES, {"classes": list(names)})


def _message(problem: str, remedy: str) -> str:
    return f"{problem} {remedy}".rstrip()
