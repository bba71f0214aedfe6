# SPDX-License-Identifier: Apache-2.0
"""A common interface to denoising networks: noise, clean image and velocity from whatever the network predicts.

Condition, null condition and classifier-free guidance are resolved here, so methods need not know how a network was
parameterized or conditioned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from medcf.schedulers import Prediction, RespacedScheduler

__all__ = ["Denoiser", "Network", "away_from_null", "unwrap"]

#: A denoising network, called with the sample and, by keyword, timesteps and conditions.
Network = Callable[..., torch.Tensor]


class Denoiser:
    """A network, its scheduler and its condition, called as ``denoiser(sample, t)``.

    The network is called as ``network(sample, timesteps=..., context=..., class_labels=...)``; omitted condition
    arguments are not passed, so unconditional networks without them work as well. Classifier-free guidance (Ho and
    Salimans 2022) combines ``null + guidance_scale * (conditional - null)``, with the scale of MONAI and diffusers (1 +
    w in the paper), from ONE stacked network call; learned variance channels are those of the conditional half. The
    combination is the same for noise, clean image and velocity and precedes any clipping.

    Args:
        network: denoising network; its output has the channels of the sample, or twice as many with a learned variance.
        scheduler: provides ``convert(model_output, t, sample)``, which interprets the network's raw output at t.
        class_labels: class index for the whole batch, or one per sample (B,).
        context: cross-attention context (B, tokens, dim), or (1, tokens, dim) for the whole batch.
        null_class_labels: class index trained as "no class".
        null_context: context trained as "no context", shaped like ``context``.
        guidance_scale: 1 runs only the conditional branch and needs no null condition.

    Raises:
        ValueError: if a class index is outside the network's embedding, a class-conditional network gets no class, or
            the guidance scale is not 1 and the condition or its null is missing.
    """

    def __init__(
        self,
        network: Callable[..., torch.Tensor],
        scheduler: RespacedScheduler,
        *,
        class_labels: int | torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        null_class_labels: int | torch.Tensor | None = None,
        null_context: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        self.network = network
        self.scheduler = scheduler
        self.guidance_scale = float(guidance_scale)
        num_classes = getattr(unwrap(network), "num_class_embeds", None)
        self.class_labels = _check_labels("class_labels", class_labels, num_classes)
        self.null_class_labels = _check_labels("null_class_labels", null_class_labels, num_classes)
        self.context = context
        self.null_context = null_context
        if num_classes is not None and class_labels is None:
            raise ValueError(
                f"The network has num_class_embeds={num_classes} and needs class_labels; to run it as an unconditional "
                "model, give the index trained as its null class."
            )
        if self.guided:
            self._check_null()
        #: U-Net evaluations per sample so far; a stacked call with condition and null counts as two.
        self.num_function_evaluations = 0

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is active."""
        return self.guidance_scale != 1.0

    def __call__(self, sample: torch.Tensor, t: int) -> Prediction:
        """Predict noise, clean image and velocity of a noisy batch.

        Args:
            sample: noisy images (B, C, *spatial) at step ``t``.
            t: timestep of the training schedule, a Python integer.

        Returns:
            The scheduler's ``Prediction``, in float32 even under autocast.
        """
        names = ("", "null_") if self.guided else ("",)
        stack = torch.cat([sample] * len(names)) if self.guided else sample
        given: dict[str, torch.Tensor] = {}
        for condition in ("context", "class_labels"):
            parts = [_expand(f"{prefix}{condition}", getattr(self, f"{prefix}{condition}"), sample) for prefix in names]
            known = [part for part in parts if part is not None]
            if len(known) == len(names):
                given[condition] = torch.cat(known) if self.guided else known[0]
        timesteps = torch.full((len(stack),), t, device=sample.device, dtype=torch.long)
        self.num_function_evaluations += len(names)
        output = self.network(stack, timesteps=timesteps, **given)
        if self.guided:
            conditional, null = output.to(torch.promote_types(output.dtype, torch.float32)).chunk(2)
            output = away_from_null(conditional, null, self.guidance_scale, sample.shape[1])
        return self.scheduler.convert(output, t, sample)

    def _check_null(self) -> None:
        if self.class_labels is None and self.context is None:
            raise ValueError(
                f"guidance_scale={self.guidance_scale:g} needs a condition to guide toward: give class_labels or "
                "context, or leave guidance_scale at 1."
            )
        for name, value, null in (
            ("class_labels", self.class_labels, self.null_class_labels),
            ("context", self.context, self.null_context),
        ):
            if value is not None and null is None:
                raise ValueError(
                    f"guidance_scale={self.guidance_scale:g} compares {name} with the null: give null_{name}, "
                    "or leave guidance_scale at 1."
                )


def unwrap(network: Any) -> Any:
    """Return the network inside ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile``."""
    for name in ("module", "_orig_mod"):
        network = getattr(network, name, network)
    return network


def _check_labels(name: str, labels: int | torch.Tensor | None, num_classes: int | None) -> int | torch.Tensor | None:
    """Return the labels as an integer or a long tensor (B,), checked against the network's embedding."""
    if labels is None:
        return None
    tensor = torch.as_tensor(labels)
    if tensor.is_floating_point() or tensor.ndim > 1:
        raise ValueError(f"{name} must be a class index or a tensor (B,) of them, got {labels!r}.")
    if num_classes is not None and (int(tensor.min()) < 0 or int(tensor.max()) >= num_classes):
        raise ValueError(
            f"{name}={labels!r} is outside the network's {num_classes} classes (num_class_embeds): "
            f"use 0 to {num_classes - 1}."
        )
    return int(tensor) if tensor.ndim == 0 else tensor.long()


def away_from_null(
    conditional: torch.Tensor, null: torch.Tensor, scale: float | torch.Tensor, channels: int
) -> torch.Tensor:
    """Return null + scale * (conditional - null); learned variance, beyond ``channels``, is the conditional's."""
    mixed = null[:, :channels] + scale * (conditional - null)[:, :channels]
    return torch.cat([mixed, conditional[:, channels:]], dim=1)


def _expand(name: str, condition: int | torch.Tensor | None, sample: torch.Tensor) -> torch.Tensor | None:
    """Return a condition for each image of the batch, on its device: class indices (B,), or a context in its dtype."""
    batch = sample.shape[0]
    if condition is None:
        return None
    if isinstance(condition, int):
        return torch.full((batch,), condition, device=sample.device, dtype=torch.long)
    if condition.shape[0] not in ((batch,) if condition.ndim == 1 else (1, batch)):
        raise ValueError(
            f"{name} holds {condition.shape[0]} indices for a batch of {batch} images: give one per image, or one "
            "context for all."
        )
    dtype = sample.dtype if condition.is_floating_point() else condition.dtype
    return condition.to(sample.device, dtype, non_blocking=True).expand(batch, *condition.shape[1:])
