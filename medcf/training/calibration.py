# SPDX-License-Identifier: Apache-2.0
"""The last step of a bundle's training: learning what is familiar to its networks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor

from medcf.metrics.novelty import NoveltyDetector, fit_novelty
from medcf.training.state import save_atomically

__all__ = ["calibrate_novelty"]

logger = logging.getLogger(__name__)


def calibrate_novelty(
    detector: NoveltyDetector,
    training: Iterable[Mapping[str, Any]],
    held_out: Iterable[Mapping[str, Any]],
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    quantile: float = 0.995,
) -> float:
    """Fit the statistics of a novelty detector and write them, on the main process.

    Args:
        detector: its networks must be the trained ones; they are set to eval mode.
        training: batches with ``image`` (B, 1, *spatial) in [-1, 1], from the data on which the networks were trained.
        held_out: batches of other subjects; iterated twice.
        path: file for the statistics, plain tensors.
        device: device of the networks.
        quantile: fraction of the held-out images that must not be flagged.

    Returns:
        Fraction of the held-out images that are flagged, about ``1 - quantile``; NaN on other processes.
    """
    if idist.get_rank() > 0:
        return float("nan")

    def images(batches: Iterable[Mapping[str, Any]]) -> Iterator[Tensor]:
        for batch in batches:
            yield torch.as_tensor(batch["image"]).as_subclass(Tensor).to(device)

    detector.eval()
    detector.state = fit_novelty(detector, images(training), images(held_out), quantile)
    save_atomically(detector.state, path)
    flags = torch.cat([detector(image)["out_of_distribution"].cpu() for image in images(held_out)])
    share = float(flags.float().mean())
    logger.info("Wrote %s; %.1f %% of %d held-out images are flagged.", path, 100 * share, len(flags))
    return share
