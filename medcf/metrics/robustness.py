# SPDX-License-Identifier: Apache-2.0
"""Is a flip stable? Under harmless disturbances of the image, and with another seed of the method."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from medcf.metrics.exclusions import (
    ALREADY_TARGET,
    INPUT_NOT_FINITE,
    NOT_FLIPPED,
    ExclusionMetric,
    FlipMetric,
    Summary,
    calls_target,
    left_out_inputs,
    summarize,
)
from medcf.registry import METRICS
from medcf.runtime.frozen import frozen

__all__ = ["DISTURBANCES", "FlipSurvival", "SeedAgreement", "flip_survival", "perturbations"]

#: Names of all harmless disturbances.
DISTURBANCES = ("blur", "noise", "shift", "jpeg")


def _shifted(images: Tensor, pixels: int) -> dict[str, Tensor]:
    """Move images along each spatial axis, in both directions, repeating the edge."""
    axes = images.ndim - 2
    padded = pad(images, (pixels,) * (2 * axes), mode="replicate")
    moved = {}
    for axis in range(axes):
        for step in (-pixels, pixels):
            start = [pixels - step if axis == other else pixels for other in range(axes)]
            window = [slice(low, low + size) for low, size in zip(start, images.shape[2:], strict=True)]
            moved[f"shift{step:+d}_axis{axis}"] = padded[(slice(None), slice(None), *window)]
    return moved


def _jpeg(images: Tensor, quality: int) -> Tensor:
    """Write each image as an 8-bit JPEG file and read it back: RGB together, other channels one by one."""
    from PIL import Image

    if images.ndim != 4:
        raise ValueError(f"'jpeg' is a disturbance for images (B, C, H, W), got {tuple(images.shape)}: leave it out.")
    stacked = images.reshape(-1, 3 if images.shape[1] == 3 else 1, *images.shape[2:])
    pixels = ((stacked.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = []
    for array in pixels:
        file = io.BytesIO()
        Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)).reshape(array.shape))
    return (torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).reshape(images.shape) / 127.5 - 1).to(images)


def perturbations(
    images: Tensor,
    *,
    names: Sequence[str] = ("blur", "noise"),
    blur_sigma: float = 0.5,
    noise_std: float = 0.03,
    shift: int = 1,
    jpeg_quality: int = 75,
    seed: int = 0,
    shared_noise: bool = False,
) -> dict[str, Tensor]:
    """Disturb images like a harmless change of scanner settings, probe position or file format.

    Args:
        images: (B, C, *spatial) in [-1, 1].
        names: which of ``DISTURBANCES``.
        blur_sigma: standard deviation of the Gaussian blur, in pixels.
        noise_std: standard deviation of the added noise, in units of the image (whose range is 2).
        shift: number of pixels to move, in both directions along each axis; edges are repeated.
        jpeg_quality: Pillow's quality of the JPEG file, 1 to 95; images (B, C, H, W) only.
        seed: seed for the noise.
        shared_noise: draw one noise image for all, so that no case depends on its position in the batch.

    Returns:
        The disturbed images by name; those of ``shift`` are named ``shift+1_axis0`` and so on.

    Raises:
        ValueError: if a name is unknown, or ``jpeg`` is used with a volume.
    """
    from monai.networks.layers import GaussianFilter

    unknown = [name for name in names if name not in DISTURBANCES]
    if unknown or not names:
        raise ValueError(f"names={tuple(names)}: choose at least one, and only from {DISTURBANCES}.")
    disturbed: dict[str, Tensor] = {}
    for name in names:
        if name == "blur":
            disturbed[name] = GaussianFilter(images.ndim - 2, sigma=blur_sigma).to(images)(images)
        elif name == "noise":
            generator = torch.Generator(device="cpu").manual_seed(seed)
            noise = torch.randn(images.shape[1:] if shared_noise else images.shape, generator=generator).to(images)
            disturbed[name] = (images + noise_std * noise).clamp(-1, 1)
        elif name == "shift":
            disturbed |= _shifted(images, shift)
        else:
            disturbed[name] = _jpeg(images, jpeg_quality)
    return disturbed


@torch.no_grad()
def flip_survival(
    classifier: Callable[[Tensor], Tensor], images: Tensor, target: int = 1, **settings: Any
) -> dict[str, Tensor]:
    """Tell which counterfactuals keep the target class after a harmless disturbance; adversarial ones do not.

    Args:
        classifier: the explained classifier, images to logits (B, K).
        images: counterfactuals, (B, C, *spatial) in [-1, 1].
        target: index of the target class.
        settings: options of :func:`perturbations`; ``names=DISTURBANCES`` requests all of them.

    Returns:
        A Boolean (B,) for each disturbance (``shift``: the class survived every direction), and ``all``: it survived
        all of them.
    """
    kept: dict[str, Tensor] = {}
    with frozen(classifier):
        for variant, disturbed in perturbations(images, **settings).items():
            name = "shift" if variant.startswith("shift") else variant
            survived = calls_target(classifier(disturbed).as_subclass(Tensor), target)
            kept[name] = kept[name] & survived if name in kept else survived
    return {**kept, "all": torch.stack(list(kept.values())).all(0)}


class FlipSurvival(ExclusionMetric):
    """Fraction of the flips that survive every harmless disturbance.

    Only flips count: inputs of another class whose counterfactual the classifier assigns to the target. A gradient
    attack flips everything and fails here, mostly under shifts and blur (noise of 0.03 and JPEG at 75 leave it intact);
    a change of anatomy does not depend on single pixels. Read the fraction together with ``counts()``: a method with a
    single flip can reach 100 %. ``by_disturbance`` shows the contribution of each disturbance.

    Args:
        classifier, target: see :func:`flip_survival`.
        names: which of ``DISTURBANCES``; volumes have no ``jpeg``.
        settings: options of :func:`perturbations`; the noise is one image for all cases.

    Example:
        >>> def classifier(images):
        ...     return torch.stack([torch.zeros(len(images)), images[:, 0, 4, 4]], dim=1)
        >>> inputs = torch.full((2, 1, 9, 9), -1.0)
        >>> speck = inputs[:1].clone()
        >>> speck[..., 4, 4] = 0.2
        >>> metric = FlipSurvival(classifier)
        >>> _ = metric(torch.cat([speck, -inputs[:1]]), inputs)
        >>> metric.aggregate()
        0.5
        >>> {name: row.mean for name, row in metric.by_disturbance().items()}
        {'blur': 0.5, 'noise': 1.0, 'shift': 0.5, 'jpeg': 1.0, 'all': 0.5}
    """

    higher_is_better = True
    is_share = True
    reasons = (INPUT_NOT_FINITE, ALREADY_TARGET, NOT_FLIPPED)

    def __init__(
        self,
        classifier: Callable[[Tensor], Tensor],
        target: int = 1,
        names: Sequence[str] = DISTURBANCES,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.target = target
        self.names = tuple(names)
        self.settings = {"shared_noise": True, **settings}

    @torch.no_grad()
    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Disturb the counterfactuals (B, C, *spatial) in [-1, 1]: (B, 2 + D), which survive all and each."""
        if y is None:
            raise ValueError("FlipSurvival needs the input images as y.")
        with frozen(self.classifier):
            before, after = (self.classifier(images).as_subclass(Tensor) for images in (y, y_pred))
        kept = flip_survival(self.classifier, y_pred, self.target, names=self.names, **self.settings)
        columns = torch.stack([kept[name] for name in ("all", *self.names)], dim=1)
        return self.entry(columns, *left_out_inputs(before, self.target), ~calls_target(after, self.target))

    def by_disturbance(self, **options: Any) -> dict[str, Summary]:
        """Return the fraction for each disturbance and for ``all``; ``options`` are those of ``summarize``."""
        columns = {name: self._column(2 + place) for place, name in enumerate(self.names)} | {"all": self._column(1)}
        return {name: summarize(values, share=True, **options) for name, values in columns.items()}


