# SPDX-License-Identifier: Apache-2.0
"""The pass of methods whose class comes from a conditional network: micro-batches, own class, background."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medcf.guidance.regions import background
from medcf.inferers.counterfactual import BatchState
from medcf.inferers.method import Method
from medcf.inferers.passes import Pass
from medcf.networks.checks import check_classes
from medcf.networks.stack import plan_stack
from medcf.runtime.memory import budget_bytes, micro_batches, peak_bytes

__all__ = ["condition_of", "edit", "finished", "own_class"]

logger = logging.getLogger(__name__)


def edit(method: Method, run: Pass) -> None:
    """Denoise each image toward its target class; a method's ``run_pass``.

    Args:
        method: has `medcf.inferers.options.EditOptions`; its chain begins with its ``start``.
        run: the pass.
    """
    check_classes(run.network, type(method).__name__, method.conditioner.by_class)
    state, options, pair = run.state, method.options, None
    stacked: Callable[[Sequence[int]], list[int]] = list
    if options.subtract_reconstruction:
        own = own_class(method, state.original)
        pair = TargetAndOwnClass(state, own, options.scale, shared=run.number == 0)
        run, stacked = replace(run, state=pair.edits), pair.stacked
    groups = _groups(method, run, stacked)
    run.bar.total += (len(groups) - 1) * (method.num_steps() // options.num_iterations)
    for chosen in groups:
        index, rows = (torch.tensor(each, device=state.current.device) for each in (chosen, stacked(chosen)))
        chain = run.chain(rows, condition_of(method, run.state, rows))
        sample, more = method.start(run, rows, chain)
        found = chain.run([*method.kept(chain), *more], sample)
        if pair is None:
            image = method.space.decoder(state.current[index], chain.start)(found)
        else:
            image = method.space.decode(found)  # what decoding adds is in both runs, and cancels
        run.state.count(rows, chain.denoiser.num_function_evaluations)
        if pair is not None:
            image = state.current[index] + pair.difference(image, chosen)
        state.current[index] = finished(method, image, state, index)
    if pair is not None:
        pair.report(state)
    current = state.current[run.index]
    state.confidence[run.index], state.flipped[run.index] = method.judge(current, state.target[run.index])


def condition_of(method: Method, state: BatchState, index: Tensor) -> Any:
    """Return the condition of the images ``index``: their targets with the method's guidance scale, or their own."""
    scale = method.options.scale
    if "guidance_scale" in state.extras:
        scale = state.extras["guidance_scale"][index].tolist()
    own = state.extras.get("own")
    return method.conditioner(state.target[index], scale, state.inputs(index), None if own is None else own[index])


def own_class(method: Method, image: Tensor) -> Tensor:
    """Return the images' own class (B,): the method's option, or what the classifier predicts; never a label."""
    given = method.options.own_class
    found = method.logits(image).argmax(1)
    return found if given is None else torch.full_like(found, given)


def finished(method: Method, image: Tensor, state: BatchState, index: Tensor) -> Tensor:
    """Return the output of a pass, in [-1, 1], with the input's background."""
    image = method.finish(image.clamp(-1, 1), state, index)
    original = state.original[index]
    return torch.where(background(original), original, image) if method.options.keep_background else image


def _groups(method: Method, run: Pass, stacked: Callable[[Sequence[int]], list[int]]) -> list[list[int]]:
    """Split the images of a pass into micro-batches that fit the budget; ``stacked`` returns the images to run."""
    indices, limit = run.index.tolist(), budget_bytes(method.options.memory_budget, run.index.device)
    if limit is None:
        return [indices]

    def rows(chosen: Sequence[int]) -> int:
        index = torch.tensor(stacked(chosen), device=run.index.device)
        return len(plan_stack(condition_of(method, run.state, index), len(index), **method.reading(run.state, index)))

    first = indices[:1]
    row = _bytes_per_row(method, run, stacked(first), rows(first))
    groups = micro_batches(indices, lambda chosen: row * rows(chosen), limit)
    logger.info(
        "%s: %.3g GB per row; %d images in micro-batches of %s within %.3g GB",
        method.title,
        row / 1e9,
        len(indices),
        ", ".join(str(len(group)) for group in groups),
        limit / 1e9,
    )
    if (least := row * rows(first)) > limit:
        logger.warning(
            "%s: a single image takes about %.3g GB, above memory_budget of %.3g GB: run in 16 bits (amp), or on a "
            "coarser grid.",
            method.title,
            least / 1e9,
            limit / 1e9,
        )
    return groups


