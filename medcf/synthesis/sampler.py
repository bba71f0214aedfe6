# SPDX-License-Identifier: Apache-2.0
"""From a class or a prompt to images: no input image."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from medcf.guidance import NoisyClassifierGradient
from medcf.networks.condition import Condition
from medcf.networks.denoiser import Denoiser, Network
from medcf.runtime.frozen import frozen
from medcf.runtime.performance import autocast
from medcf.sampling import Hook, PixelSpace, Space, draw_samples, make_generators
from medcf.schedulers import DDIMInverseScheduler, RespacedScheduler

__all__ = ["Request", "Sample", "Sampler", "spread_requests"]


@dataclass(frozen=True)
class Request:
    """What an image is to show.

    Attributes:
        label: class index; None for a prompt that names no class.
        prompt: text, for a network that follows prompts.
    """

    label: int | None = None
    prompt: str | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """A generated image.

    Attributes:
        image: (C, *spatial) in [-1, 1].
        request: what was asked for.
        index: its number, which together with the seed of the sampler determines its noise.
    """

    image: Tensor
    request: Request
    index: int


class Sampler:
    """Draws images of a class or prompt from pure noise, with classifier-free guidance.

    An image depends on its request, its index and the seed, not on what is drawn beside it, except for rounding.

    Args:
        network: the diffusion model's network, with a ``text_encoder`` if it follows prompts
            (`medcf.networks.PromptUNet`), or with class labels.
        scheduler: from ``medcf.schedulers``, any solver; copied, not modified.
        shape: shape (C, *spatial) of a sample, in latents if the space has them.
        space: space of the network; the pixels by default.
        class_prompts: one prompt per class, or several that its images take in turn; empty for a network with labels.
        num_classes: number of classes of a network with labels.
        null_class_labels: class index that was trained as "no class".
        guidance_scale: s in null + s (condition - null); 1 runs the condition alone.
        guide: classifier of noisy images (`medcf.guidance.NoisyClassifierGradient`), for a network in pixels; None does
            without.
        classifier_scale: how strongly it pulls.
        num_inference_steps: steps of the solver.
        seed: seed of all noise.
        batch_size: images per call; with guidance the network runs on twice as many.
        amp: autocast; "auto" where the processor computes in half precision.

    Raises:
        ValueError: if the guidance needs a null that the network has not, or there is neither a class nor a prompt.
    """

    def __init__(
        self,
        network: Network,
        scheduler: RespacedScheduler,
        shape: Sequence[int],
        *,
        space: Space | None = None,
        class_prompts: Sequence[str | Sequence[str]] = (),
        num_classes: int | None = None,
        null_class_labels: int | None = None,
        guidance_scale: float = 3.0,
        guide: Callable[[Tensor, Tensor], Tensor] | None = None,
        classifier_scale: float = 1.0,
        num_inference_steps: int = 20,
        seed: int = 0,
        batch_size: int = 16,
        amp: bool | Literal["auto"] = "auto",
    ) -> None:
        self.network: Any = network
        self.space: Space = PixelSpace() if space is None else space
        self.scheduler = copy.deepcopy(scheduler)
        self.scheduler.clip_sample = self.space.range is not None  # as in `medcf.inferers.Method`
        self.scheduler.clip_sample_values = self.space.range or (-1.0, 1.0)
        self.shape = tuple(shape)
        self.class_prompts = [[one] if isinstance(one, str) else list(one) for one in class_prompts]
        self.num_classes = len(self.class_prompts) if num_classes is None else num_classes
        self.null_class_labels = null_class_labels
        self.guidance_scale = float(guidance_scale)
        self.guide, self.classifier_scale = guide, float(classifier_scale)
        self.num_inference_steps = whole("num_inference_steps", num_inference_steps)
        self.seed, self.batch_size, self.amp = int(seed), whole("batch_size", batch_size), amp
        if guide is not None and self.space.range is None:
            raise ValueError("A guide sees noisy pixels, and this network works in latents: leave the guide out.")
        if not self.class_prompts and not self.num_classes:
            raise ValueError("A sampler needs class_prompts, or num_classes of a network that knows classes.")
        if not 1 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale={guidance_scale:g}: use 1 or more.")
        if isinstance(scheduler, DDIMInverseScheduler):
            raise ValueError("This solver goes from an image to noise: choose another one, such as 'ddim'.")
        self.scheduler.set_timesteps(self.num_inference_steps)  # refuses an impossible number before any work
        if self.guidance_scale > 1 and not self.by_prompt and null_class_labels is None:
            raise ValueError(f"guidance_scale={guidance_scale:g} compares with no class: give null_class_labels, or 1.")

    @property
    def by_prompt(self) -> bool:
        """Whether the network follows prompts."""
        return bool(self.class_prompts)

    def request(self, condition: int | str, number: int = 0) -> Request:
        """Return a class, by index, or a prompt, as a request.

        Args:
            condition: class index, or a prompt.
            number: which of several prompts of the class.

        Raises:
            ValueError: if there is no such class, or the network follows no prompts.
        """
        if isinstance(condition, str):
            if not self.by_prompt:
                raise ValueError(f"{condition!r} is a prompt, but the network knows classes: give an index, from 0.")
            return Request(prompt=condition)
        if not 0 <= condition < self.num_classes:
            raise ValueError(f"Class {condition} does not exist: give 0 to {self.num_classes - 1}.")
        prompts = self.class_prompts[condition] if self.by_prompt else [None]
        return Request(condition, prompts[number % len(prompts)])

    def __call__(self, condition: int | str, count: int, start: int = 0) -> Iterator[Sample]:
        """Draw images of one class or prompt.

        Args:
            condition: class index, or a prompt.
            count: number of images.
            start: index of the first, so that later calls draw others.
        """
        for first in range(start, start + count, self.batch_size):
            indices = range(first, min(first + self.batch_size, start + count))
            requests = [self.request(condition, index) for index in indices]
            for image, request, index in zip(self.draw(requests, indices), requests, indices, strict=True):
                yield Sample(image, request, index)

    @torch.no_grad()
    def draw(
        self, requests: Sequence[Request], indices: Sequence[int], progress: Callable[[int], object] | None = None
    ) -> Tensor:
        """Draw one image per request, in batches.

        Args:
            requests: what each image shows.
            indices: number of each image.
            progress: called after each batch with its number of images.

        Returns:
            Images (N, C, *spatial) in [-1, 1], on the CPU.
        """
        device = next((weight.device for weight in self.network.parameters()), torch.device("cpu"))
        parts = []
        with frozen(self.network, *self.space.networks), autocast(device, enabled=self.amp):
            for first in range(0, len(requests), self.batch_size):
                rows = slice(first, first + self.batch_size)
                generators = make_generators(self.seed, list(indices[rows]), device, ("synthesis",))
                denoiser = Denoiser(self.network, self.scheduler, self._condition(requests[rows], device))
                hooks = self._hooks(requests[rows], device)
                drawn = draw_samples(denoiser, self.scheduler, self.shape, self.num_inference_steps, generators, hooks)
                parts.append(self.space.decode(drawn).float().clamp(-1, 1).cpu())
                if progress is not None:
                    progress(len(drawn))
        return torch.cat(parts)

    def _hooks(self, requests: Sequence[Request], device: torch.device) -> list[Hook]:
        """Return the classifier's guidance of a batch."""
        if self.guide is None:
            return []
        if any(request.label is None for request in requests):
            raise ValueError("The guide is a classifier and knows classes, no prompts: give classes, or no guide.")
        labels = torch.tensor([int(request.label or 0) for request in requests], device=device)
        return [NoisyClassifierGradient(self.guide, labels, self.classifier_scale)]

    def _condition(self, requests: Sequence[Request], device: torch.device) -> Condition:
        """Return the conditions of a batch, with their null."""
        if self.by_prompt:
            prompts = [request.prompt or "" for request in requests]
            embed = self.network.text_encoder.embed
            null = Condition(context=embed([""])) if self.guidance_scale > 1 else None
            return Condition(context=embed(prompts), null=null, scale=self.guidance_scale)
        labels = torch.tensor([int(request.label or 0) for request in requests], device=device)
        null = Condition(labels=self.null_class_labels) if self.guidance_scale > 1 else None
        return Condition(labels=labels, null=null, scale=self.guidance_scale)