class SeedAgreement(FlipMetric):
    """Fraction of the flips that flip again when the method draws other noise.

    For inputs whose counterfactual with the first seed is a flip: the mean fraction of the other seeds that also flip.
    An explanation that depends on one draw is luck. A method without noise scores 1 by construction.

    Example:
        >>> nsp, sp = [1.0, 0.0], [0.0, 1.0]
        >>> metric = SeedAgreement(target=1)
        >>> _ = metric(torch.tensor([[sp, sp, nsp], [sp, sp, sp], [nsp, sp, sp]]), torch.tensor([nsp, nsp, nsp]))
        >>> metric.aggregate(), metric.counts().entered
        (0.75, 2)
    """

    needs: ClassVar = {"y_pred": "logits_of_seeds({on})", "y": "logits(image)"}
    reasons = (INPUT_NOT_FINITE, ALREADY_TARGET, NOT_FLIPPED)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare the logits (B, S, K) for S >= 2 seeds, the reported one first, with the inputs' (B, K)."""
        if y is None:
            raise ValueError("SeedAgreement needs the logits of the inputs as y.")
        if y_pred.ndim != 3 or y_pred.shape[1] < 2 or y_pred.shape[::2] != y.shape:
            raise ValueError(
                f"SeedAgreement needs logits (B, S, K) of S >= 2 seeds and (B, K) of the inputs, got "
                f"{tuple(y_pred.shape)} and {tuple(y.shape)}."
            )
        flips = torch.stack([calls_target(logits, self.target) for logits in y_pred.unbind(1)], dim=1)
        return self.entry(flips[:, 1:].float().mean(1), *left_out_inputs(y, self.target), ~flips[:, 0])


METRICS.add("flip_survival", "fraction of flips that survive blur, noise, shifts and JPEG", FlipSurvival)
METRICS.add("seed_agreement", "fraction of flips that flip again with another seed", SeedAgreement)