def _bytes_per_row(method: Method, run: Pass, first: Sequence[int], rows: int) -> float:
    """Measure one network call for one image; the same call is measured only once."""
    device, shape = run.index.device, tuple(run.state.current.shape[1:])
    key = (id(run.network), shape, str(device), torch.is_autocast_enabled(device.type))
    known = vars(method).setdefault("measured", {})
    if key not in known:
        index = torch.tensor(first, device=device)
        chain = run.chain(index, condition_of(method, run.state, index))
        peak = peak_bytes(lambda: chain.denoiser(chain.start, chain.timesteps[0]), device)
        known[key] = max(peak, 1) / rows
    return float(known[key])


class TargetAndOwnClass:
    """A state of 2 B images: B run toward their targets, the other B (the same images) toward their own classes.

    Both have the same noise, because they have the same ids and seeds. Images with the same input, seed and guidance
    scale, such as several targets of one input, share the second run; only the first of them runs it.

    Args:
        state: the B images.
        own: each image's own class (B,).
        guidance_scale: scale for all images, unless the state's extras specify it.
        shared: whether equal inputs start from equal images, as in the first pass.
    """

    def __init__(self, state: BatchState, own: Tensor, guidance_scale: float, shared: bool) -> None:
        self.count = len(state.original)
        device = state.original.device
        twice = torch.arange(self.count, device=device).repeat(2)
        self.edits = BatchState(
            state.original[twice],
            torch.cat([state.target, own]),
            [*state.ids, *state.ids],
            state.confidence[twice],
            state.unchanged[twice],
        )
        self.edits.current = state.current[twice]
        self.edits.seeds = [*state.seeds, *state.seeds]
        self.edits.region = None if state.region is None else state.region[twice]
        scales = torch.full((self.count,), guidance_scale, device=device)
        extras = {"source": torch.arange(self.count, device=device), "guidance_scale": scales} | state.extras
        self.edits.extras.update({name: values[twice] for name, values in extras.items()})
        self.edits.extras["own"] = torch.arange(2 * self.count, device=device) >= self.count
        sources = extras["source"].tolist() if shared else range(self.count)
        self._keys = list(zip(sources, extras["guidance_scale"].tolist(), strict=True))

    def stacked(self, chosen: Sequence[int]) -> list[int]:
        """Return which of the 2 B images to run for the images ``chosen``."""
        return [*chosen, *(self.count + i for i in dict.fromkeys(self._first(chosen)))]

    def difference(self, image: Tensor, chosen: Sequence[int]) -> Tensor:
        """Return the difference between the results for the targets and for the own classes (N, C, *spatial).

        Args:
            image: results for the images returned by ``stacked``.
            chosen: the N images.
        """
        first = self._first(chosen)
        place = {i: number for number, i in enumerate(dict.fromkeys(first))}
        own = torch.tensor([len(first) + place[i] for i in first], device=image.device)
        return image[: len(first)] - image[own]

    def report(self, state: BatchState) -> None:
        """Add the network evaluations to the B images, and what the method measured on the way to their targets.

        A shared evaluation counts for the first image that uses it.
        """
        state.evaluations += self.edits.evaluations.reshape(2, -1).sum(0)
        measured = self.edits.extras.keys() - {"source", "guidance_scale", "own"}
        state.extras.update({name: self.edits.extras[name][: self.count] for name in measured})

    def _first(self, chosen: Sequence[int]) -> list[int]:
        """Return, for each image, the first image with the same input and guidance scale."""
        first: dict[tuple[int, float], int] = {}
        return [first.setdefault(self._keys[i], i) for i in chosen]
