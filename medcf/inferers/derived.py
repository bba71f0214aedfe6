# SPDX-License-Identifier: Apache-2.0
"""Wraps a method that has only ``__call__(inputs, network)`` and adds the explanation that bundles need."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medcf.inferers.checks import Target, TargetError, resolve_target
from medcf.inferers.counterfactual import BatchState, Counterfactual
from medcf.inferers.options import with_options
from medcf.inferers.outcome import judged
from medcf.networks.checks import check_image
from medcf.networks.denoiser import Network
from medcf.runtime.frozen import frozen

__all__ = ["DerivedMethod", "with_explain"]


def with_explain(method: Any, classifier: Callable[[Tensor], Tensor] | None, target: Target | None = None) -> Any:
    """Return a method that has ``explain``: the given one, or a `DerivedMethod` around it."""
    if hasattr(method, "explain") or not callable(method) or classifier is None:
        return method
    return DerivedMethod(method, classifier, target)


class DerivedMethod(Inferer):
    """Derives the results of ``explain`` from a method's ``__call__(inputs, network)``.

    The trajectory is input and result, the confidences are the classifier's, and the evaluations are the rows of the
    network calls for each image. An image already in the target class is returned unchanged, without a run. All other
    attributes, such as options, are the method's own.

    Args:
        method: called as ``method(inputs, network)``; maps images (B, C, *spatial) in [-1, 1] to their counterfactuals.
            It is passed ``target`` and ``sample_ids`` if its signature names them.
        classifier: images to logits (B, K).
        target: target class; None uses the method's attribute ``target``.
    """

    def __init__(
        self, method: Callable[..., Tensor], classifier: Callable[[Tensor], Tensor], target: Target | None = None
    ) -> None:
        vars(self).update(method=method, classifier=classifier, wanted=target)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "method" not in vars(self):
            raise AttributeError(name)
        return getattr(self.method, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an option on the wrapped method."""
        setattr(self.method, name, value)

    def with_options(self, **changes: Any) -> DerivedMethod:
        """Return the method with other options."""
        return DerivedMethod(with_options(self.method, **changes), self.classifier, self.wanted)

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        sample_ids: Sequence[Hashable] | None = None,
        target: Target | None = None,
    ) -> Tensor:
        """Return only the counterfactuals; see ``explain``."""
        return self.explain(inputs, network, sample_ids, target).image

    @torch.no_grad()
    def explain(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        sample_ids: Sequence[Hashable] | None = None,
        target: Target | None = None,
        run_unchanged: bool = False,
    ) -> Counterfactual:
        """Run the method and derive its results.

        Args:
            inputs: images (B, C, *spatial) in [-1, 1].
            network: denoising network.
            sample_ids: one identity per image.
            target: target class for this call.
            run_unchanged: also run images that are already in the target class.

        Returns:
            The counterfactuals; evaluations that cannot be assigned to images are NaN.

        Raises:
            TargetError: if there is no target class, or the method accepts no other than its own.
            ValueError: if the method does not return one image per input.
        """
        image = check_image(inputs)
        wanted = self._target(target, image)
        before, hit = self._judge(image, wanted)
        state = BatchState(image, wanted, (), before, unchanged=hit & (not run_unchanged))
        state.evaluations = torch.zeros(len(image), device=image.device)
        chosen = (~state.unchanged).nonzero()[:, 0]
        if len(chosen):
            ids = None if sample_ids is None else [sample_ids[i] for i in chosen.tolist()]
            with frozen(network, self.classifier), _rows(network) as rows:
                state.current[chosen] = self._run(image[chosen], network, ids, wanted[chosen], target is not None)
            share = rows[0] / len(chosen)
            state.evaluations[chosen] = share if share.is_integer() and isinstance(network, nn.Module) else float("nan")
        state.confidence, reached = self._judge(state.current, wanted)
        state.flipped = reached & ~hit
        state.record(~state.unchanged)
        return state.result().like(inputs)

    def _target(self, target: Target | None, image: Tensor) -> Tensor:
        found = target if target is not None else self.wanted
        found = getattr(self.method, "target", None) if found is None else found
        if found is None:
            raise TargetError(f"{type(self.method).__name__} has no target: give the index of the target class.")
        return resolve_target(found, len(image), image.device, lambda: self.classifier(image))

    def _run(
        self, image: Tensor, network: Network, ids: Sequence[Hashable] | None, wanted: Tensor, overridden: bool
    ) -> Tensor:
        """Call the method with the arguments that its signature names."""
        method, named = self.method, inspect.signature(self.method).parameters
        given = {name: value for name, value in (("target", wanted), ("sample_ids", ids)) if name in named}
        if overridden and "target" not in named:
            if not hasattr(method, "target"):
                raise TargetError(f"{type(method).__name__} takes no target, so it cannot be run toward another one.")
            method = copy.copy(method)
            method.target = int(wanted[0]) if bool((wanted == wanted[0]).all()) else wanted
        found = method(image, network, **given)
        if not isinstance(found, Tensor) or found.shape != image.shape:
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{type(method).__name__} returned {shown} for images of shape {tuple(image.shape)}: it must return "
                "one tensor, the counterfactuals, shaped like its inputs."
            )
        return found.as_subclass(Tensor).detach().to(image)

    def _judge(self, image: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability of the target and whether it is the predicted class, in full precision."""
        with torch.autocast(image.device.type, enabled=False):
            return judged(self.classifier(image).float(), wanted)


@contextmanager
def _rows(network: Network) -> Iterator[list[int]]:
    """Count the images that pass through the network in the meantime."""
    count = [0]

    def seen(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        count[0] += len(output)

    handle = network.register_forward_hook(seen) if isinstance(network, nn.Module) else None
    try:
        yield count
    finally:
        if handle is not None:
            handle.remove()
