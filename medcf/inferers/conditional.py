# SPDX-License-Identifier: Apache-2.0
"""Methods whose class comes from a class-conditional network: guidance, background, micro-batches."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import ndimage

from medcf.inferers.chain import ChainInferer
from medcf.inferers.checks import check_classes, check_numbers
from medcf.inferers.counterfactual import BatchState
from medcf.networks.denoiser import Denoiser, Network
from medcf.runtime.progress import Progress
from medcf.sampling import Chain, standard_noise
from medcf.sampling.memory import MemoryBudget, budget_bytes, check_budget, micro_batches, peak_bytes

__all__ = ["ConditionalInferer", "background"]

logger = logging.getLogger(__name__)


class ConditionalInferer(ChainInferer):
    """The common part of the methods in ControlCG's comparison; a subclass defines the edit (``_edit``).

    No gradients are computed; the classifier only judges. Network and classifier share class indices.

    Args:
        args: scheduler, classifier and target, see ``ChainInferer``.
        guidance_scale: s in s eps(x, c) - (s - 1) eps(x, null), as everywhere in medcf, MONAI and diffusers; 1 runs the
            conditional network only, without the null condition.
        guidance_w: the same in the paper's notation: w = s - 1 in ControlCG (eq. 5) and in Ho and Salimans (2022). Give
            only one of the two.
        null_class_labels: index of the null class.
        num_inference_steps: see ``ChainInferer``.
        strength: see there; 1 starts from pure noise instead of the noised image.
        keep_background: restore everything that is exactly -1 in the input and connected to its border, outside a
            skull-stripped brain. The published methods do not do this; they disregard differences outside the brain.
        subtract_reconstruction: run the chain a second time toward the class that the classifier predicts for the
            input, with the same noise, and return the input plus the difference of the two results. What both runs
            change is not due to the class and cancels; toward its own class an input stays unchanged. This is ours, not
            from a paper. It doubles the cost, except for shared work.
        memory_budget: gigabytes (10^9 bytes) for the activations of one network call; images that do not fit together
            run one after another. "auto" uses the GPU's free memory, None sets no limit. The first call is measured.
        options: see ``ChainInferer``.

    Raises:
        ValueError: if an option is unknown or out of range, or the network has no classes.
    """

    needs_gradients = False
    aliases: ClassVar[tuple[tuple[str, str], ...]] = (("guidance_scale", "guidance_w"),)

    def __init__(
        self,
        *args: Any,
        guidance_scale: float | None = None,
        guidance_w: float | None = None,
        null_class_labels: int | None = 2,
        num_inference_steps: int = 50,
        strength: float | Sequence[float] = 1.0,
        keep_background: bool = True,
        subtract_reconstruction: bool = False,
        memory_budget: MemoryBudget = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, num_inference_steps=num_inference_steps, strength=strength, **options)
        guidance_scale = _scale(guidance_scale, guidance_w)
        if guidance_scale != 1 and null_class_labels is None:
            raise ValueError(
                f"guidance_scale={guidance_scale:g} compares the target with the null class: give null_class_labels, "
                "or guidance_scale=1."
            )
        check_budget(memory_budget)
        self.guidance_scale = guidance_scale
        self.null_class_labels = null_class_labels
        self.keep_background = keep_background
        self.subtract_reconstruction = subtract_reconstruction
        self.memory_budget = memory_budget
        self._measured: tuple[Any, float] | None = None

    @abstractmethod
    def _edit(self, state: BatchState, chosen: list[int], number: int, network: Network, bar: Progress) -> torch.Tensor:
        """Return the result of a pass for the images ``chosen`` (N, C, *spatial), and count its network evaluations."""

    def _num_rows(self, state: BatchState, chosen: Sequence[int]) -> int:
        """Return the number of images stacked in the largest network call of a pass over the images ``chosen``."""
        return len(chosen) * (1 if self.guidance_scale == 1 else 2)

    def _probe(self, state: BatchState, chosen: list[int], network: Network) -> Callable[[], object]:
        """Return a function that makes the largest network call of a pass over ``chosen``, for measurement."""
        denoiser = self._denoiser(network, state.target[chosen])
        return lambda: denoiser(state.current[chosen], self.timesteps[0])

    def _iterate(self, state: BatchState, network: Network, bar: Progress) -> None:
        check_classes(network, type(self).__name__)
        self._denoiser(network, state.target)  # refuses classes that the network does not have
        super()._iterate(state, network, bar)

    def _run_pass(self, state: BatchState, indices: torch.Tensor, number: int, network: Network, bar: Progress) -> None:
        edits, pair = state, None
        stacked: Callable[[Sequence[int]], list[int]] = list
        if self.subtract_reconstruction:
            own = self._logits(state.original).argmax(1)
            pair = TargetAndOwnClass(state, own, self.guidance_scale, shared=number == 0)
            edits, stacked = pair.edits, pair.stacked
        groups = self._groups(edits, indices.tolist(), network, stacked)
        steps = self._num_steps() // self.num_iterations
        bar.total += (len(groups) - 1) * steps
        for chosen in groups:
            image = self._edit(edits, stacked(chosen), number, network, bar)
            index = torch.tensor(chosen, device=image.device)
            if pair is not None:
                image = state.current[index] + pair.difference(image, chosen)
            state.current[index] = self._finish(image, state.original[index])
        if pair is not None:
            state.evaluations += pair.evaluations()
        current = state.current[indices]
        state.confidence[indices], state.flipped[indices] = self._judge(current, state.target[indices])

    def _finish(self, image: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Return the output of a pass, in [-1, 1] and with the input's background."""
        image = image.clamp(-1, 1)
        return torch.where(background(original), original, image) if self.keep_background else image

    def _noisy(self, chain: Chain, generators: Sequence[torch.Generator]) -> torch.Tensor:
        if self.strengths[min(chain.number, len(self.strengths) - 1)] == 1:
            return standard_noise(chain.start, generators)
        return super()._noisy(chain, generators)

    def _denoiser(self, network: Network, labels: torch.Tensor, guidance_scale: float | None = None) -> Denoiser:
        """Return the plain denoiser toward the classes (N,) with this method's guidance scale, or another."""
        return Denoiser(
            network,
            self.scheduler,
            class_labels=labels,
            null_class_labels=self.null_class_labels,
            guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
        )

    def _groups(
        self, state: BatchState, indices: list[int], network: Network, stacked: Callable[[Sequence[int]], list[int]]
    ) -> list[list[int]]:
        """Split images into micro-batches that fit the budget; ``stacked`` returns the images to run."""
        device = state.current.device
        limit = budget_bytes(self.memory_budget, device)
        if limit is None:
            return [indices]
        row = self._bytes_per_row(state, stacked(indices[:1]), network)
        groups = micro_batches(indices, lambda chosen: row * self._num_rows(state, stacked(chosen)), limit)
        least = row * self._num_rows(state, stacked(indices[:1]))
        logger.info(
            "%s: %.3g GB per row; %d images in micro-batches of %s within %.3g GB",
            self.title,
            row / 1e9,
            len(indices),
            ", ".join(str(len(group)) for group in groups),
            limit / 1e9,
        )
        if least > limit:
            logger.warning(
                "%s: a single image takes about %.3g GB, above memory_budget of %.3g GB: run in 16 bits (amp), or on a "
                "coarser grid.",
                self.title,
                least / 1e9,
                limit / 1e9,
            )
        return groups

    def _bytes_per_row(self, state: BatchState, first: list[int], network: Network) -> float:
        device, shape = state.current.device, tuple(state.current.shape[1:])
        key = (id(network), shape, str(device), torch.is_autocast_enabled(device.type))
        if self._measured is None or self._measured[0] != key:
            peak = peak_bytes(self._probe(state, first, network), device)
            self._measured = (key, max(peak, 1) / self._num_rows(state, first))
        return self._measured[1]

    def _logits(self, image: torch.Tensor) -> torch.Tensor:
        if self.memory_budget is None or len(image) == 1:
            return super()._logits(image)
        return torch.cat([super(ConditionalInferer, self)._logits(one) for one in image.split(1)])


