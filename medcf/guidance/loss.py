# SPDX-License-Identifier: Apache-2.0
"""The counterfactual loss of Diff-ICE: toward the target class, close to the original image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from monai.utils import ensure_tuple

from medcf.guidance.perceptual import PerceptualFeatures
from medcf.runtime.choices import check_choice

__all__ = ["BoundLoss", "CounterfactualLoss", "LossTerms"]

Features = torch.Tensor | Sequence[torch.Tensor]
BoundLoss = Callable[[torch.Tensor], "LossTerms"]


class LossTerms(NamedTuple):
    """A counterfactual loss and its parts.

    Attributes:
        total: scalar, the sum over the batch of the weighted terms; what guidance differentiates.
        classification: class loss per sample (B,), before its scale.
        perceptual: perceptual loss per sample (B,), before its scale; zero without a perceptual network.
        logits: the classifier's logits (B, K), so that confidences need no further network call.
        classifier_scale: lambda_c, the weight of the class loss, a number or (B,).
        perceptual_scale: lambda_p, the weight of the perceptual loss.
    """

    total: torch.Tensor
    classification: torch.Tensor
    perceptual: torch.Tensor
    logits: torch.Tensor
    classifier_scale: float | torch.Tensor = 1.0
    perceptual_scale: float = 1.0


class CounterfactualLoss:
    """Sum over the batch of lambda_c L_c(f(x0), y) + lambda_p mean_features (phi(x0) - phi(x))^2 (Diff-ICE, eq. 3).

    MEAN over features, SUM over the batch: the gradient of one image does not depend on the other images in the batch.
    With several feature layers the term is the mean over layers of the mean over features, so a large early layer does
    not drown out a small deep one. The loss is not for training: it changes neither the networks' mode nor their
    ``requires_grad`` (see ``frozen``).

    Args:
        classifier: image (B, C, *spatial) in [-1, 1] to logits (B, K).
        perceptual: image to features, a tensor or a list of them (``PerceptualFeatures``); None omits the term.
        classifier_scale: lambda_c, a number or one per sample (B,).
        perceptual_scale: lambda_p.
        class_loss: "cross_entropy" (the paper), or "logit", minus the target's logit (the code from which the method
            descends).

    Raises:
        ValueError: if the class loss is unknown, or the classifier does not have the target class.
    """

    def __init__(
        self,
        classifier: Callable[[torch.Tensor], torch.Tensor],
        perceptual: Callable[[torch.Tensor], Features] | None = None,
        classifier_scale: float | torch.Tensor = 40.0,
        perceptual_scale: float = 30.0,
        class_loss: Literal["cross_entropy", "logit"] = "cross_entropy",
    ) -> None:
        check_choice("class_loss", class_loss, Literal["cross_entropy", "logit"])
        self.classifier = classifier
        self.perceptual = perceptual
        self.classifier_scale = classifier_scale
        self.perceptual_scale = float(perceptual_scale)
        self.class_loss = class_loss

    def __call__(
        self,
        image: torch.Tensor,
        target: torch.Tensor,
        reference_features: Features | None = None,
        classifier_scale: float | torch.Tensor | None = None,
    ) -> LossTerms:
        """Evaluate the loss.

        Args:
            image: candidate images (B, C, *spatial), usually the predicted clean images.
            target: target class per sample (B,), long.
            reference_features: phi of the ORIGINAL images, from ``features``; None omits the perceptual term.
            classifier_scale: lambda_c for this call, a number or one per sample (B,); None uses the constructor's.

        Returns:
            Loss, its terms per sample and the logits, in float32.
        """
        features, logits = self._evaluate(image, with_features=reference_features is not None)
        if self.class_loss == "logit":
            classification = -logits.gather(1, target[:, None])[:, 0]
        else:
            classification = F.cross_entropy(logits, target, reduction="none")
        perceptual = torch.zeros_like(classification)
        if features is not None and reference_features is not None:
            perceptual = _distance(features, ensure_tuple(reference_features, wrap_array=True))
        scale = self.classifier_scale if classifier_scale is None else classifier_scale
        total = (scale * classification + self.perceptual_scale * perceptual).sum()
        return LossTerms(total, classification, perceptual, logits, scale, self.perceptual_scale)

    def features(self, image: torch.Tensor) -> list[torch.Tensor] | None:
        """Return phi(image) as a list of tensors (B, ...), or None without a perceptual network."""
        return None if self.perceptual is None else list(ensure_tuple(self.perceptual(image), wrap_array=True))

    def bind(
        self,
        reference: torch.Tensor,
        target: torch.Tensor,
        classifier_scale: float | torch.Tensor | None = None,
        reference_features: Features | None = None,
    ) -> BoundLoss:
        """Fix the original images and the target; phi of the originals is computed only once.

        Args:
            reference: the ORIGINAL images (B, C, *spatial), in every pass of an iterative method.
            target: target class per sample (B,), long.
            classifier_scale: lambda_c, a number or one per sample (B,); None uses the constructor's.
            reference_features: phi of the originals, if the caller already has it; None computes it.

        Returns:
            A function of the candidate images only.
        """
        if reference_features is None:
            with torch.no_grad():
                reference_features = self.features(reference)
        return lambda image: self(image, target, reference_features, classifier_scale)

    def _evaluate(self, image: torch.Tensor, *, with_features: bool) -> tuple[list[torch.Tensor] | None, torch.Tensor]:
        """Return phi and the logits, from one network call if the classifier itself provides the features."""
        if not with_features:
            return None, self.classifier(image).float()
        if isinstance(self.perceptual, PerceptualFeatures) and self.perceptual.shares_forward_with(self.classifier):
            features, logits = self.perceptual.with_output(image)
            return features, logits.float()
        return self.features(image), self.classifier(image).float()


def _distance(features: list[torch.Tensor], reference: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean squared difference per sample (B,), averaged over layers."""
    pairs = zip(features, reference, strict=True)
    squares = [F.mse_loss(a.float(), b.float(), reduction="none") for a, b in pairs]
    layers = [square.mean(dim=tuple(range(1, square.ndim))) for square in squares]  # no copy of channels-last features
    return torch.stack(layers).mean(dim=0)