def spread_requests(
    sampler: Sampler,
    classes: int | str | Sequence[int | str] | None,
    count: int | Sequence[int],
    *,
    prompt: str | None = None,
    class_names: Sequence[str] = (),
) -> list[Request]:
    """List requests for several classes, or for a prompt, in turn, so that every shard holds all of them.

    Args:
        sampler: draws them.
        classes: indices or names; None means all.
        count: images of each, or one number for each.
        prompt: text in place of classes.
        class_names: names of the classes.

    Raises:
        ValueError: if a class does not exist, there are not as many numbers as classes, or there is nothing to draw.
    """
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"prompt={prompt!r} is no text: give classes by --classes.")
    if class_names and len(class_names) != sampler.num_classes:
        raise ValueError(
            f"class_names has {len(class_names)} names for {sampler.num_classes} classes or class_prompts: give both."
        )
    named = range(sampler.num_classes) if classes is None else [classes] if isinstance(classes, int | str) else classes
    conditions: list[int | str] = [_index(each, class_names) for each in named] if prompt is None else [prompt]
    each = list(count) if isinstance(count, list | tuple) else [count] * len(conditions)
    counts = [whole("count", number, least=0) for number in each]
    if len(counts) != len(conditions):
        raise ValueError(f"count has {len(counts)} numbers for {len(conditions)} conditions: give one for each.")
    if not conditions or not sum(counts):
        raise ValueError(f"count={count}: there is nothing to draw; give each condition at least one image.")
    return [
        sampler.request(condition, number)
        for number in range(max(counts))
        for condition, wanted in zip(conditions, counts, strict=True)
        if number < wanted
    ]


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number.

    Raises:
        ValueError: if the value is none, or too small.
    """
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = least - 1
    if number != value or number < least:
        raise ValueError(f"{name}={value}: use a whole number of at least {least}.")
    return number


def _index(condition: Any, names: Sequence[str]) -> int:
    """Return the index of a class."""
    if isinstance(condition, str) and condition in names:
        return list(names).index(condition)
    if isinstance(condition, bool) or not isinstance(condition, int):
        known = f" or one of {', '.join(map(repr, names))}" if names else ""
        raise ValueError(f"classes: {condition!r} is no class: give an index{known}; a prompt by --prompt.")
    return condition
