# SPDX-License-Identifier: Apache-2.0
"""The forward pass of a training, in mixed precision on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from monai.inferers import DiffusionInferer, SimpleInferer
from monai.networks.schedulers import Scheduler
from torch import nn

from medcf.networks.attention_injection import AttentionInjection
from medcf.runtime.choices import check_choice

__all__ = ["AutocastInferer", "DiffusionTrainingInferer"]


class AutocastInferer(SimpleInferer):
    """One call of the network in mixed precision, on any device (``amp`` in MONAI's trainer is for CUDA only).

    Args:
        amp_dtype: ``"bfloat16"``, which needs no gradient scaler; ``"float32"`` or None for full precision.

    Raises:
        ValueError: if it is another word.
    """

    def __init__(self, amp_dtype: str | None = "bfloat16") -> None:
        super().__init__()
        if amp_dtype is not None:
            check_choice("amp_dtype", amp_dtype, Literal["bfloat16", "float32"])
        self.amp_dtype = torch.bfloat16 if amp_dtype == "bfloat16" else None

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        with torch.autocast(inputs.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            return super().__call__(inputs, network, *args, **kwargs)


class DiffusionTrainingInferer(DiffusionInferer):
    """MONAI's `DiffusionInferer` with mixed precision and with class labels, which MONAI's cannot pass in training.

    The prediction is returned in float32, so the loss is computed in float32.

    Args:
        scheduler: noise scheduler with MONAI's ``add_noise``.
        amp_dtype: see `AutocastInferer`.
    """

    def __init__(self, scheduler: Scheduler, amp_dtype: str | None = None) -> None:
        super().__init__(scheduler)
        self.autocast = AutocastInferer(amp_dtype)

    def __call__(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        network: nn.Module,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        reference: Sequence[int] | None = None,
        control: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add noise to the images and let the network predict.

        Args:
            inputs: images (B, C, *spatial) in [-1, 1].
            network: called as ``network(noisy, timesteps=, context=, class_labels=)``.
            noise: standard normal noise of the same shape.
            timesteps: integers (B,).
            class_labels: integers (B,).
            condition: context for cross-attention, (B, tokens, features).
            reference: the row that each row reads by attention injection (B,), see `medcf.networks.AttentionInjection`.
            control: what a ControlNet follows (B, channels, *spatial), see `medcf.networks.ControlledUNet`.

        Returns:
            The network's output in float32.
        """
        noisy = self.scheduler.add_noise(original_samples=inputs, noise=noise, timesteps=timesteps)
        with nullcontext() if reference is None else AttentionInjection(network) as injection:
            if injection is not None:
                injection.reference = reference
            options = {"timesteps": timesteps, "context": condition, "class_labels": class_labels}
            options |= {} if control is None else {"control": control}
            return self.autocast(noisy, network, **options).float()
