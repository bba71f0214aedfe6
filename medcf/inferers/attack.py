# SPDX-License-Identifier: Apache-2.0
"""A control: projected gradient steps on the pixels, which flip the classifier without changing anatomy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from medcf.inferers.base import CounterfactualInferer
from medcf.inferers.checks import check_numbers
from medcf.inferers.counterfactual import BatchState
from medcf.networks.denoiser import Network
from medcf.registry import METHODS
from medcf.runtime.progress import Progress

__all__ = ["AttackInferer"]


class AttackInferer(CounterfactualInferer):
    """Targeted projected gradient descent in the L-infinity ball (PGD; Madry et al. 2018, arXiv 1706.06083, sec. 2.1).

    Each image moves by ``step_size`` along the sign of the gradient of the target's cross-entropy until the classifier
    predicts the target; no diffusion model is involved. A metric that cannot tell this from a counterfactual measures
    nothing but the classifier.

    Args:
        args: classifier and target, see ``CounterfactualInferer``.
        epsilon: largest change per pixel, in units of the image's range [-1, 1].
        step_size: change per pixel and step; None uses an eighth of epsilon.
        num_steps: maximum number of steps.
        options: see ``CounterfactualInferer``, also for errors.
    """

    title = "gradient attack"
    needs_network = False

    def __init__(
        self,
        *args: Any,
        epsilon: float = 0.1,
        step_size: float | None = None,
        num_steps: int = 40,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        check_numbers(epsilon=epsilon, step_size=step_size)
        check_numbers(num_steps=num_steps, whole=True)
        step_size = epsilon / 8 if step_size is None else step_size
        if epsilon <= 0 or step_size <= 0 or num_steps < 1:
            raise ValueError(
                f"epsilon={epsilon}, step_size={step_size}, num_steps={num_steps}: all of them must be positive."
            )
        self.epsilon = epsilon
        self.step_size = step_size
        self.num_steps = num_steps

    def _num_steps(self) -> int:
        return self.num_iterations * self.num_steps

    def _run_pass(self, state: BatchState, indices: torch.Tensor, number: int, network: Network, bar: Progress) -> None:
        original, target = state.original[indices], state.target[indices]
        image = state.current[indices]
        for _ in range(self.num_steps):
            with torch.enable_grad():
                point = image.detach().requires_grad_()
                logits = self.classifier(point).float()
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), point)
            waiting = logits.argmax(1) != target
            if not bool(waiting.any()):
                break
            moved = image - self.step_size * gradient.sign()
            moved = torch.clamp(moved, original - self.epsilon, original + self.epsilon).clamp(-1, 1)
            image = torch.where(waiting.reshape(-1, *[1] * (image.ndim - 1)), moved, image)
            bar.update(1)
        state.current[indices] = image
        state.confidence[indices], state.flipped[indices] = self._judge(image, target)


METHODS.add("attack", "Control: projected gradient steps on the pixels, without diffusion", AttackInferer)
