# SPDX-License-Identifier: Apache-2.0
"""SDEdit toward a class: noise the image, denoise it as the target class (Meng et al. 2022, arXiv 2108.01073)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from medcf.guidance.regions import KnownNoise, KnownRegion
from medcf.inferers.chain import ChainInferer
from medcf.inferers.checks import check_classes, check_numbers
from medcf.inferers.counterfactual import BatchState
from medcf.networks.denoiser import Denoiser, Network
from medcf.registry import METHODS
from medcf.runtime.progress import Progress

__all__ = ["SDEditInferer"]


class SDEditInferer(ChainInferer):
    """Class-conditional denoising of a noised image with classifier-free guidance (Ho and Salimans 2022).

    No gradients are computed; the classifier only judges. The class comes from the class-conditional network, which
    shares class indices with the classifier. The noised image is the only tie to the input.

    Args:
        args: scheduler, classifier and target, see ``ChainInferer``.
        strength: fraction of the kept steps to noise and denoise; or one per pass.
        guidance_scale: weight of the target class against the null class; 1 runs only the conditional network, at half
            the cost.
        null_class_labels: index of the null class.
        region: where the image may change: a mask (1 or B, 1, *spatial), or a function from the inputs (B, C, *spatial)
            to one, such as a segmenter's result; None means everywhere. Pixels outside stay bit-identical.
        known_noise: noise of the part outside the region, "fresh" at each step or one map "shared" by all.
        options: see ``ChainInferer``.

    Raises:
        ValueError: if an option is out of range, or the network has no classes.
    """

    title = "SDEdit"
    needs_gradients = False

    def __init__(
        self,
        *args: Any,
        strength: float | Sequence[float] = 0.5,
        guidance_scale: float = 3.0,
        null_class_labels: int | None = None,
        region: torch.Tensor | Callable[[torch.Tensor], torch.Tensor] | None = None,
        known_noise: KnownNoise = "fresh",
        **options: Any,
    ) -> None:
        super().__init__(*args, strength=strength, **options)
        check_numbers(guidance_scale=guidance_scale)
        if guidance_scale != 1 and null_class_labels is None:
            raise ValueError(
                f"guidance_scale={guidance_scale:g} compares the target with the null class: give null_class_labels, "
                "or guidance_scale=1."
            )
        self.guidance_scale = guidance_scale
        self.null_class_labels = null_class_labels
        self.region = region
        self.known_noise: KnownNoise = known_noise

    def _iterate(self, state: BatchState, network: Network, bar: Progress) -> None:
        check_classes(network, "sdedit")
        super()._iterate(state, network, bar)

    def _run_pass(self, state: BatchState, indices: torch.Tensor, number: int, network: Network, bar: Progress) -> None:
        target = state.target[indices]
        denoiser = Denoiser(
            network,
            self.scheduler,
            class_labels=target,
            null_class_labels=self.null_class_labels,
            guidance_scale=self.guidance_scale,
        )
        chain = self._chain(state, indices, number, denoiser)
        mask = self._allowed(state.original)
        hooks = [] if mask is None else [KnownRegion(chain, mask[indices], noise=self.known_noise)]
        image = self._run_chain(chain, hooks, bar)
        state.current[indices] = image
        state.evaluations[indices] += denoiser.num_function_evaluations
        state.confidence[indices], state.flipped[indices] = self._judge(image, target)

    def _allowed(self, image: torch.Tensor) -> torch.Tensor | None:
        """Return where the images may change (B, 1, *spatial), bool."""
        if self.region is None:
            return None
        mask = self.region(image) if callable(self.region) else self.region
        mask = torch.as_tensor(mask, device=image.device).bool()
        if mask.ndim != image.ndim or mask.shape[2:] != image.shape[2:] or mask.shape[0] not in (1, len(image)):
            raise ValueError(f"region has shape {tuple(mask.shape)}: it must be (1 or B, 1, *spatial) like the images.")
        return mask.expand(len(image), *mask.shape[1:])


METHODS.add("sdedit", "Class-conditional denoising of the noised image (SDEdit)", SDEditInferer)
