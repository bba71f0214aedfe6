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
from medcf.inferers.counterfactual import Iterates
from medcf.networks.denoiser import Denoiser
from medcf.sampling import Chain, standard_noise
from medcf.sampling.memory import MemoryBudget, budget_bytes, check_budget, micro_batches, peak_bytes

__all__ = ["ConditionalInferer", "background"]

logger = logging.getLogger(__name__)


class ConditionalInferer(ChainInferer):
    """What the methods of ControlCG's comparison share; a subclass says what becomes of some images (``_edit``).

    No gradient is taken and the classifier only judges. The network's class indices are the classifier's.

    Args:
        args: scheduler, classifier and target, as ``ChainInferer`` takes them.
        guidance_scale: s of s eps(x, c) - (s - 1) eps(x, null), as everywhere in medcf, MONAI and diffusers; 1 runs the
            conditional network alone and leaves the null condition out.
        guidance_w: the same by the paper's name and count: w = s - 1 of ControlCG (eq. 5) and of Ho and Salimans
            (2022). Give one of the two.
        null_class_labels: index of the null class.
        num_inference_steps: see ``ChainInferer``.
        strength: see there; 1 starts from pure noise instead of the noised image.
        keep_background: put back what is exactly -1 in the input and connected to its border, outside a skull-stripped
            brain. The methods do not do so themselves, they disregard differences outside the brain.
        subtract_reconstruction: run the chain a second time towards the class that the classifier sees in the input,
            with the same noise, and return the input plus the difference of the two. What a method does to every image,
            whatever the class, cancels; towards its own class an input stays as it is. Ours, in no paper; it costs the
            same again, but for what both share.
        memory_budget: gigabytes (10^9 bytes) that the activations of one forward may take; more images than fit run
            one after another. "auto" is what the GPU has free, None sets no limit. The first forward is measured.
        options: see ``ChainInferer``.

    Raises:
        ValueError: an option that is unknown or out of range, or a network without classes.
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
    def _edit(self, state: Iterates, chosen: list[int], number: int, network: Any, bar: Any) -> torch.Tensor:
        """Return what a pass makes of the images ``chosen`` (N, C, *spatial), and count its forwards."""

    def _num_rows(self, state: Iterates, chosen: Sequence[int]) -> int:
        """Return how many images the largest forward of a pass over the images ``chosen`` stacks."""
        return len(chosen) * (1 if self.guidance_scale == 1 else 2)

    def _probe(self, state: Iterates, chosen: list[int], network: Any) -> Callable[[], Any]:
        """Return a call of the largest forward of a pass over the images ``chosen``, to be measured."""
        denoiser = self._denoiser(network, state.target[chosen])
        return lambda: denoiser(state.current[chosen], self.timesteps[0])

    def _iterate(self, state: Iterates, network: Any, bar: Any) -> None:
        check_classes(network, type(self).__name__)
        self._denoiser(network, state.target)  # refuses classes that the network does not know
        super()._iterate(state, network, bar)

    def _run_pass(self, state: Iterates, indices: torch.Tensor, number: int, network: Any, bar: Any) -> None:
        edits, pair = state, None
        stacked: Callable[[Sequence[int]], list[int]] = list
        if self.subtract_reconstruction:
            own = self._logits(state.original).argmax(1)
            pair = BesideOwnClass(state, own, self.guidance_scale, shared=number == 0)
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

    def _denoiser(self, network: Any, labels: torch.Tensor, guidance_scale: float | None = None) -> Denoiser:
        """Return the plain denoiser towards the classes (N,) with this method's guidance scale, or another."""
        return Denoiser(
            network,
            self.scheduler,
            class_labels=labels,
            null_class_labels=self.null_class_labels,
            guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
        )

    def _groups(
        self, state: Iterates, indices: list[int], network: Any, stacked: Callable[[Sequence[int]], list[int]]
    ) -> list[list[int]]:
        """Split images into micro-batches that fit the budget; ``stacked`` names the images that run for some."""
        device = state.current.device
        limit = budget_bytes(self.memory_budget, device)
        if limit is None:
            return [indices]
        row = self._bytes_per_row(state, stacked(indices[:1]), network)
        groups = micro_batches(indices, lambda chosen: row * self._num_rows(state, stacked(chosen)), limit)
        least = row * self._num_rows(state, stacked(indices[:1]))
        logger.info(
            "%s: %.3g GB a row; %d images in micro-batches of %s within %.3g GB",
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

    def _bytes_per_row(self, state: Iterates, first: list[int], network: Any) -> float:
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
            f"guidance_scale={guidance_scale:g} and guidance_w={guidance_w:g} say the same in two ways "
            "(guidance_w = guidance_scale - 1): give one."
        )
    scale = (3.0 if guidance_scale is None else guidance_scale) if guidance_w is None else 1 + guidance_w
    if not 1 <= scale < math.inf:
        raise ValueError(f"guidance_scale={scale:g}: use 1 for no guidance, or more.")
    return float(scale)


def background(image: torch.Tensor) -> torch.Tensor:
    """Return what lies outside the subject (B, 1, *spatial), bool: voxels of exactly -1 that reach the border.

    Black voxels inside, fluid for example, are not background.

    Args:
        image: (B, C, *spatial) in [-1, 1].
    """
    black = (image == -1).all(dim=1).cpu().numpy()
    outside = np.stack([one & ~ndimage.binary_fill_holes(~one) for one in black])
    return torch.from_numpy(outside)[:, None].to(image.device)


class BesideOwnClass:
    """A state of 2 B images: B towards their targets, and the same B, from B on, towards their own classes.

    Both have the same noise, because they have the same ids. Images that share input and guidance scale, as targets of
    one input do, share the second; only the first of them runs.

    Args:
        state: the B images.
        own: class that each is of (B,).
        guidance_scale: of all images, where the state's extras do not say otherwise.
        shared: whether equal inputs start from equal images, as they do in the first pass.
    """

    def __init__(self, state: Iterates, own: torch.Tensor, guidance_scale: float, shared: bool) -> None:
        self.count = len(state.original)
        device = state.original.device
        self.edits = Iterates(
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
        """Return which of the 2 B images run for the images ``chosen``."""
        return [*chosen, *(self.count + i for i in dict.fromkeys(self._first(chosen)))]

    def difference(self, image: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
        """Return what the targets differ by from the own classes (N, C, *spatial).

        Args:
            image: what became of the images that ``stacked`` names.
            chosen: the N images.
        """
        first = self._first(chosen)
        place = {i: number for number, i in enumerate(dict.fromkeys(first))}
        own = torch.tensor([len(first) + place[i] for i in first], device=image.device)
        return image[: len(first)] - image[own]

    def evaluations(self) -> torch.Tensor:
        """Return the forwards of a row for each of the B images; shared ones count for the first."""
        return self.edits.evaluations.reshape(2, -1).sum(0)

    def _first(self, chosen: Sequence[int]) -> list[int]:
        """Return for each of the images the first of them that has the same input and guidance scale."""
        first: dict[tuple[int, float], int] = {}
        return [first.setdefault(self._keys[i], i) for i in chosen]


def _twice(image: torch.Tensor) -> torch.Tensor:
    return image.repeat(2, *[1] * (image.ndim - 1))
