# SPDX-License-Identifier: Apache-2.0
"""SDEdit toward a class: noise the image, denoise it as the target class (Meng et al. 2022, arXiv 2108.01073)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medcf.guidance.regions import KnownNoise, KnownRegion
from medcf.inferers.conditional import edit
from medcf.inferers.method import Method
from medcf.inferers.options import EditOptions, StrengthOptions
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook

__all__ = ["SDEditInferer", "SDEditOptions"]


@dataclass(frozen=True, kw_only=True)
class SDEditOptions(EditOptions, StrengthOptions):
    """Options of SDEdit.

    Attributes:
        strength: fraction of the kept steps to noise and denoise; or one per pass.
        known_noise: noise of the part outside the region, "fresh" at each step or one map "shared" by all.
    """

    num_inference_steps: int = 400
    strength: float | Sequence[float] = 0.5
    known_noise: KnownNoise = "fresh"
    keep_background: bool = False
    null_class_labels: int | None = None


class SDEditInferer(Method):
    """Class-conditional denoising of a noised image with classifier-free guidance (Ho and Salimans 2022).

    No gradients are computed; the classifier only judges. The class comes from the class-conditional network, which
    shares class indices with the classifier. The noised image is the only tie to the input.
    """

    title = "SDEdit"
    Options = SDEditOptions
    needs_gradients = False
    run_pass = edit

    def kept(self, chain: Chain) -> list[Hook]:
        """Return the hook that keeps what lies outside the region."""
        return [] if chain.mask is None else [KnownRegion(chain, chain.mask, noise=self.options.known_noise)]


METHODS.add("sdedit", "Class-conditional denoising of the noised image (SDEdit)", SDEditInferer)
