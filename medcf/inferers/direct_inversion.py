# SPDX-License-Identifier: Apache-2.0
"""Direct Inversion (Ju et al. 2024, arXiv 2310.01506): DDIM inversion whose error is put back at every step."""

from __future__ import annotations

from torch import Tensor

from medcf.inferers.conditional import edit
from medcf.inferers.ddim_inversion import check_source, source_denoiser
from medcf.inferers.method import Method
from medcf.inferers.passes import Pass
from medcf.inferers.residuals import ResidualOptions, follow
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook
from medcf.schedulers import DDIMInverseScheduler, RespacedDDIMScheduler, RespacedScheduler

__all__ = ["DirectInversionInferer"]


class DirectInversionInferer(Method):
    """Walk DDIM up under the source condition; on the way down add what the source would miss (algorithm 1).

    No noise is drawn. The paper puts the source branch right and couples the target to it by attention; here the target
    adds the same residuals itself. Of the scheduler only its noise schedule is used.
    """

    title = "Direct Inversion"
    Options = ResidualOptions
    needs_gradients = False
    run_pass = edit

    def prepared(self, scheduler: RespacedScheduler) -> RespacedScheduler:
        """Return DDIM with the scheduler's noise schedule."""
        check_source(self)
        solver = super().prepared(RespacedDDIMScheduler().copy_schedule(scheduler))
        self.inverse = DDIMInverseScheduler().copy_schedule(solver)
        return solver

    def num_steps(self) -> int:
        """Return the number of steps up, down by the source, and down."""
        return 3 * super().num_steps()

    def kept(self, chain: Chain) -> list[Hook]:
        """Return no hook: what lies outside the region follows the path, see `start`."""
        return []

    def start(self, run: Pass, index: Tensor, chain: Chain) -> tuple[Tensor | None, list[Hook]]:
        """Return the end of the way up, and the residuals of the way down."""
        source = source_denoiser(run, index, self.options.source_guidance_scale)
        self.inverse.keep(chain.timesteps[::-1])
        path = [chain.start]
        for t in self.inverse.kept:
            path.append(self.inverse.posterior(source(path[-1], t), t, path[-1]).mean.to(chain.start.dtype))
            run.bar.update(1)
        return follow(path[::-1], chain, source, run, index)


METHODS.add("direct_inversion", "DDIM inversion with its error put back at every step", DirectInversionInferer)
