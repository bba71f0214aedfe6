# SPDX-License-Identifier: Apache-2.0
"""The one base of all counterfactual methods: parts, options, checks, passes, and images that leave early."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self, cast

import torch
from monai.inferers import Inferer
from torch import Tensor

from medcf.guidance.loss import Features
from medcf.guidance.regions import KnownRegion, composite, region_mask, subject_mask
from medcf.inferers.checks import (
    REACHED,
    Target,
    check_follows_prompt,
    check_inputs,
    check_target,
    resolve_target,
)
from medcf.inferers.counterfactual import BatchState, Counterfactual
from medcf.inferers.options import ChainOptions, EditOptions, Options, StrengthOptions, option_names
from medcf.inferers.outcome import floor_scores, judged, reached_class
from medcf.inferers.passes import Pass
from medcf.networks.classifier_adapter import notice_probabilities
from medcf.networks.condition import Conditioner
from medcf.networks.denoiser import Network, References
from medcf.runtime.choices import check_names
from medcf.runtime.frozen import frozen
from medcf.runtime.progress import progress_bar
from medcf.sampling import Chain, Hook, PixelSpace, Space
from medcf.schedulers import RespacedScheduler
from medcf.schedulers.adapted import check_scheduler

__all__ = ["Method"]


class Method(Inferer):
    """A MONAI inferer that moves images to a target class in one or several passes.

    A method is this class with a ``title``, its ``Options``, and a ``run_pass``: `medcf.inferers.search_scales` (guided
    by the classifier) or `medcf.inferers.edit` (by a conditional network), which run the chain with the method's
    ``hooks``, or its own. This class checks the inputs, returns images of the target class unchanged, records all
    iterates, and lets images leave once they are confident enough. Works under ``torch.no_grad()``; the mode and
    ``requires_grad`` of all networks are restored. Autocast is left to the caller. A network serves one thread at a
    time: while a method runs, it is frozen, and its attention may be injected.

    Args:
        scheduler: a scheduler from ``medcf.schedulers``; copied, not modified.
        classifier: f, images in [-1, 1] to logits (B, K).
        target: target class y, for all images or one per image; "opposite" selects, of two classes, the one that the
            classifier does not predict for an image; "reached", for a prompt of one's own (``conditioner.prompt``), is
            the class that each result has in the end.
        perceptual: phi, such as ``PerceptualFeatures``, for guided methods; None omits the proximity term.
        space: where the chain runs; the pixels by default.
        conditioner: turns target classes into conditions of the network, in place of ``null_class_labels``; by default
            its class labels.
        segmenter: images to logits of structures, background first, for ``region="subject"``; without one, the subject
            is what is not black.
        subject: images to a mask in [0, 1], for ``region="subject"`` in place of the segmenter's outline, such as
            `medcf.guidance.SegmentedRegion`.
        control: images (B, C, *spatial) to what a ControlNet follows (B, channels, *spatial), for a network that takes
            ``control`` (`medcf.networks.ControlledUNet`), such as `medcf.networks.StructureMask`.
        options: those of ``Options``.

    Raises:
        ValueError: if an option is unknown (the message lists the right ones), out of range, or contradicts another.
    """

    #: Name of the method for display.
    title: ClassVar[str] = "counterfactual"
    #: The method's options.
    Options: ClassVar[type[Options]] = Options
    #: Whether a pass differentiates the classifier, which ``torch.inference_mode()`` forbids.
    needs_gradients: ClassVar[bool] = True
    #: Whether a pass calls the denoising network.
    needs_network: ClassVar[bool] = True

    def __init__(
        self,
        scheduler: RespacedScheduler | None = None,
        classifier: Callable[[Tensor], Tensor] | None = None,
        target: Target | None = None,
        perceptual: Callable[[Tensor], Features] | None = None,
        *,
        space: Space | None = None,
        conditioner: Conditioner | None = None,
        segmenter: Callable[[Tensor], Tensor] | None = None,
        subject: Callable[[Tensor], Tensor] | None = None,
        control: Callable[[Tensor], Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if classifier is None or target is None:
            raise ValueError(f"{type(self).__name__} needs a classifier and a target class.")
        check_target(target)
        self.classifier, self.target, self.perceptual = classifier, target, perceptual
        self.space: Space = PixelSpace() if space is None else space
        self.segmenter, self.subject, self.control = segmenter, subject, control
        self.scheduler: Any = scheduler
        self.own_conditioner = conditioner
        self._set_options(options)

    def with_options(self, **changes: Any) -> Self:
        """Return the same method with other options."""
        method = copy.copy(self)
        method._set_options({**self.given, **changes})
        return method

    def _set_options(self, given: dict[str, Any]) -> None:
        """Read the options; prepare a copy of the scheduler, and the conditioner unless one was given, for them."""
        self.given = given
        check_names(given, option_names(self.Options), f"{type(self).__name__} does not take the option")
        self.options = cast(Any, self.Options(**given))
        if not self.needs_network:
            return
        check_scheduler(self.scheduler)
        self.conditioner = self.own_conditioner or Conditioner(self.options.null_class_labels)
        scale = getattr(self.options, "scale", 1.0)
        if scale != 1 and self.conditioner.null() is None:
            raise ValueError(
                f"guidance_scale={scale:g} compares the target with the null class: give null_class_labels (or a "
                "conditioner with its null), or guidance_scale=1."
            )
        self.scheduler = self.prepared(copy.deepcopy(self.scheduler))

    def prepared(self, scheduler: RespacedScheduler) -> RespacedScheduler:
        """Return the scheduler (a copy) with the method's steps and clipping.

        Raises:
            ValueError: if the options do not suit the scheduler.
        """
        options: ChainOptions = self.options
        scheduler.clip_sample = options.clip_denoised and self.space.range is not None
        scheduler.clip_sample_values = self.space.range or (-1.0, 1.0)
        scheduler.set_timesteps(options.num_inference_steps)
        if isinstance(options, StrengthOptions):
            for share in options.strengths:  # refuse an invalid one here, not after a pass
                scheduler.timesteps_from(share)
        return scheduler

    @property
    def timesteps(self) -> list[int]:
        """The kept steps of the first pass, noisiest first."""
        return self.schedule(0)[0]

    def __call__(
        self,
        inputs: Tensor,
        network: Network | None = None,
        sample_ids: Sequence[Hashable] | None = None,
        target: Target | None = None,
    ) -> Tensor:
        """Return only the counterfactuals; see ``explain``."""
        return self.explain(inputs, network, sample_ids, target).image

    def explain(
        self,
        inputs: Tensor,
        network: Network | None = None,
        sample_ids: Sequence[Hashable] | None = None,
        target: Target | None = None,
        run_unchanged: bool = False,
        *,
        seeds: Sequence[int] | None = None,
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
            seeds: one seed per image; None uses the option for all of them.

        Returns:
            The counterfactuals. Unless ``run_unchanged`` is set, an input already classified as the target is returned
            unchanged and marked.

        Raises:
            ValueError: if inputs, network, classifier, target or ids do not match.
            RuntimeError: if called under ``torch.inference_mode()``, which provides no gradients.
        """
        image, ids = check_inputs(self, inputs, network, sample_ids)
        if seeds is not None and len(seeds) != len(image):
            raise ValueError(f"seeds holds {len(seeds)} for a batch of {len(image)} images: give one per image.")
        requested = self.target if target is None else target
        follows = isinstance(requested, str) and requested == REACHED
        method, known = self, partial(self.logits, image)
        if follows:
            check_follows_prompt(self)
            method = self.with_options(confidence_threshold=None)  # of which class, is known in the end
        with torch.no_grad(), frozen(self.classifier):
            wanted = known().argmax(1) if follows else resolve_target(requested, len(image), image.device, known)
        result = method.advance(image, ids, wanted, network, run_unchanged or follows, seeds=seeds)
        if follows:
            with torch.no_grad(), frozen(self.classifier):
                result = reached_class(result, self.logits)
        return result.like(inputs)

    def eager_reason(self) -> str | None:
        """Say what a pass does with the network that an exported one cannot do; None if it only needs predictions."""
        return None if self.control is None else "gives the network a mask to follow (control)"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what only speeds up further calls in this process."""
        return {name: value for name, value in vars(self).items() if name not in ("_entered", "measured")}

    def advance(
        self,
        image: Tensor,
        ids: Sequence[Hashable],
        wanted: Tensor,
        network: Network | None,
        run_unchanged: bool = False,
        *,
        seeds: Sequence[int] | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Counterfactual:
        """Run the passes on checked images; ``extras`` are per-image values (B,) that a method's passes need."""
        options = self.options
        bar = progress_bar(self.num_steps(), self.title, unit="step", show=options.progress, inner=True)
        networks = (network, self.classifier, self.perceptual, self.segmenter, self.control, *self.space.networks)
        with torch.no_grad(), frozen(*networks), bar:
            confidence, hit = self.judge(image, wanted)
            state = BatchState(image, wanted, ids, confidence, unchanged=hit & (not run_unchanged))
            state.seeds = [options.seed] * len(image) if seeds is None else list(seeds)
            state.extras.update(extras or {})
            state.region = self.region(image, state.extras.get("source"))
            active = ~state.unchanged
            for number in range(options.num_iterations):
                index = active.nonzero()[:, 0]
                if len(index):
                    self.run_pass(Pass(self, state, index, number, network, bar))  # type: ignore[arg-type]
                state.record(active)
                if options.confidence_threshold is not None:
                    active = active & (state.confidence < options.confidence_threshold)
            state.flipped &= ~hit
            state.extras.update(floor_scores(self.space, state))
            bar.total = bar.n
        return state.result()

    def run_pass(self, run: Pass) -> None:
        """Advance the images of the pass: their ``current`` image, ``confidence``, ``flipped`` and ``evaluations``."""
        raise NotImplementedError(f"{type(self).__name__} has no run_pass: use search_scales, edit, or your own.")

    def hooks(self, chain: Chain) -> Sequence[Hook]:
        """Return what the method adds to the steps of a chain."""
        return ()

    def start(self, run: Pass, index: Tensor, chain: Chain) -> tuple[Tensor | None, list[Hook]]:
        """Return noisy samples from which an edit starts, and further hooks; None noises as the options say."""
        return None, []

    def references(self, run: Pass, index: Tensor, chain: Chain) -> References | None:
        """Return the images that a chain reads by attention injection."""
        return None

    def reading(self, state: BatchState, index: Tensor) -> dict[str, Any]:
        """Return which references the images ``index`` read, as arguments of `medcf.networks.stack.plan_stack`."""
        return {}

    def num_steps(self) -> int:
        """Return the number of steps that the bar counts if every pass runs."""
        if not self.needs_network:
            return int(self.options.num_iterations)
        return sum(len(self.schedule(number)[0]) for number in range(self.options.num_iterations))

    def schedule(self, number: int) -> tuple[list[int], int | None]:
        """Return the steps of a pass, noisiest first, and the timestep to which it noises; None means pure noise."""
        options = self.options
        if not isinstance(options, StrengthOptions):
            return self.scheduler.timesteps_from(1.0), None
        strength = options.strengths[min(number, len(options.strengths) - 1)]
        if strength == 1 and isinstance(options, EditOptions):
            return self.scheduler.timesteps_from(strength), None
        start = self.scheduler.start_timestep(strength, options.start_variant)
        return self.scheduler.timesteps_from(strength), start

    def kept(self, chain: Chain) -> list[Hook]:
        """Return the method's hooks, and the one that keeps what lies outside the region."""
        return [*self.hooks(chain), *([] if chain.mask is None else [KnownRegion(chain, chain.mask)])]

    def region(self, image: Tensor, source: Tensor | None = None) -> Tensor | None:
        """Return where the images may change (B, 1, *spatial), in [0, 1] or bool; None means everywhere.

        Args:
            image: the images (B, C, *spatial).
            source: which of the caller's images each of them is, if they are repeated.
        """
        region = self.options.region
        if isinstance(region, str):
            region = self.subject or partial(subject_mask, segmenter=self.segmenter)
        return None if region is None else region_mask(region, image, source)

    def finish(self, image: Tensor, state: BatchState, index: Tensor) -> Tensor:
        """Return the decoded output of a pass over the images ``index``: in [-1, 1], the input outside the region."""
        if not self.needs_network or self.options.clip_denoised:
            image = image.clamp(-1, 1)
        if state.region is None:
            return image
        return composite(state.region[index], image, state.original[index])

    def judge(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability of the target (B,) and whether it is the predicted class (B,).

        Uses full precision even under autocast: a decision near one half must agree with everyone else's.
        """
        logits = self.logits(image)
        found = judged(logits, target)
        notice_probabilities(logits, self.classifier)
        return found

    def logits(self, image: Tensor) -> Tensor:
        """Return the classifier's logits (B, K), computed in full precision, in small batches if memory is scarce."""
        size = len(image) if getattr(self.options, "memory_budget", None) is None else 1
        with torch.autocast(image.device.type, enabled=False):
            return torch.cat([self.classifier(part.float()).float() for part in image.split(size)])
