# SPDX-License-Identifier: Apache-2.0
"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024, arXiv 2304.06140), as RadEdit uses it."""

from __future__ import annotations

from torch import Tensor

from medcf.inferers.conditional import edit
from medcf.inferers.ddim_inversion import check_source, source_denoiser
from medcf.inferers.method import Method
from medcf.inferers.passes import Pass
from medcf.inferers.residuals import ResidualOptions, follow
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook, noised
from medcf.schedulers import RespacedScheduler

__all__ = ["DDPMInversionInferer"]


class DDPMInversionInferer(Method):
    """Noise the input to every step INDEPENDENTLY (eq. 6), and keep what each step adds to its mean (eq. 5).

    Independent noise makes neighboring samples differ more than along a chain, so that the kept noise has a larger
    variance and binds the result to the input. The residual of the last step, where nothing is drawn, is kept, too.
    """

    title = "edit-friendly inversion"
    Options = ResidualOptions
    needs_gradients = False
    run_pass = edit

    def prepared(self, scheduler: RespacedScheduler) -> RespacedScheduler:
        """Return the scheduler with the method's steps."""
        check_source(self)
        return super().prepared(scheduler)

    def num_steps(self) -> int:
        """Return the number of steps back and forth."""
        return 2 * super().num_steps()

    def kept(self, chain: Chain) -> list[Hook]:
        """Return no hook: what lies outside the region follows the path, see `start`."""
        return []

    def start(self, run: Pass, index: Tensor, chain: Chain) -> tuple[Tensor | None, list[Hook]]:
        """Return the start of the path, and its residuals."""
        source = source_denoiser(run, index, self.options.source_guidance_scale)
        generators = chain.generators("pass")
        path = [noised(self.scheduler, chain.start, t, generators) for t in chain.timesteps]
        return follow([*path, chain.start], chain, source, run, index)


METHODS.add("ddpm_inversion", "Edit-friendly DDPM inversion: the noise of each step is kept", DDPMInversionInferer)