def _scale(guidance_scale: float | None, guidance_w: float | None) -> float:
    """Return s from s itself or from the paper's w = s - 1."""
    check_numbers(guidance_scale=guidance_scale, guidance_w=guidance_w)
    if guidance_scale is not None and guidance_w is not None:
        raise ValueError(
            f"guidance_scale={guidance_scale:g} and guidance_w={guidance_w:g} specify the same value twice "
            "(guidance_w = guidance_scale - 1): give one."
        )
    scale = (3.0 if guidance_scale is None else guidance_scale) if guidance_w is None else 1 + guidance_w
    if not 1 <= scale < math.inf:
        raise ValueError(f"guidance_scale={scale:g}: use 1 (no guidance) or more.")
    return float(scale)


def background(image: torch.Tensor) -> torch.Tensor:
    """Return the area outside the subject (B, 1, *spatial), bool: voxels of exactly -1 connected to the border.

    Black voxels inside, such as fluid, are not background.

    Args:
        image: (B, C, *spatial) in [-1, 1].
    """
    black = (image == -1).all(dim=1).cpu().numpy()
    outside = np.stack([one & ~ndimage.binary_fill_holes(~one) for one in black])
    return torch.from_numpy(outside)[:, None].to(image.device)


class TargetAndOwnClass:
    """A state of 2 B images: B run toward their targets, the other B (the same images) toward their own classes.

    Both have the same noise, because they have the same ids. Images with the same input and guidance scale, such as
    several targets of one input, share the second run; only the first of them runs it.

    Args:
        state: the B images.
        own: each image's own class (B,).
        guidance_scale: scale for all images, unless the state's extras specify it.
        shared: whether equal inputs start from equal images, as in the first pass.
    """

    def __init__(self, state: BatchState, own: torch.Tensor, guidance_scale: float, shared: bool) -> None:
        self.count = len(state.original)
        device = state.original.device
        self.edits = BatchState(
            _twice(state.original),
            torch.cat([state.target, own]),
            [*state.ids, *state.ids],
            state.confidence.repeat(2),
            state.unchanged.repeat(2),
        )
        self.edits.current = _twice(state.current)
        scales = torch.full((self.count,), guidance_scale, device=device)
        extras = {"source": torch.arange(self.count, device=device), "guidance_scale": scales} | state.extras
        self.edits.extras.update({name: values.repeat(2) for name, values in extras.items()})
        sources = extras["source"].tolist() if shared else range(self.count)
        self._keys = list(zip(sources, extras["guidance_scale"].tolist(), strict=True))

    def stacked(self, chosen: Sequence[int]) -> list[int]:
        """Return which of the 2 B images to run for the images ``chosen``."""
        return [*chosen, *(self.count + i for i in dict.fromkeys(self._first(chosen)))]

    def difference(self, image: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
        """Return the difference between the results for the targets and for the own classes (N, C, *spatial).

        Args:
            image: results for the images returned by ``stacked``.
            chosen: the N images.
        """
        first = self._first(chosen)
        place = {i: number for number, i in enumerate(dict.fromkeys(first))}
        own = torch.tensor([len(first) + place[i] for i in first], device=image.device)
        return image[: len(first)] - image[own]

    def evaluations(self) -> torch.Tensor:
        """Network evaluations per image (B,); a shared evaluation counts for the first image that uses it."""
        return self.edits.evaluations.reshape(2, -1).sum(0)

    def _first(self, chosen: Sequence[int]) -> list[int]:
        """Return, for each image, the first image with the same input and guidance scale."""
        first: dict[tuple[int, float], int] = {}
        return [first.setdefault(self._keys[i], i) for i in chosen]


def _twice(image: torch.Tensor) -> torch.Tensor:
    return image.repeat(2, *[1] * (image.ndim - 1))
