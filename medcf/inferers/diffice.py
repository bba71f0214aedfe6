# SPDX-License-Identifier: Apache-2.0
"""Diff-ICE: diffusion-based iterative counterfactual explanations (2D fetal ultrasound, but nothing here is 2D).

Each of L passes noises the last output to a limited level and denoises it again, guided by the gradient of the
counterfactual loss at the predicted clean image; the loss stays anchored to the ORIGINAL image in every pass.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from tqdm import tqdm

from medcf.guidance import CounterfactualLoss, DiMEGradient, GradientEstimator, X0Gradient, XtGradient, frozen
from medcf.guidance.loss import Features
from medcf.inferers.checks import (
    Target,
    check_image,
    check_logits,
    check_network,
    default_sample_ids,
    resolve_target,
)
from medcf.inferers.counterfactual import Counterfactual
from medcf.inferers.iterates import Iterates
from medcf.inferers.sampling import denoise, make_generators, noised
from medcf.networks.denoiser import Denoiser
from medcf.registry import METHODS

__all__ = ["DiffICEInferer"]

logger = logging.getLogger(__name__)

Gradient = Literal["x0", "xt", "dime"]
ClassLoss = Literal["cross_entropy", "logit"]
GradientStep = Literal["current", "previous"]
StartVariant = Literal["exact", "code"]


class DiffICEInferer(Inferer):
    """Iterative classifier-guided counterfactuals (Diff-ICE, section 3.2, eq. 1 to 3).

    In every pass the scales are tried smallest first, and only images that are not of the target class after one go on
    to the next; if none flips an image, the pass keeps its most confident result. Noise is common to the scales of a
    pass (same start, same draws) and new in every pass; it comes from (seed, sample id, pass) alone, so neither batch
    nor order changes a result. Autocast is the caller's; loss and scheduler work in float32. Works under
    ``torch.no_grad()``; leaves mode and ``requires_grad`` of all networks as they were.

    Args:
        scheduler: a scheduler of ``medcf.schedulers``; copied, not changed. Scales belong to a solver: a deterministic
            step moves about half as far as a stochastic one.
        classifier: f, images in [-1, 1] to logits (B, K).
        target: wanted class y, for all images or one per image.
        perceptual: phi, for example ``PerceptualFeatures``; None leaves the proximity term out.
        num_inference_steps: kept steps n of the schedule.
        strength: share of the kept steps that is noised and denoised; 0.3 of 400 is the paper's tau = 120.
        num_iterations: passes L.
        classifier_scales: lambda_c to try, in any order.
        perceptual_scale: lambda_p.
        gradient: "x0" (the method), "xt" through the denoiser, or "dime" with an inner chain a step.
        class_loss: "cross_entropy" or "logit".
        gradient_step: "x0" at this step's prediction ("current") or the one before it ("previous", as the lineage's
            code).
        clip_denoised: clip predicted clean images, and each pass's output, to [-1, 1]; overrides the scheduler's.
        confidence_threshold: images that reach this probability of the target leave the batch; None runs all passes.
        seed: seed of all noise.
        start_variant: "exact" noises to the first step that is denoised; "code" one kept step further and, with "dime",
            takes the first gradient at the clean start, as the published code of the lineage does.
        class_labels: class to condition a class-conditional network on; None runs its null class.
        null_class_labels: index of the null class, with which a class-conditional network is unconditional.
        guidance_scale: classifier-free guidance between ``class_labels`` and the null class; 1 is off.
        progress: show a bar over passes and steps.

    Raises:
        ValueError: an option that is unknown, out of range or contradicts another.
    """

    def __init__(
        self,
        scheduler: Any,
        classifier: Callable[[torch.Tensor], torch.Tensor],
        target: Target,
        perceptual: Callable[[torch.Tensor], Features] | None = None,
        *,
        num_inference_steps: int = 400,
        strength: float = 0.3,
        num_iterations: int = 5,
        classifier_scales: float | Sequence[float] = (40, 60, 80),
        perceptual_scale: float = 30,
        gradient: Gradient = "x0",
        class_loss: ClassLoss = "cross_entropy",
        gradient_step: GradientStep = "current",
        clip_denoised: bool = True,
        confidence_threshold: float | None = None,
        seed: int = 0,
        start_variant: StartVariant = "exact",
        class_labels: int | None = None,
        null_class_labels: int | None = None,
        guidance_scale: float = 1.0,
        progress: bool = True,
    ) -> None:
        super().__init__()
        scales = (classifier_scales,) if isinstance(classifier_scales, int | float) else classifier_scales
        self.classifier_scales = tuple(sorted(float(scale) for scale in scales))
        if not self.classifier_scales or self.classifier_scales[0] < 0:
            raise ValueError(f"classifier_scales={classifier_scales!r}: give at least one scale, none negative.")
        if num_iterations < 1:
            raise ValueError(f"num_iterations={num_iterations}: at least one pass must run.")
        if confidence_threshold is not None and not 0 < confidence_threshold <= 1:
            raise ValueError(f"confidence_threshold={confidence_threshold} is a probability: use a value in (0, 1].")
        _check_choice("gradient", gradient, Gradient)
        _check_choice("gradient_step", gradient_step, GradientStep)
        _check_choice("start_variant", start_variant, StartVariant)
        if gradient_step == "previous" and gradient != "x0":
            raise ValueError(f"gradient_step='previous' belongs to gradient='x0', not to {gradient!r}.")
        self.scheduler = copy.deepcopy(scheduler)
        self.scheduler.clip_sample = clip_denoised
        self.scheduler.set_timesteps(num_inference_steps)
        self.timesteps = self.scheduler.timesteps_from(strength)
        self.start_timestep = self.scheduler.start_timestep(strength, "code" if start_variant == "code" else "paper")
        self.classifier = classifier
        self.perceptual = perceptual
        self.loss = CounterfactualLoss(classifier, perceptual, self.classifier_scales[0], perceptual_scale, class_loss)
        self.target = target
        self.num_iterations = num_iterations
        self.gradient = gradient
        self.gradient_step = gradient_step
        self.clip_denoised = clip_denoised
        self.confidence_threshold = confidence_threshold
        self.seed = seed
        self.start_variant = start_variant
        self.conditioning: dict[str, Any] = {
            "class_labels": null_class_labels if class_labels is None else class_labels,
            "null_class_labels": null_class_labels,
            "guidance_scale": guidance_scale,
        }
        self.progress = progress

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        sample_ids: Sequence[Hashable] | None = None,
        target: Target | None = None,
    ) -> torch.Tensor:
        """Return the counterfactuals alone; see ``explain``."""
        return self.explain(inputs, network, sample_ids, target).image

    def explain(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        sample_ids: Sequence[Hashable] | None = None,
        target: Target | None = None,
    ) -> Counterfactual:
        """Compute counterfactuals, the path to them and their confidences.

        Args:
            inputs: images (B, C, *spatial) in [-1, 1]; the original x.
            network: denoising network, called as ``Denoiser`` says.
            sample_ids: one identity per image to seed its noise; None takes a hash of its pixels.
            target: wanted class for this call, overriding the constructor's.

        Returns:
            The counterfactuals. An input the classifier already assigns to the target comes back unchanged and marked.

        Raises:
            ValueError: inputs, network, classifier, target or ids that do not fit each other.
            RuntimeError: called under ``torch.inference_mode()``, where no gradient exists.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "DiffICEInferer needs gradients of the classifier: use torch.no_grad(), not inference_mode()."
            )
        image = check_image(inputs)
        check_network(network, image)
        batch = image.shape[0]
        ids = default_sample_ids(image) if sample_ids is None else list(sample_ids)
        if len(ids) != batch:
            raise ValueError(
                f"sample_ids holds {len(ids)} identities for a batch of {batch} images: give one per image."
            )
        wanted = resolve_target(self.target if target is None else target, batch, image.device)
        denoiser = Denoiser(network, self.scheduler, **self.conditioning)
        bar = tqdm(total=self.num_iterations * len(self.timesteps), desc="Diff-ICE", disable=not self.progress)
        with torch.no_grad(), frozen(network, self.classifier, self.perceptual), bar:
            confidence, hit = self._judge(image, wanted)
            state = Iterates(image, wanted, ids, confidence, unchanged=hit)
            self._iterate(state, denoiser, bar)
            bar.total = bar.n
        result = state.result()
        return replace(result, image=convert_to_dst_type(result.image, inputs, dtype=torch.float32)[0])

    def _iterate(self, state: Iterates, denoiser: Denoiser, bar: Any) -> None:
        """Run the passes; images leave when they are done."""
        if bool(state.unchanged.any()):
            names = ", ".join(str(state.ids[i]) for i in state.unchanged.nonzero()[:, 0].tolist())
            logger.info("Already of the target class and returned unchanged: %s", names)
        active = ~state.unchanged
        for number in range(self.num_iterations):
            indices = active.nonzero()[:, 0]
            if len(indices):
                self._run_pass(state, indices, number, denoiser, bar)
            state.record(active)
            if self.confidence_threshold is not None:
                active = active & (state.confidence < self.confidence_threshold)

    def _run_pass(self, state: Iterates, indices: torch.Tensor, number: int, denoiser: Denoiser, bar: Any) -> None:
        """Advance the given images by one pass, each with the smallest scale that brings it to the target class."""
        start = state.current.clone()
        kept = torch.full_like(state.confidence, -1.0)
        for attempt, scale in enumerate(self.classifier_scales):
            if attempt:
                bar.total += len(self.timesteps)
            before = denoiser.num_function_evaluations
            image = self._guided_chain(state, start[indices], indices, number, scale, denoiser, bar)
            state.evaluations[indices] += denoiser.num_function_evaluations - before
            confidence, hit = self._judge(image, state.target[indices])
            better = hit | (confidence > kept[indices])
            chosen = indices[better]
            state.current[chosen] = image[better]
            state.confidence[chosen] = kept[chosen] = confidence[better]
            state.flipped[chosen] = hit[better]
            state.scale[chosen] = scale
            indices = indices[~hit]
            if not len(indices):
                break

    def _guided_chain(
        self,
        state: Iterates,
        start: torch.Tensor,
        indices: torch.Tensor,
        number: int,
        scale: float,
        denoiser: Denoiser,
        bar: Any,
    ) -> torch.Tensor:
        """Noise the start images and denoise them under guidance: one pass at one scale."""
        ids = [state.ids[i] for i in indices.tolist()]
        generators = make_generators(self.seed, ids, start.device, ("pass", number))
        inner = make_generators(self.seed, ids, start.device, ("inner", number))
        loss = self.loss.bind(state.original[indices], state.target[indices], scale)
        estimator = self._make_estimator(loss, start, denoiser, inner)
        noisy = noised(self.scheduler, start, self.start_timestep, generators)
        image = denoise(
            denoiser, self.scheduler, noisy, self.timesteps, generators=generators, hooks=(estimator,), progress=bar
        )
        return image.clamp(-1, 1) if self.clip_denoised else image

    def _make_estimator(
        self, loss: Any, start: torch.Tensor, denoiser: Denoiser, inner: list[torch.Generator]
    ) -> GradientEstimator:
        if self.gradient == "xt":
            return XtGradient(loss)
        if self.gradient == "x0":
            return X0Gradient(loss, gradient_step=self.gradient_step, start=start)

        def complete(step: Any) -> torch.Tensor:
            rest = self.timesteps[self.timesteps.index(step.timestep) + 1 :]
            return denoise(denoiser, self.scheduler, step.draw(inner), rest, generators=inner)

        first = start if self.start_variant == "code" else None
        return DiMEGradient(loss, complete, self.scheduler.alpha_bar, start=first)

    def _judge(self, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the probability of the target (B,) and whether it is the predicted class (B,)."""
        logits = self.classifier(image).float()
        check_logits(logits, target)
        return logits.softmax(1).gather(1, target[:, None])[:, 0], logits.argmax(1) == target


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(map(repr, get_args(choices)))}.")


METHODS.add("diffice", "Iterative classifier-guided counterfactuals (Diff-ICE)", DiffICEInferer)
