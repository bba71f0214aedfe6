# SPDX-License-Identifier: Apache-2.0
"""Memorization: which generated images are copies of an image that the generator was trained on?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from medcf.metrics.exclusions import Summary, summarize

__all__ = ["PLANTED", "Copies", "CopyDetector", "plant"]

Features = Callable[[Tensor], Tensor]

#: Kinds of copies that can be planted without knowing how an image was made.
PLANTED = ("identical", "mirrored", "shifted", "another gain")


@dataclass(frozen=True, eq=False)
class Copies:
    """What was found of N images.

    Attributes:
        similarity: cosine to the most similar training image (N,).
        nearest: that image's index (N,).
        copied: whether it counts as a copy (N,), bool.
        num_training: number of training images M.
    """

    similarity: Tensor
    nearest: Tensor
    copied: Tensor
    num_training: int

    def of_samples(self) -> Summary:
        """Return the share of the images that are copies, with its exact interval."""
        return summarize(self.copied.double(), share=True)

    def of_training(self) -> Summary:
        """Return the share of the training images that were copied at least once, with its exact interval."""
        hit = torch.zeros(self.num_training, dtype=torch.float64)
        hit[self.nearest[self.copied]] = 1
        return summarize(hit, share=True)


class CopyDetector:
    """Compares images with all images of a training set by features that do not change in a copy.

    What counts as a copy is what the features were trained to ignore: mirroring, shifts, other speckle or gain (pairs
    and `medcf.training.losses.IdentityLoss`). The threshold is set on images that the generator never saw: they
    resemble the training images only as far as two subjects do. How many copies that finds is measured by planting
    some, see `recall`.

    Args:
        features: images (B, C, *spatial) in [-1, 1] to (B, E), such as ``IdentityNetwork.features``.
        training: the images that the generator saw (M, C, *spatial).
        threshold: cosine from which an image counts as a copy; None until `calibrate` sets it.
        batch_size: images per call of the features.

    Example:
        >>> detector = CopyDetector(lambda images: images.flatten(1), torch.eye(3)[:, None, None], threshold=0.99)
        >>> found = detector(torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 0.0]])[:, None, None])
        >>> found.copied.tolist(), found.nearest[0].item(), round(found.similarity[1].item(), 3)
        ([True, False], 1, 0.707)
    """

    def __init__(
        self, features: Features, training: Tensor, threshold: float | None = None, *, batch_size: int = 64
    ) -> None:
        if not len(training):
            raise ValueError("There are no training images to compare with.")
        self.features, self.threshold, self.batch_size = features, threshold, batch_size
        self.gallery = self._embedded(training)

    def calibrate(self, unseen: Tensor, false_alarms: float = 0.05) -> float:
        """Set the threshold so that at most a share of images that were never seen counts as copies.

        Args:
            unseen: real images of other subjects (N, C, *spatial).
            false_alarms: that share.

        Returns:
            The threshold.

        Raises:
            ValueError: if there are too few images to tell such a share.
        """
        if not 0 < false_alarms < 1 or len(unseen) * false_alarms < 1:
            raise ValueError(
                f"{len(unseen)} images cannot show a share of {false_alarms:g}: give {math.ceil(1 / false_alarms)} or "
                "more."
            )
        values = self._nearest(unseen)[0].sort(descending=True).values
        allowed = int(len(values) * false_alarms)
        self.threshold = math.nextafter(float(values[allowed]), math.inf)
        return self.threshold

    def recall(self, planted: Tensor) -> Summary:
        """Return the share of planted copies that is found, with its exact interval.

        Args:
            planted: changed copies of the training images, in their order (M, C, *spatial). One counts as found if it
                is called a copy, of whichever image.
        """
        return summarize(self(planted).copied.double(), share=True)

    def __call__(self, images: Tensor) -> Copies:
        """Compare images (N, C, *spatial) with the training set.

        Raises:
            ValueError: if there is no threshold.
        """
        if self.threshold is None:
            raise ValueError("There is no threshold yet: give one, or calibrate on images that were never seen.")
        similarity, nearest = self._nearest(images)
        return Copies(similarity, nearest, similarity >= self.threshold, len(self.gallery))

    def _nearest(self, images: Tensor) -> Sequence[Tensor]:
        return (self._embedded(images) @ self.gallery.T).max(1)

    @torch.no_grad()
    def _embedded(self, images: Tensor) -> Tensor:
        parts = [normalize(self.features(part).double(), dim=1).cpu() for part in images.split(self.batch_size)]
        return torch.cat(parts)


def plant(images: Tensor, kind: str) -> Tensor:
    """Return changed copies of images, to measure how many a detector finds.

    Args:
        images: (N, C, *spatial) in [-1, 1].
        kind: one of ``PLANTED``: "mirrored" along the last axis, "shifted" by a sixteenth of the grid along the last
            two, "another gain" with gray values raised to the power of 0.7, as a brighter scanner shows them.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind == "identical":
        return images.clone()
    if kind == "mirrored":
        return images.flip(-1)
    if kind == "shifted":
        steps = [max(size // 16, 1) for size in images.shape[-2:]]
        padded = pad(images.flatten(0, -4) if images.ndim > 4 else images, (steps[1], 0, steps[0], 0), mode="replicate")
        return padded[..., : images.shape[-2], : images.shape[-1]].reshape(images.shape)
    if kind == "another gain":
        return ((images + 1) / 2).clamp_min(0) ** 0.7 * 2 - 1
    raise ValueError(f"kind={kind!r} is unknown: use one of {', '.join(PLANTED)}.")
