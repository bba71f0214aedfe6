# SPDX-License-Identifier: Apache-2.0
"""The maps that ``benchmarks.localization`` compares: counterfactual differences, saliency, and uninformative maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.layers import GaussianFilter
from monai.visualize import GradCAM, OcclusionSensitivity, SmoothGrad
from skimage.filters import sobel
from torch import Tensor, nn

from medcf.inferers import SeededExplanation
from medcf.transforms import DifferenceMap

__all__ = ["SMOOTHING", "Cases", "difference_maps", "reference_maps", "saliency_maps"]

SMOOTHING = 2.0  # pixels; the saliency maps are smooth by construction, so one row of ours is smoothed
STD_FLOOR = 0.05  # image units added to the spread over seeds before it divides


@dataclass(frozen=True)
class Cases:
    """Inputs that the classifier calls non-standard, with what truly changes.

    Attributes:
        image: inputs (N, 1, H, W) in [-1, 1].
        truth: the same subjects' standard planes, same shape.
        change: true change (N, 1, H, W), boolean, by kind.
        organ: the heads (N, 1, H, W), boolean.
        case: names, which seed the noise.
        left_out: inputs that the classifier calls standard already.
    """

    image: Tensor
    truth: Tensor
    change: dict[str, Tensor]
    organ: Tensor
    case: list[str]
    left_out: int


def difference_maps(cases: Cases, found: SeededExplanation) -> Iterator[tuple[str, Tensor]]:
    """Yield maps (N, 1, H, W), not negative, from counterfactuals of several seeds."""
    make = DifferenceMap()

    def maps(name: str, seeds: int, floor: bool) -> Tensor:
        return torch.stack(
            [
                make(image, found.pred[:seeds, index], found.reconstruction[:seeds, index] if floor else None)[name]
                for index, image in enumerate(cases.image)
            ]
        )

    count = len(found.pred)
    yield "difference, 1 seed", maps("absolute", 1, False)
    yield "difference minus floor, 1 seed", maps("absolute", 1, True)
    yield "signed minus floor, 1 seed", maps("signed", 1, True).abs()
    if count > 1:
        yield f"difference, {count} seeds", maps("absolute", count, False)
        yield f"signed, {count} seeds", maps("signed", count, False).abs()
        yield f"difference minus floor, {count} seeds", maps("absolute", count, True)
        signed, spread = maps("signed", count, True), maps("signed_std", count, True)
        yield f"signed minus floor, {count} seeds", signed.abs()
        yield f"signed minus floor over its spread, {count} seeds", signed.abs() / (spread + STD_FLOOR)
    blur = GaussianFilter(2, SMOOTHING).to(cases.image.device)
    yield f"signed minus floor, {count} seeds, smoothed", blur(maps("signed", count, True)).abs()


def saliency_maps(cases: Cases, classifier: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield MONAI's saliency maps (N, 1, H, W), not negative, for the class that the classifier says."""
    with torch.no_grad():
        said = classifier(cases.image).argmax(1).tolist()
    images = cases.image.split(1)
    for name, layer in (("GradCAM, last block", "predictor.blocks.4"), ("GradCAM, third block", "predictor.blocks.2")):
        # MONAI's default postprocessing turns the map upside down and stretches it to its own range.
        cam = GradCAM(classifier, layer, postprocessing=lambda values: values)
        # The weights ask for no gradient, so the image has to.
        cams = [cam(x.clone().requires_grad_(), class_idx=c).detach() for x, c in zip(images, said, strict=True)]
        yield name, torch.cat(cams).clamp(min=0)
    # One channel would make MONAI take a sigmoid of the logits, whatever the number of classes.
    occlude = OcclusionSensitivity(
        classifier, mask_size=8, n_batch=32, overlap=0.5, verbose=False, activate=lambda logits: logits.softmax(1)
    )
    with torch.no_grad():
        full = classifier(cases.image).softmax(1)
        # The map is (1, classes, H, W), whatever its documentation says.
        drops = [full[i, c] - occlude(x)[0][:, c : c + 1] for i, (x, c) in enumerate(zip(images, said, strict=True))]
    yield "OcclusionSensitivity", torch.cat([drop.as_subclass(Tensor) for drop in drops]).clamp(min=0)
    torch.manual_seed(0)
    smooth = SmoothGrad(classifier, verbose=False)
    yield "SmoothGrad", torch.cat([smooth(x, index=c).detach() for x, c in zip(images, said, strict=True)]).abs()


def reference_maps(cases: Cases) -> Iterator[tuple[str, Tensor]]:
    """Yield what knows everything and what knows nothing, (N, 1, H, W)."""
    yield "paired true image minus input (perfect counterfactual)", (cases.truth - cases.image).abs()
    edges = np.stack([sobel(image[0].cpu().numpy()) for image in cases.image])[:, None]
    yield "edges of the input (Sobel)", torch.from_numpy(edges).to(cases.image)
    yield "brightness of the input", (cases.image + 1).clamp(min=0)
    yield "random", torch.rand(cases.image.shape, generator=torch.Generator().manual_seed(0)).to(cases.image)
    yield "uniform (chance)", torch.ones_like(cases.image)
