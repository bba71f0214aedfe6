# SPDX-License-Identifier: Apache-2.0
"""A common interface to denoising networks: noise, clean image and velocity from whatever the network predicts.

Conditions, their nulls, classifier-free guidance and attention injection are resolved here, in one stacked network
call, so methods need not know how a network was parameterized or conditioned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medcf.networks.attention_injection import AttentionInjection
from medcf.networks.class_token import memory_layout
from medcf.networks.condition import Condition, Conditions
from medcf.networks.stack import ReferenceCondition, Stack, plan_stack

if TYPE_CHECKING:
    from medcf.schedulers import Prediction, RespacedScheduler

__all__ = ["Denoiser", "Network", "References", "unwrap"]

#: A denoising network, called with the sample and, by keyword, timesteps and conditions.
Network = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class References:
    """Images whose tokens the samples read by attention injection.

    Attributes:
        noised: timestep to the M references noised to it (M, C, *spatial).
        source: for each sample, the index of the reference it reads.
        injection: injection into the network.
        condition: condition of a reference: that of the row that reads it ("same"), or "null".
    """

    noised: Callable[[int], Tensor]
    source: Sequence[int]
    injection: AttentionInjection
    condition: ReferenceCondition = "same"


class Denoiser:
    """A network, its scheduler and its condition, called as ``denoiser(sample, t)``.

    The network is called as ``network(sample, timesteps=..., context=..., class_labels=...)``; condition arguments that
    no factor has are not passed, so unconditional networks without them work as well. All rows, with condition, null
    and references, run in ONE call; see `medcf.networks.stack.plan_stack` for how guidance combines several factors.
    Learned variance channels are those of the fully conditional row. The combination is the same for noise, clean image
    and velocity and precedes any clipping. After the first call nothing waits for the device.

    Args:
        network: denoising network; its output has the channels of the sample, or twice as many with a learned variance.
        scheduler: provides ``convert(model_output, t, sample)``, which interprets the network's raw output at t.
        condition: what the samples are denoised toward: one factor, several, or none.
        references: images that the samples read by attention injection.
        inputs: further inputs of the network by keyword, one row per sample (B, ...): those of a sample are given to
            each of its rows, and to the reference that it reads.

    Raises:
        ValueError: if a class index is outside the network's embedding, or a network that is conditioned by classes or
            prompts gets none.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        scheduler: RespacedScheduler,
        condition: Conditions = (),
        references: References | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.network = network
        self.scheduler = scheduler
        self.factors = (condition,) if isinstance(condition, Condition) else tuple(condition)
        self.references = references
        self.inputs = dict(inputs or {})
        _check_classes(self.factors, getattr(unwrap(network), "num_class_embeds", None))
        if getattr(unwrap(network), "with_conditioning", False) and all(one.context is None for one in self.factors):
            raise ValueError(
                "The network takes a prompt (with_conditioning) and has none here: give context, its embedding of 'no "
                "prompt' for an unconditional model (null_context of a Conditioner)."
            )
        self._plan: _Plan | None = None
        self._calls = 0

    @property
    def num_function_evaluations(self) -> Tensor:
        """Network evaluations for each sample (B,) since the batch has its size; a shared row counts for the first."""
        return torch.zeros(1, dtype=torch.long) if self._plan is None else self._calls * self._plan.cost

    def __call__(self, sample: Tensor, t: int) -> Prediction:
        """Predict noise, clean image and velocity of a noisy batch.

        Args:
            sample: noisy images (B, C, *spatial) at step ``t``.
            t: timestep of the training schedule, a Python integer.

        Returns:
            The scheduler's ``Prediction``, in float32 even under autocast.
        """
        if self._plan is None or self._plan.batch != len(sample):
            self._plan, self._calls = _Plan(self.stack(len(sample)), sample, self._shown(len(sample))), 0
        plan, references = self._plan, self.references
        self._calls += 1
        stack = sample
        if plan.origin is not None:
            pool = sample if references is None else torch.cat([sample, references.noised(t).to(sample.dtype)])
            stack = pool[plan.origin].contiguous(memory_format=memory_layout(sample))
        timesteps = torch.full((len(stack),), t, device=sample.device, dtype=torch.long)
        injected: AbstractContextManager[Any] = nullcontext()
        if references is not None:
            injected = references.injection
            references.injection.reference = plan.reference
        with injected:
            output = self.network(stack, timesteps=timesteps, **plan.given)
        return self.scheduler.convert(plan.combined(output, sample.shape[1]), t, sample)

    def _shown(self, batch: int) -> dict[str, Tensor]:
        """Return the further inputs of the samples and of the references, which have those of their first reader."""
        for name, value in self.inputs.items():
            if len(value) != batch:
                raise ValueError(f"{name} has {len(value)} rows for a batch of {batch} images: give one per image.")
        if self.references is None or not self.inputs:
            return self.inputs
        source = list(self.references.source)
        readers = torch.tensor([*range(batch), *(source.index(one) for one in range(max(source) + 1))])
        return {name: value[readers.to(value.device)] for name, value in self.inputs.items()}

    def stack(self, batch: int) -> Stack:
        """Return the rows of a call for some number of samples."""
        references = self.references
        if references is None:
            return plan_stack(self.factors, batch)
        return plan_stack(self.factors, batch, sources=references.source, reference=references.condition)


