# SPDX-License-Identifier: Apache-2.0
"""What a sample is denoised toward: a class, a prompt, or several of them with a guidance scale each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Condition", "Conditioner", "Conditions"]


@dataclass(frozen=True, eq=False)
class Condition:
    """One factor that steers a denoiser: a class, a prompt's context, or both, guided together.

    Attributes:
        labels: class index for the whole batch, or one per sample (B,).
        context: cross-attention context (B, tokens, features), or (1, tokens, features) for the whole batch.
        null: what the network was trained with in place of ``labels`` and ``context``; guidance compares with it.
        scale: s in null + s (condition - null), for all samples or one each; 1 runs the condition only. This is the
            scale of MONAI and diffusers, 1 + w in Ho and Salimans (2022). A factor with scale 1 beside another is held.
    """

    labels: int | Tensor | None = None
    context: Tensor | None = None
    null: Condition | None = None
    scale: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        """Refuse labels that are not class indices, and guidance without its null."""
        if self.labels is not None:
            tensor = torch.as_tensor(self.labels)
            if tensor.is_floating_point() or tensor.ndim > 1:
                raise ValueError(f"labels must be a class index or a tensor (B,) of them, got {self.labels!r}.")
        if self.null is not None and self.null.context is not None and len(self.null.context) != 1:
            raise ValueError(
                f"null.context has {len(self.null.context)} rows, but all samples have one null: give (1, tokens, "
                "features)."
            )
        if not self.guided:
            return
        if self.labels is None and self.context is None:
            raise ValueError(
                f"scale={self.scale} needs a condition to guide toward: give labels or context, or leave it at 1."
            )
        for name in ("labels", "context"):
            if getattr(self, name) is not None and getattr(self.null, name, None) is None:
                raise ValueError(f"scale={self.scale} compares {name} with the null: give null.{name}, or scale 1.")

    @property
    def guided(self) -> bool:
        """Whether any sample is compared with the null."""
        return any(scale != 1 for scale in self.scales(1))

    @property
    def is_per_sample(self) -> bool:
        """Whether samples have labels, contexts or scales of their own."""
        labels = isinstance(self.labels, Tensor) and self.labels.ndim > 0
        return labels or (self.context is not None and len(self.context) > 1) or not isinstance(self.scale, int | float)

    def rows(self, index: Tensor) -> Condition:
        """Return the condition of some samples (N,) of the batch."""
        labels = self.labels[index] if isinstance(self.labels, Tensor) and self.labels.ndim else self.labels
        context = self.context if self.context is None or len(self.context) == 1 else self.context[index]
        scale = self.scale if isinstance(self.scale, int | float) else [self.scale[i] for i in index.tolist()]
        null = None if self.null is None else self.null.rows(index)
        return replace(self, labels=labels, context=context, null=null, scale=scale)

    def scales(self, batch: int) -> list[float]:
        """Return the scale of each sample."""
        return [float(self.scale)] * batch if isinstance(self.scale, int | float) else [float(s) for s in self.scale]

    def classes(self, batch: int) -> list[int] | None:
        """Return the class of each sample, or None if the condition has no class.

        Raises:
            ValueError: if there are not as many classes as samples.
        """
        if self.labels is None:
            return None
        known = torch.as_tensor(self.labels).reshape(-1).tolist()
        if isinstance(self.labels, Tensor) and self.labels.ndim and len(known) != batch:
            raise ValueError(f"labels holds {len(known)} indices for a batch of {batch} images: give one per image.")
        return [int(label) for label in (known if len(known) == batch else known * batch)]

    def context_of(self, sample: int) -> Tensor | None:
        """Return the context (tokens, features) of one sample."""
        return None if self.context is None else self.context[sample if len(self.context) > 1 else 0]


#: One factor, or several in the order in which they are guided; none for an unconditional network.
Conditions = Condition | Sequence[Condition]


@dataclass(frozen=True, eq=False)
class Conditioner:
    """Turns target classes into conditions, by the classes of the network, by one prompt per class, or by both.

    Args:
        null_class_labels: index of the null class of the network; None for a network without one.
        contexts: (K, tokens, features), the embedded prompt of each class; None conditions by class only.
        null_context: (1, tokens, features), the embedding of "no prompt".
        by_class: whether the network takes class labels.
        held: further factors, which all classes share: their scale is their own, 1 to hold them.
        prompt: (1, tokens, features), takes the place of the target's prompt, whatever class that is.
        own_prompt: (1, tokens, features), takes the place of the own class's prompt where inputs are described.

    Raises:
        ValueError: if there is neither a class nor a prompt, or the prompts and "no prompt" differ in their shape.
    """

    null_class_labels: int | None = None
    contexts: Tensor | None = None
    null_context: Tensor | None = None
    by_class: bool = True
    held: Sequence[Condition] = ()
    prompt: Tensor | None = None
    own_prompt: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse prompts that cannot share a call of the network."""
        if self.by_class and any(one.labels is not None for one in self.held):
            raise ValueError("held has labels, but the network takes one class per image, the target's: hold contexts.")
        if not self.by_class and self.contexts is None:
            raise ValueError("by_class=False leaves nothing to condition on: give contexts, one prompt per class.")
        singles = ("null_context", "prompt", "own_prompt")
        given = {name: getattr(self, name) for name in ("contexts", *singles)}
        shapes = {name: tuple(one.shape) for name, one in given.items() if one is not None}
        first = next(iter(shapes.values()), ())
        if any(
            len(shape) != 3 or shape[1:] != first[1:] or (name in singles and shape[0] != 1)
            for name, shape in shapes.items()
        ):
            raise ValueError(
                f"{' and '.join(shapes)} have shapes {' and '.join(map(str, shapes.values()))}: they must be (K, "
                "tokens, features) and (1, tokens, features), padded to the same tokens."
            )
        if self.contexts is None and (self.prompt is not None or self.own_prompt is not None):
            raise ValueError("prompt and own_prompt take the place of a class's: give contexts, one prompt per class.")

    def __call__(
        self,
        target: Tensor,
        scale: float | Sequence[float] = 1.0,
        index: Tensor | None = None,
        own: Tensor | None = None,
    ) -> list[Condition]:
        """Return the factors for target classes with the guidance scale.

        Args:
            target: class of each sample (B,).
            scale: guidance scale, or one per sample.
            index: which image of the caller's each sample is (B,), for ``held``.
            own: samples (B,), bool, whose class describes the input instead of what is asked for; None means none.

        Raises:
            ValueError: if a class has no prompt.
        """
        given: dict[str, Any] = {"labels": target if self.by_class else None}
        if self.contexts is not None:
            given["context"] = self._prompts(
                self.contexts, target, torch.zeros_like(target).bool() if own is None else own
            )
        return [*self._held(index), Condition(**given, null=self.null(), scale=scale)]

    def _prompts(self, contexts: Tensor, target: Tensor, own: Tensor) -> Tensor:
        """Return the prompt of each sample (B, tokens, features): its class's, or the one in its place."""
        found = contexts.to(target.device)[target.clamp(max=len(contexts) - 1)]
        lacking = target >= len(contexts)
        for prompt, rows in ((self.prompt, ~own), (self.own_prompt, own)):
            if prompt is not None:
                found = torch.where(rows[:, None, None], prompt.to(found), found)
                lacking = lacking & ~rows
        if bool(lacking.any()):
            raise ValueError(f"Class {int(target[lacking].max())} has no prompt: contexts holds {len(contexts)}.")
        return found

    def _held(self, index: Tensor | None) -> list[Condition]:
        """Return the shared factors of the images ``index``."""
        return list(self.held) if index is None else [one.rows(index) for one in self.held]

    def unconditional(self, index: Tensor | None = None) -> list[Condition]:
        """Return the factors without any class."""
        null = self.null()
        return [*self._held(index), *([] if null is None else [null])]

    def null(self) -> Condition | None:
        """Return the null condition, None if there is none."""
        if self.null_class_labels is None and self.null_context is None:
            return None
        return Condition(labels=self.null_class_labels if self.by_class else None, context=self.null_context)
