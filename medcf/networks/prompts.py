# SPDX-License-Identifier: Apache-2.0
"""Prompts as conditions: one for each class, and one's own for all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from medcf.networks.condition import Condition, Conditioner

__all__ = ["PromptEncoder", "prompt_conditioner"]


class PromptEncoder(Protocol):
    """What is needed of a text encoder; `medcf.networks.text_encoder.TextEncoder` has it."""

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Return prompts as (B, tokens, features), all with the same number of tokens."""


def prompt_conditioner(
    text_encoder: PromptEncoder,
    class_prompts: Sequence[str],
    prompt: str | None = None,
    own_prompt: str | None = None,
    *,
    null_prompt: str = "",
    null_class_labels: int | None = None,
    by_class: bool = False,
    held: Sequence[Condition] = (),
) -> Conditioner:
    """Embed prompts, once, for any method.

    Args:
        text_encoder: the text encoder that the diffusion model was trained with.
        class_prompts: the prompt of each class of the classifier; a target class selects its own.
        prompt: takes the place of the target's prompt, for all images.
        own_prompt: describes the inputs, where a method needs that (own-class subtraction, the source of an inversion),
            for all images; None takes the prompt of the class that the classifier predicts. To describe what the
            classifier does not know, such as the true side of a finding, would let the method know the truth.
        null_prompt: the prompt of an unconditional model, as in the training.
        null_class_labels: see `Conditioner`.
        by_class: whether the network takes class labels, too.
        held: see `Conditioner`.

    Raises:
        ValueError: if there is no prompt for any class, or one is not text.
    """
    given = [prompt, own_prompt]
    texts = [null_prompt, *class_prompts, *(text for text in given if text is not None)]
    if isinstance(class_prompts, str) or not len(class_prompts):
        raise ValueError(f"class_prompts={class_prompts!r}: give a list, one prompt for each class of the classifier.")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is not a prompt: give text, in quotation marks.")
    null, *embedded = text_encoder.embed(texts).split(1)
    more = iter(embedded[len(class_prompts) :])
    target, own = (None if text is None else next(more) for text in given)
    contexts = text_encoder.embed(list(class_prompts))
    return Conditioner(null_class_labels, contexts, null, by_class, held, prompt=target, own_prompt=own)
