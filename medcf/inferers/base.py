# SPDX-License-Identifier: Apache-2.0
"""The common part of all counterfactual methods: checks, classification, passes, and images that leave early."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from medcf.inferers.checks import (
    Target,
    check_image,
    check_logits,
    check_network,
    check_numbers,
    check_target,
    default_sample_ids,
    resolve_target,
)
from medcf.inferers.counterfactual import BatchState, Counterfactual
from medcf.networks.classifier_adapter import notice_probabilities, notice_unit_range
from medcf.networks.denoiser import Network
from medcf.runtime.frozen import frozen
from medcf.runtime.progress import Progress, progress_bar

__all__ = ["CounterfactualInferer"]


class CounterfactualInferer(Inferer):
    """A MONAI inferer that moves images to a target class in one or several passes.

    A subclass defines a pass (``_run_pass``). This class checks the inputs, returns images of the target class
    unchanged, records all iterates, and lets images leave once they are confident enough. Works under
    ``torch.no_grad()``; the mode and ``requires_grad`` of all networks are restored. Autocast is left to the caller.

    Args:
        classifier: f, images in [-1, 1] to logits (B, K).
        target: target class y, for all images or one per image; "opposite" selects, of two classes, the one that the
            classifier does not predict for an image.
        num_iterations: passes L.
        confidence_threshold: images that reach this target probability leave the batch; None runs all passes.
        seed: seed for all noise.
        progress: show a progress bar over passes and steps, on a terminal.

    Raises:
        ValueError: if an option is out of range.
    """

    #: Name of the method for display.
    title: ClassVar[str] = "counterfactual"
    #: Whether a pass differentiates the classifier, which ``torch.inference_mode()`` forbids.
    needs_gradients: ClassVar[bool] = True
    #: Whether a pass calls the denoising network.
    needs_network: ClassVar[bool] = True
    #: Options of a parent class that the method fixes and therefore does not accept.
    fixed_options: ClassVar[frozenset[str]] = frozenset()
    #: Pairs of options with the same meaning, of which only one may be given.
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(
        self,
        classifier: Callable[[torch.Tensor], torch.Tensor],
        target: Target,
        *,
        num_iterations: int = 1,
        confidence_threshold: float | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        super().__init__()
        check_target(target)
        check_numbers(num_iterations=num_iterations, seed=seed, whole=True)
        check_numbers(confidence_threshold=confidence_threshold)
        if num_iterations < 1:
            raise ValueError(f"num_iterations={num_iterations}: at least one pass must run.")
        if confidence_threshold is not None and not 0 < confidence_threshold <= 1:
            raise ValueError(f"confidence_threshold={confidence_threshold} is a probability: use a value in (0, 1].")
        self.classifier = classifier
        self.target = target
        self.num_iterations = num_iterations
        self.confidence_threshold = confidence_threshold
        self.seed = seed
        self.progress = progress

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        sample_ids: Sequence[Hashable] | None = None,
        target: Target | None = None,
    ) -> torch.Tensor:
        """Return only the counterfactuals; see ``explain``."""
        return self.explain(inputs, network, sample_ids, target).image

    def explain(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        sample_ids: Sequence[Hashable] | None = None,
        target: Target | None = None,
        run_unchanged: bool = False,
    ) -> Counterfactual:
        """Compute counterfactuals, the path to them and their confidences.

        Args:
            inputs: images (B, C, *spatial) in [-1, 1]; the original x.
            network: denoising network, called as in ``Denoiser``; methods without diffusion ignore it.
            sample_ids: one identity per image to seed its noise; None uses a hash of its pixels.
            target: target class for this call; takes precedence over the constructor's.
            run_unchanged: also run images that are already in the target class. Toward the input's own class, the
                result is the method's reconstruction, the floor of its differences. They count as neither flipped nor
                unchanged.

        Returns:
            The counterfactuals. Unless ``run_unchanged`` is set, an input already classified as the target is returned
            unchanged and marked.

        Raises:
            ValueError: if inputs, network, classifier, target or ids do not match.
            RuntimeError: if called under ``torch.inference_mode()``, which provides no gradients.
        """
        image, ids = self._check_inputs(inputs, network, sample_ids)
        requested = self.target if target is None else target
        with torch.no_grad(), frozen(*self._networks()):
            wanted = resolve_target(requested, len(image), image.device, lambda: self._logits(image))
        result = self._explain(image, ids, wanted, network, run_unchanged)
        return replace(result, image=convert_to_dst_type(result.image, inputs, dtype=torch.float32)[0])

    def _check_inputs(
        self, inputs: torch.Tensor, network: Network, sample_ids: Sequence[Hashable] | None
    ) -> tuple[torch.Tensor, list[Hashable]]:
        """Return the images as a plain tensor, and one identity per image."""
        if self.needs_gradients and torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{type(self).__name__} needs gradients of the classifier: use torch.no_grad(), not inference_mode()."
            )
        image = check_image(inputs)
        notice_unit_range(image, self.classifier)
        if self.needs_network:
            check_network(network, image)
        batch = image.shape[0]
        ids = default_sample_ids(image) if sample_ids is None else list(sample_ids)
        if len(ids) != batch:
            raise ValueError(
                f"sample_ids holds {len(ids)} identities for a batch of {batch} images: give one per image."
            )
        return image, list(ids)

    def _explain(
        self,
        image: torch.Tensor,
        ids: Sequence[Hashable],
        wanted: torch.Tensor,
        network: Network,
        run_unchanged: bool,
        extras: Mapping[str, torch.Tensor] | None = None,
    ) -> Counterfactual:
        """Run the passes on checked images; ``extras`` are per-image values (B,) that a method's passes need."""
        bar = progress_bar(self._num_steps(), self.title, unit="step", show=self.progress, inner=True)
        with torch.no_grad(), frozen(network, *self._networks()), bar:
            confidence, hit = self._judge(image, wanted)
            state = BatchState(image, wanted, ids, confidence, unchanged=hit & (not run_unchanged))
            state.extras.update(extras or {})
            self._iterate(state, network, bar)
            state.flipped &= ~hit
            bar.total = bar.n
        return state.result()

    @abstractmethod
    def _run_pass(self, state: BatchState, indices: torch.Tensor, number: int, network: Network, bar: Progress) -> None:
        """Advance the images ``indices`` of the state by one pass."""

    def _num_steps(self) -> int:
        """Return the number of steps that the bar counts if every pass runs."""
        return self.num_iterations

    def _networks(self) -> tuple[Any, ...]:
        """Return the networks, besides the denoiser, that must be in eval mode and without parameter gradients."""
        return (self.classifier,)

    def _iterate(self, state: BatchState, network: Network, bar: Progress) -> None:
        """Run the passes; images leave when they are done."""
        active = ~state.unchanged
        for number in range(self.num_iterations):
            indices = active.nonzero()[:, 0]
            if len(indices):
                self._run_pass(state, indices, number, network, bar)
            state.record(active)
            if self.confidence_threshold is not None:
                active = active & (state.confidence < self.confidence_threshold)

    def _judge(self, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the probability of the target (B,) and whether it is the predicted class (B,).

        Uses full precision even under autocast: a decision near one half must agree with everyone else's.
        """
        logits = self._logits(image)
        check_logits(logits, target)
        notice_probabilities(logits, self.classifier)
        return logits.softmax(1).gather(1, target[:, None])[:, 0], logits.argmax(1) == target

    def _logits(self, image: torch.Tensor) -> torch.Tensor:
        """Return the classifier's logits (B, K), computed in full precision."""
        with torch.autocast(image.device.type, enabled=False):
            return self.classifier(image.float()).float()
