# SPDX-License-Identifier: Apache-2.0
"""The pass of methods guided by the classifier: the smallest scale that brings each image to the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medcf.guidance import CounterfactualLoss
from medcf.guidance.loss import BoundLoss
from medcf.inferers.method import Method
from medcf.inferers.passes import Pass
from medcf.networks.condition import Condition

__all__ = ["search_scales"]


def search_scales(method: Method, run: Pass) -> None:
    """Run guided chains with ascending classifier scales; a method's ``run_pass``.

    Only images that have not reached the target class go on to the next scale; if no scale flips an image, the pass
    keeps its most confident result. All scales of a pass share the noise (same start, same draws); each pass has new
    noise. Loss and scheduler work in float32; phi of the originals is computed once per call.

    Args:
        method: has `medcf.inferers.options.GuidanceOptions`; its ``hooks`` guide a chain by ``chain.guidance()``.
        run: the pass.
    """
    state, options, waiting = run.state, method.options, run.index
    loss = CounterfactualLoss(
        method.classifier, method.perceptual, options.scales[0], options.perceptual_scale, options.class_loss
    )
    if state.features is None:
        state.features = loss.features(state.original)
    start = state.current.clone()
    kept = torch.full_like(state.confidence, -1.0)
    rounds = [options.scales] if options.batched_scales else [(scale,) for scale in options.scales]
    for attempt, scales in enumerate(rounds):
        if attempt:
            run.bar.total += len(method.schedule(run.number)[0])
        index = waiting.repeat(len(scales))
        condition = _condition(method, state.target[index], state.inputs(index))
        chain = run.chain(index, condition, start[index])
        decode = method.space.decoder(start[index], chain.start)
        chain = replace(chain, loss=_bound(run, loss, index, scales, decode))
        image = method.finish(decode(chain.run(method.kept(chain))), state, index)
        state.count(index, chain.denoiser.num_function_evaluations)
        undecided = torch.ones_like(waiting, dtype=torch.bool)
        for scale, candidate in zip(scales, image.chunk(len(scales)), strict=True):
            confidence, hit = method.judge(candidate, state.target[waiting])
            better = undecided & (hit | (confidence > kept[waiting]))
            chosen = waiting[better]
            state.current[chosen] = candidate[better]
            state.confidence[chosen] = kept[chosen] = confidence[better]
            state.flipped[chosen] = hit[better]
            state.scale[chosen] = scale
            undecided = undecided & ~hit
        waiting = waiting[undecided]
        if not len(waiting):
            break


def _bound(
    run: Pass,
    loss: CounterfactualLoss,
    index: Tensor,
    scales: Sequence[float],
    decode: Callable[[Tensor], Tensor],
) -> BoundLoss:
    """Return the loss of decoded samples, for a stack in which all images of the first scale come first."""
    state = run.state
    scale: float | Tensor = scales[0]
    if len(scales) > 1:
        scale = torch.tensor(scales, device=index.device).repeat_interleave(len(index) // len(scales))
    features = None if state.features is None else [layer[index] for layer in state.features]
    of_image = loss.bind(state.original[index], state.target[index], scale, features)
    return lambda sample: of_image(decode(sample))


def _condition(method: Method, target: Tensor, inputs: Tensor) -> list[Condition]:
    """Return what a guided chain is denoised toward: no class, one class for all, or each image's target."""
    options: Any = method.options
    if options.class_labels is None:
        return method.conditioner.unconditional(inputs)
    labels = target if options.class_labels == "target" else torch.full_like(target, options.class_labels)
    return method.conditioner(labels, options.guidance_scale, inputs)