class _Plan:
    """A stack's indices and conditions on the device of the samples."""

    def __init__(self, stack: Stack, sample: Tensor, inputs: Mapping[str, Tensor]) -> None:
        device, batch = sample.device, len(sample)
        self.cost = torch.tensor(stack.cost)
        self.reference = stack.reference
        self.origin = None if stack.origin == list(range(batch)) else torch.tensor(stack.origin, device=device)
        own = slice(None) if self.origin is None else self.origin
        self.given: dict[str, Tensor] = {name: value.to(device)[own] for name, value in inputs.items()}
        if stack.contexts is not None:
            context = torch.stack([one.to(device) for one in stack.contexts])
            self.given["context"] = context.to(sample.dtype) if context.is_floating_point() else context
        if stack.labels is not None:
            self.given["class_labels"] = torch.tensor(stack.labels, device=device)
        self.first, *self.rest = (torch.tensor(level, device=device) for level in stack.levels)
        self.batch = batch
        self.guided = any(level != stack.levels[-1] for level in stack.levels)
        options: Any = {"dtype": torch.promote_types(sample.dtype, torch.float32), "device": device}
        shape = (-1, *[1] * (sample.ndim - 1))
        self.scales = [torch.tensor(each, **options).reshape(shape) for each in stack.scales]

    def combined(self, output: Tensor, channels: int) -> Tensor:
        """Return the guided output of the samples; a learned variance, beyond ``channels``, is the condition's."""
        if not self.guided:
            return output[: self.batch] if self.origin is not None else output
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        below = output[self.first]
        mixed = below[:, :channels]
        for scale, level in zip(self.scales, self.rest, strict=True):
            above = output[level]
            mixed = mixed + scale * (above - below)[:, :channels]
            below = above
        return torch.cat([mixed, below[:, channels:]], dim=1)


def unwrap(network: Any) -> Any:
    """Return the network inside ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile``."""
    for name in ("module", "_orig_mod"):
        network = getattr(network, name, network)
    return network


def _check_classes(factors: Sequence[Condition], num_classes: int | None) -> None:
    """Compare the classes of the condition with the network's embedding."""
    if num_classes is None:
        return
    for factor in factors:
        for name, condition in (("labels", factor), ("null.labels", factor.null)):
            if condition is None or condition.labels is None:
                continue
            labels = torch.as_tensor(condition.labels)
            if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
                raise ValueError(
                    f"{name}={condition.labels!r} is outside the network's {num_classes} classes (num_class_embeds): "
                    f"use 0 to {num_classes - 1}."
                )
    if all(factor.labels is None and factor.context is None for factor in factors):
        raise ValueError(
            f"The network is class-conditional (num_class_embeds={num_classes}) and has no class here: give labels, "
            "its null class for an unconditional model."
        )
