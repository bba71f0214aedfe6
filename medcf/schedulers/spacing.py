# SPDX-License-Identifier: Apache-2.0
"""Selects the training timesteps that a shorter sampling chain keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, repeat
from typing import Literal, get_args

import torch

__all__ = ["Spacing", "SpacingRule", "kept_timesteps"]

Spacing = Literal["respaced", "leading", "trailing", "linspace"]
#: The name of a rule, or a function from the number of steps to the ascending list of timesteps.
SpacingRule = Spacing | Callable[[int], Sequence[int]]


def kept_timesteps(
    num_train_timesteps: int, num_inference_steps: int, spacing: SpacingRule = "respaced", steps_offset: int = 0
) -> list[int]:
    """List the training timesteps that a chain of ``num_inference_steps`` visits, in ascending order.

    With T training and n inference steps:

    - ``"respaced"``: round(i (T - 1) / (n - 1)), the rule of guided-diffusion (Nichol & Dhariwal 2021,
      ``space_timesteps`` with one section); both ends are kept;
    - ``"linspace"``: the list announced by MONAI's schedulers (the same up to the rounding of exact halves);
    - ``"leading"``: i (T // n), as Stable Diffusion (which adds an offset of 1); starts below the last step;
    - ``"trailing"``: round((i + 1) T / n) - 1, recommended for few steps by Lin et al. 2023 (arXiv 2305.08891);
      ends above the first step.

    n = T keeps every step under each rule, with any offset. n = 1 keeps T - 1 under all rules except ``"leading"``.

    Args:
        num_train_timesteps: T, number of steps the model was trained with.
        num_inference_steps: n, number of steps to keep, 1 to T.
        spacing: the rule, or a function from n to the list, which ignores the offset.
        steps_offset: shifts every kept step up by this number; rules other than ``"leading"`` then distribute over
            T - ``steps_offset`` steps, so that the last one stays T - 1.

    Returns:
        n distinct timesteps in [0, T - 1].

    Raises:
        ValueError: if the rule is unknown, or there is no such list for n and the offset.

    Example:
        >>> kept_timesteps(1000, 400)[:4], kept_timesteps(1000, 400)[-2:]
        ([0, 3, 5, 8], [996, 999])
    """
    if not callable(spacing) and spacing not in get_args(Spacing):
        raise ValueError(f"`spacing` is {spacing!r}; it must be one of {', '.join(get_args(Spacing))}.")
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"`num_inference_steps` is {num_inference_steps}; it must be between 1 and the {num_train_timesteps} "
            "steps the model was trained with (`num_train_timesteps`)."
        )
    if not 0 <= steps_offset < num_train_timesteps:
        raise ValueError(f"`steps_offset` is {steps_offset}; it must be in [0, {num_train_timesteps}).")
    if num_inference_steps == num_train_timesteps:
        return list(range(num_train_timesteps))
    if callable(spacing):
        return [int(t) for t in spacing(num_inference_steps)]

    total, count = num_train_timesteps - steps_offset, num_inference_steps
    if spacing == "leading":
        kept = [i * (num_train_timesteps // count) for i in range(count)]
    elif count == 1:
        kept = [total - 1]
    elif spacing == "respaced":
        # Accumulate the position instead of multiplying: exact halves then round as for published checkpoints.
        kept = [round(position) for position in accumulate(repeat((total - 1) / (count - 1), count - 1), initial=0.0)]
    elif spacing == "linspace":
        kept = torch.linspace(total - 1, 0, count).round().long().flip(0).tolist()
    else:
        kept = [round((i + 1) * total / count) - 1 for i in range(count)]
    kept = [t + steps_offset for t in kept]

    if len(set(kept)) < count or kept[-1] >= num_train_timesteps:
        raise ValueError(
            f"{count} steps with spacing {spacing!r} and `steps_offset` {steps_offset} do not fit into "
            f"{num_train_timesteps} training steps; lower `num_inference_steps` or the offset."
        )
    return kept
