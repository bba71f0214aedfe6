# SPDX-License-Identifier: Apache-2.0
"""Is an input unlike the data the model was trained on?

Three views of an image or volume are compared with those of training images: what the explained classifier sees, how
the picture looks (brightness by location, spectrum), and what the segmenter, if any, finds in it. Each view is a
vector. Its squared Mahalanobis distance to the training images is divided by a high quantile of the distances of
held-out images. The largest result, divided by its own quantile, is the novelty: above 1 is out of distribution.

Sources: Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
NeurIPS 2018 (Mahalanobis distance of features); Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
covariance matrices", 2004.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from monai.networks.layers import Pool
from torch import Tensor, nn

from medcf.registry import METRICS

__all__ = ["VIEWS", "NoveltyDetector", "fit_novelty"]

logger = logging.getLogger(__name__)

VIEWS = ("features", "appearance", "anatomy")

_BLOCKS = {2: (4, 5), 3: (4, 5, 4)}  # locations at which brightness is compared, by spatial dimensions
_BANDS = 8  # of the spectrum


class NoveltyDetector(nn.Module):
    """Scores how unlike the training images an image is.

    Args:
        classifier: the explained classifier.
        segmenter: images to logits (B, K, *spatial), for the third view; None omits it.
        state: result of `fit_novelty`; without it only `views` works.
        features: images to the first view (B, F), non-negative; None uses ``classifier.features``. For MONAI's
            DenseNet, whose ``features`` are maps, pass `medcf.networks.pooled_features` of it.

    Raises:
        ValueError: if ``state`` is incomplete or belongs to other networks.
    """

    def __init__(
        self,
        classifier: Any,
        segmenter: Callable[[Tensor], Tensor] | None = None,
        state: Mapping[str, Tensor] | None = None,
        *,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.segmenter = segmenter
        self.features = classifier.features if features is None else features
        self.state = dict(state or {})
        names = VIEWS if segmenter is not None else VIEWS[:2]
        expected = {f"{view}.{name}" for view in names for name in ("mean", "whitening", "quantile")} | {"threshold"}
        expected |= {"size", "probe"}
        if state is not None and set(self.state) != expected:
            raise ValueError(
                f"The novelty statistics lack {', '.join(sorted(expected - set(self.state))) or 'nothing'} and hold "
                f"{', '.join(sorted(set(self.state) - expected)) or 'nothing'} that does not belong there; "
                "recompute them with the bundle's calibrate.json over inference.json."
            )
        if state is not None:  # statistics for other weights must fail here instead of misjudging every image
            probe = self.probe(self.state["size"].tolist())
            if probe.shape != self.state["probe"].shape or not torch.allclose(probe, self.state["probe"], 0.02, 0.02):
                raise ValueError(
                    "The novelty statistics belong to other weights of the classifier or the segmenter; "
                    "recompute them with the bundle's calibrate.json over inference.json."
                )

    @torch.no_grad()
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Score images.

        Args:
            image: (B, 1, *spatial) in [-1, 1], two or three axes; volumes are -1 outside the brain.

        Returns:
            ``novelty`` (B,), ``out_of_distribution`` (B,) bool, its ``novelty_threshold`` (B,), which is 1, and
            ``novelty_<view>`` (B,) for each view in the same unit.

        """
        scores = {}
        for name, vectors in self.views(image).items():
            distance = (vectors - self.state[f"{name}.mean"].to(vectors)) @ self.state[f"{name}.whitening"].to(vectors)
            scores[name] = distance.square().sum(1) / self.state[f"{name}.quantile"].to(vectors)
        threshold = self.state["threshold"].to(image)
        scores = {f"novelty_{name}": score / threshold for name, score in scores.items()}
        novelty = torch.stack(list(scores.values())).amax(0)
        return {
            "out_of_distribution": ~(novelty <= 1),  # NaN is not a reason to trust the image
            "novelty": novelty,
            "novelty_threshold": torch.ones_like(novelty),
            **scores,
        }

    def probe(self, size: Sequence[int]) -> Tensor:
        """Compute the views of a fixed picture of a given size: they distinguish these networks from others."""
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        picture = reduce(torch.mul, _along([torch.sin(torch.linspace(0, 9, n, device=device)) for n in size]))
        return torch.cat([vectors[0].cpu() for vectors in self.views(picture[None, None]).values()])

    @torch.no_grad()
    def views(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the vectors (B, .) of each view for images (B, 1, *spatial) in [-1, 1].

        Raises:
            ValueError: if the features are maps.
        """
        features = self.features(image)
        if features.ndim != 2:
            raise ValueError(
                f"features={tuple(features.shape)} must be (B, F): for MONAI's DenseNet, give "
                "functools.partial(medcf.networks.pooled_features, classifier) as features."
            )
        found = {
            "features": features.float().clamp_min(0).sqrt(),  # makes the tail less heavy
            "appearance": _appearance(image),
        }
        return found if self.segmenter is None else found | {"anatomy": _anatomy(self.segmenter(image))}


def fit_novelty(
    detector: NoveltyDetector,
    training: Iterable[Tensor],
    held_out: Iterable[Tensor],
    quantile: float = 0.995,
) -> dict[str, Tensor]:
    """Learn what familiar images look like, and how far held-out images are from them.

    Args:
        detector: computes the views.
        training: batches (B, 1, *spatial) of training images, a few hundred or more in total; fewer than 20 cause a
            warning, as do too few held-out images.
        held_out: batches of images on which no network was trained, for the quantiles.
        quantile: fraction of the held-out images that must not be flagged.

    Returns:
        Plain tensors for the detector's ``state``: mean, whitening matrix and quantile of each view, and the threshold.

    Raises:
        ValueError: if there are too few images.
    """
    from sklearn.covariance import LedoitWolf

    known, sizes = _views(detector, training)
    unseen, _ = _views(detector, held_out)
    counts = [len(next(iter(views.values()), ())) for views in (known, unseen)]
    if min(counts) < 2:
        raise ValueError(f"{counts[0]} training and {counts[1]} held-out images are too few: use hundreds.")
    if min(counts) < 20:
        logger.warning(
            "%d training and %d held-out images are few: of new images of the same kind about "
            "one in %d will be flagged. Use hundreds.",
            *counts,
            counts[1] + 1,
        )
    state: dict[str, Tensor] = {"size": torch.tensor(sizes), "probe": detector.probe(sizes)}
    ratios = []
    for name, vectors in known.items():
        tests = unseen[name]
        scale = vectors.std(0).clamp_min(0.01)  # an entry that never varies must not dominate
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
    """Compute the vectors of all images in float64 on the CPU, and the image size."""
    parts: dict[str, list[Tensor]] = {}
    size: list[int] = []
    for batch in batches:
        size = list(batch.shape[2:])
        for name, vectors in detector.views(batch).items():
            parts.setdefault(name, []).append(vectors.double().cpu())
    return {name: torch.cat(vectors) for name, vectors in parts.items()}, size


def _appearance(image: Tensor) -> Tensor:
    """Return local brightness, its quantiles (of a volume: in the brain), and the log power spectrum by radius."""
    plane = image[:, 0].float()
    axes = tuple(range(1, plane.ndim))
    blocks = Pool[Pool.ADAPTIVEAVG, len(axes)](_BLOCKS[len(axes)])(plane[:, None]).flatten(1)
    values = plane.flatten(1)
    if len(axes) == 3:
        values = values.where(values > -1, torch.nan)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95, 0.99], device=image.device)
    quantiles = values.nanquantile(levels, dim=1).T.nan_to_num(-1)
    power = torch.fft.rfftn(plane - plane.mean(axes, keepdim=True), dim=axes, norm="ortho").abs().square()
    lengths = plane.shape[1:]
    frequencies = [torch.fft.fftfreq(length, device=image.device) for length in lengths[:-1]]
    frequencies.append(torch.fft.rfftfreq(lengths[-1], device=image.device))
    radius = reduce(torch.add, _along([frequency.square() for frequency in frequencies])).sqrt()
    ring = (radius / 0.5 * _BANDS).long().clamp(max=_BANDS - 1)
    bands = [power[:, ring == band].mean(1) for band in range(_BANDS)]
    return torch.cat([blocks, quantiles, torch.stack(bands, 1).clamp_min(1e-6).log()], dim=1)


def _anatomy(logits: Tensor) -> Tensor:
    """Return the share, position and extent of each structure, and the segmenter's certainty."""
    probabilities = logits.float().softmax(1)
    spatial = tuple(range(2, logits.ndim))
    axes = _along([torch.linspace(-1, 1, length, device=logits.device) for length in logits.shape[2:]])
    area = probabilities.mean(spatial)
    weight = (probabilities / probabilities.sum(spatial, keepdim=True).clamp_min(1.0))[:, 1:2]  # the skull
    center = [(weight * axis).sum(spatial) for axis in axes]
    extent = [(weight * axis.square()).sum(spatial) for axis in axes]
    sure = probabilities.amax(1).mean([axis - 1 for axis in spatial])[:, None]
    return torch.cat([area.clamp_min(1e-4).log(), *center, *extent, sure], dim=1)


def _along(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Shape each vector to lie along its own axis, so that they broadcast to a grid."""
    return [
        vector.reshape([-1 if place == axis else 1 for place in range(len(vectors))])
        for axis, vector in enumerate(vectors)
    ]


METRICS.add("novelty", "Distance of an input from the training images, calibrated on held-out ones", NoveltyDetector)
