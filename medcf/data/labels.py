# SPDX-License-Identifier: Apache-2.0
"""A sample's label in whatever form a pipeline has it, and a class index in that form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["index_of_label", "label_like"]


def index_of_label(label: Any, names: Sequence[str] = ()) -> int:
    """Return the class index of a label.

    Args:
        label: an index, in any type or as an array of one element; a class name; or a one-hot vector.
        names: names of the classes.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(label, str):
        if label not in names:
            raise ValueError(f"label={label!r} is none of the classes {', '.join(map(repr, names)) or '(unnamed)'}.")
        return list(names).index(label)
    values = np.asarray(label.detach().cpu() if isinstance(label, torch.Tensor) else label).ravel()
    if values.size == 1 and float(values[0]) == int(values[0]):
        return int(values[0])
    if values.size > 1 and set(np.unique(values).tolist()) == {0, 1} and values.sum() == 1:
        return int(values.argmax())
    raise ValueError(f"label={label!r} is neither a class index, nor a class name, nor one-hot.")


def label_like(index: int, label: Any, names: Sequence[str] = ()) -> Any:
    """Return a class index in the form of another label: its type and shape.

    Example:
        >>> label_like(2, torch.tensor([1, 0, 0]))
        tensor([0, 0, 1])
    """
    if isinstance(label, str):
        return names[index]
    if isinstance(label, torch.Tensor | np.ndarray):
        changed: Any = torch.zeros_like(label) if isinstance(label, torch.Tensor) else np.zeros_like(label)
        if changed.size == 1 if isinstance(changed, np.ndarray) else changed.numel() == 1:
            changed[...] = index
        elif index < len(changed.ravel()):
            changed.ravel()[index] = 1
        else:
            raise ValueError(f"Class {index} does not fit a one-hot label of {len(changed.ravel())} classes.")
        return changed
    return type(label)(index)
