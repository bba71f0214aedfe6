# SPDX-License-Identifier: Apache-2.0
"""A control: projected gradient steps on the pixels, which flip the classifier without changing anatomy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from medcf.inferers.method import Method
from medcf.inferers.options import Options
from medcf.inferers.passes import Pass
from medcf.registry import METHODS

__all__ = ["AttackInferer", "AttackOptions"]


@dataclass(frozen=True, kw_only=True)
class AttackOptions(Options):
    """Options of the attack.

    Attributes:
        epsilon: largest change per pixel, in units of the image's range [-1, 1].
        step_size: change per pixel and step; None uses an eighth of epsilon.
        num_steps: maximum number of steps.
    """

    epsilon: float = 0.1
    step_size: float | None = None
    num_steps: int = 40

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive."""
        super().__post_init__()
        self.set_defaults({"step_size": self.epsilon / 8})
        if not (self.epsilon > 0 and self.step_size > 0 and self.num_steps >= 1):  # type: ignore[operator]
            raise ValueError(
                f"epsilon={self.epsilon}, step_size={self.step_size}, num_steps={self.num_steps}: all of them must be "
                "positive."
            )


class AttackInferer(Method):
    """Targeted projected gradient descent in the L-infinity ball (PGD; Madry et al. 2018, arXiv 1706.06083, sec. 2.1).

    Each image moves by ``step_size`` along the sign of the gradient of the target's cross-entropy until the classifier
    predicts the target; no diffusion model is involved. A metric that cannot tell this from a counterfactual measures
    nothing but the classifier.
    """

    title = "gradient attack"
    Options = AttackOptions
    needs_network = False

    def num_steps(self) -> int:
        """Return the largest number of gradient steps."""
        return int(self.options.num_iterations * self.options.num_steps)

    def run_pass(self, run: Pass) -> None:
        """Step until each image has the target class."""
        state, index, options = run.state, run.index, self.options
        original, target, image = state.original[index], state.target[index], state.current[index]
        for _ in range(options.num_steps):
            with torch.enable_grad():
                point = image.detach().requires_grad_()
                logits = self.classifier(point).float()
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), point)
            waiting = logits.argmax(1) != target
            if not bool(waiting.any()):
                break
            moved = image - options.step_size * gradient.sign()
            moved = torch.clamp(moved, original - options.epsilon, original + options.epsilon)
            moved = self.finish(moved, state, index)
            image = torch.where(waiting.reshape(-1, *[1] * (image.ndim - 1)), moved, image)
            run.bar.update(1)
        state.current[index] = image
        state.confidence[index], state.flipped[index] = self.judge(image, target)


METHODS.add("attack", "Control: projected gradient steps on the pixels, without diffusion", AttackInferer)
