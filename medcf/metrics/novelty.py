# SPDX-License-Identifier: Apache-2.0
"""Is an input unlike anything the model was trained on?

Three views of an image are compared with those of training images: what the explained classifier sees, how the picture
looks (brightness by place, spectrum), and what the segmenter finds in it. Each view is a vector whose squared
Mahalanobis distance to the training images is divided by a high quantile of the distances of held-out images. The
largest of them, divided in turn by its own quantile, is the novelty: above 1 is out of distribution.

Sources: Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
NeurIPS 2018 (Mahalanobis distance of features); Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
covariance matrices", 2004.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medcf.registry import METRICS

__all__ = ["VIEWS", "NoveltyDetector", "fit_novelty"]

VIEWS = ("features", "appearance", "anatomy")

_BLOCKS = (4, 5)  # places at which brightness is compared
_BANDS = 8  # of the spectrum


class NoveltyDetector(nn.Module):
    """Scores how unlike the training images an image is.

    Args:
        classifier: the explained classifier; its ``features(image)`` (B, F) are the first view.
        segmenter: images to logits (B, K, *spatial), the third view.
        state: what `fit_novelty` returned; without it only `views` works.

    Raises:
        ValueError: ``state`` is incomplete or belongs to other networks.
    """

    def __init__(
        self,
        classifier: Any,
        segmenter: Callable[[Tensor], Tensor],
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.segmenter = segmenter
        self.state = dict(state or {})
        expected = {f"{view}.{name}" for view in VIEWS for name in ("mean", "whitening", "quantile")} | {"threshold"}
        expected |= {"size", "probe"}
        if state is not None and set(self.state) != expected:
            raise ValueError(
                "The novelty statistics lack " + ", ".join(sorted(expected - set(self.state)) or ["nothing"]) + "; "
                "make them anew with the bundle's calibrate.json."
            )
        if state is not None:  # statistics of other weights are to fail here, not to judge every image wrongly
            probe = self.probe(self.state["size"].tolist())
            if probe.shape != self.state["probe"].shape or not torch.allclose(probe, self.state["probe"], 0.02, 0.02):
                raise ValueError(
                    "The novelty statistics belong to other weights of the classifier or the segmenter; "
                    "make them anew with the bundle's calibrate.json."
                )

    @torch.no_grad()
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Score images.

        Args:
            image: (B, 1, H, W) in [-1, 1].

        Returns:
            ``novelty`` (B,), ``out_of_distribution`` (B,) bool, its ``novelty_threshold`` (B,) which is 1, and
            ``novelty_<view>`` (B,) of each view in the same unit.

        """
        scores = {}
        for name, vectors in self.views(image).items():
            distance = (vectors - self.state[f"{name}.mean"].to(vectors)) @ self.state[f"{name}.whitening"].to(vectors)
            scores[name] = distance.square().sum(1) / self.state[f"{name}.quantile"].to(vectors)
        threshold = self.state["threshold"].to(image)
        scores = {f"novelty_{name}": score / threshold for name, score in scores.items()}
        novelty = torch.stack(list(scores.values())).amax(0)
        return {
            "out_of_distribution": ~(novelty <= 1),  # a score that is not a number is no reason to trust the image
            "novelty": novelty,
            "novelty_threshold": torch.ones_like(novelty),
            **scores,
        }

    def probe(self, size: Sequence[int]) -> Tensor:
        """Compute the views of a fixed picture of a given size: they tell these networks from others."""
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        rows, columns = (torch.linspace(0, 9, length, device=device) for length in size)
        picture = torch.sin(rows)[:, None] * torch.sin(columns)[None]
        return torch.cat([vectors[0].cpu() for vectors in self.views(picture[None, None]).values()])

    @torch.no_grad()
    def views(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the vectors (B, .) of each view of images (B, 1, H, W) in [-1, 1]."""
        return {
            "features": self.classifier.features(image).float().clamp_min(0).sqrt(),  # not so heavy a tail
            "appearance": _appearance(image),
            "anatomy": _anatomy(self.segmenter(image)),
        }


def fit_novelty(
    detector: NoveltyDetector,
    training: Iterable[Tensor],
    held_out: Iterable[Tensor],
    quantile: float = 0.995,
) -> dict[str, Tensor]:
    """Learn what familiar images look like, and how far held-out ones lie from it.

    Args:
        detector: gives the views.
        training: batches (B, 1, H, W) of training images, a few hundred or more in all.
        held_out: batches of images that no network was trained on, for the quantiles.
        quantile: share of the held-out images that must not be flagged.

    Returns:
        Plain tensors for the detector's ``state``: mean, whitening matrix and quantile of each view, and the threshold.

    Raises:
        ValueError: too few images.
    """
    from sklearn.covariance import LedoitWolf

    known, sizes = _views(detector, training)
    unseen, _ = _views(detector, held_out)
    state: dict[str, Tensor] = {"size": torch.tensor(sizes), "probe": detector.probe(sizes)}
    ratios = []
    for name in VIEWS:
        vectors, tests = known[name], unseen[name]
        if min(len(vectors), len(tests)) < 20:
            raise ValueError(f"{len(vectors)} training and {len(tests)} held-out images are too few: use hundreds.")
        scale = vectors.std(0).clamp_min(0.01)  # an entry that never varies must not decide alone
        estimate = LedoitWolf().fit((vectors / scale).numpy())
        mean = torch.from_numpy(estimate.location_) * scale
        # precision = L L^T, so |(x - mean) L|^2 is the squared Mahalanobis distance
        whitening = torch.linalg.cholesky(torch.from_numpy(estimate.precision_)) / scale[:, None]
        distance = ((tests - mean) @ whitening).square().sum(1)
        limit = distance.quantile(quantile)
        ratios.append(distance / limit)
        state |= {f"{name}.mean": mean.float(), f"{name}.whitening": whitening.float()}
        state[f"{name}.quantile"] = limit.float()
    state["threshold"] = torch.stack(ratios).amax(0).quantile(quantile).float()
    return {name: value.clone().contiguous() for name, value in state.items()}


def _views(detector: NoveltyDetector, batches: Iterable[Tensor]) -> tuple[dict[str, Tensor], list[int]]:
    """Compute the vectors of all images in float64 on the CPU, and the images' size."""
    parts: dict[str, list[Tensor]] = {name: [] for name in VIEWS}
    size: list[int] = []
    for batch in batches:
        size = list(batch.shape[2:])
        for name, vectors in detector.views(batch).items():
            parts[name].append(vectors.double().cpu())
    return {name: torch.cat(vectors) if vectors else torch.empty(0, 1) for name, vectors in parts.items()}, size


def _appearance(image: Tensor) -> Tensor:
    """Brightness by place, its quantiles, and the log power spectrum in rings."""
    plane = image[:, 0].float()
    blocks = nn.functional.adaptive_avg_pool2d(plane[:, None], _BLOCKS).flatten(1)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95, 0.99], device=image.device)
    quantiles = plane.flatten(1).quantile(levels, dim=1).T
    height, width = plane.shape[1:]
    power = torch.fft.rfft2(plane - plane.mean((1, 2), keepdim=True), norm="ortho").abs().square()
    vertical = torch.fft.fftfreq(height, device=image.device)[:, None]
    horizontal = torch.fft.rfftfreq(width, device=image.device)[None]
    ring = ((vertical.square() + horizontal.square()).sqrt() / 0.5 * _BANDS).long().clamp(max=_BANDS - 1)
    bands = [power[:, ring == band].mean(1) for band in range(_BANDS)]
    return torch.cat([blocks, quantiles, torch.stack(bands, 1).clamp_min(1e-6).log()], dim=1)


def _anatomy(logits: Tensor) -> Tensor:
    """Share, place and extent of each structure, and how sure the segmenter is."""
    probabilities = logits.float().softmax(1)
    height, width = logits.shape[2:]
    rows = torch.linspace(-1, 1, height, device=logits.device)[:, None]
    columns = torch.linspace(-1, 1, width, device=logits.device)[None]
    area = probabilities.mean((2, 3))
    weight = (probabilities / probabilities.sum((2, 3), keepdim=True).clamp_min(1.0))[:, 1:2]  # the skull
    center = [(weight * axis).sum((2, 3)) for axis in (rows, columns)]
    extent = [(weight * axis.square()).sum((2, 3)) for axis in (rows, columns)]
    sure = probabilities.amax(1).mean((1, 2))[:, None]
    return torch.cat([area.clamp_min(1e-4).log(), *center, *extent, sure], dim=1)


METRICS.add("novelty", "Distance of an input from the training images, calibrated on held-out ones", NoveltyDetector)
