# SPDX-License-Identifier: Apache-2.0
"""Classifiers that judge samples, and what to say where one of them cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from medcf.runtime.weights import load_weights

__all__ = ["Judge", "load_judges"]


@dataclass
class Judge:
    """A classifier that recognizes samples, whose weights are loaded when they are needed.

    Attributes:
        network: maps images (B, C, *spatial) in [-1, 1] to logits (B, K), or to a mapping with ``quality`` (B,).
        weights: file of each part of the network, by the part's name; ``""`` is the whole network, and a part whose
            file is None stays as it is.
        threshold: quality from which an image belongs to class 1; for networks that return ``quality``.
    """

    network: nn.Module
    weights: Mapping[str, str | Path | None] = field(default_factory=dict)
    threshold: float = 0.5

    def load(self, device: torch.device | str) -> None:
        """Load the weights.

        Raises:
            FileNotFoundError: if a file does not exist.
            ValueError: if a file does not fit.
        """
        for part, path in self.weights.items():
            if path is not None:
                load_weights(self.network.get_submodule(part), path)
        self.network.eval().to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Recognize the class (B,) of images (B, C, *spatial)."""
        output = self.network(images)
        return (output["quality"] >= self.threshold).long() if isinstance(output, Mapping) else output.argmax(1)


def load_judges(judges: Mapping[str, Judge], like: Tensor) -> tuple[dict[str, Judge], list[str]]:
    """Load the weights of judges, and leave out those that have none or cannot read the images.

    Args:
        judges: the judges, by name.
        like: an image (C, *spatial) to try, on the device of the judges.

    Returns:
        The judges that are ready, and a sentence on each of the others.
    """
    ready, skipped = {}, []
    for name, judge in judges.items():
        try:
            judge.load(like.device)
            judge(like[None])
            ready[name] = judge
        except FileNotFoundError as error:
            skipped.append(f"{name} was not asked: {error}")
        except (ValueError, RuntimeError) as error:
            skipped.append(f"{name} was not asked, because it does not fit these images: {error}")
    return ready, skipped
