# SPDX-License-Identifier: Apache-2.0
"""Images towards their targets and, beside them, towards the classes they are of: what both change is no class."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medcf.inferers.iterates import Iterates

__all__ = ["BesideOwnClass"]


class BesideOwnClass:
    """A state of 2 B images: B towards their targets, and the same B, from B on, towards their own classes.

    Both have the same noise, because they have the same ids. Images that share input and guidance scale, as targets of
    one input do, share the second; only the first of them runs.

    Args:
        state: the B images.
        own: class that each is of (B,).
        guidance_scale: w of all images, where the state's extras do not say otherwise.
        shared: whether equal inputs start from equal images, as they do in the first pass.
    """

    def __init__(self, state: Iterates, own: torch.Tensor, guidance_scale: float, shared: bool) -> None:
        self.count = len(state.original)
        device = state.original.device
        self.edits = Iterates(
            _twice(state.original),
            torch.cat([state.target, own]),
            [*state.ids, *state.ids],
            state.confidence.repeat(2),
            state.unchanged.repeat(2),
        )
        self.edits.current = _twice(state.current)
        scales = torch.full((self.count,), guidance_scale, device=device)
        extras = {"source": torch.arange(self.count, device=device), "guidance_scale": scales} | state.extras
        self.edits.extras.update({name: values.repeat(2) for name, values in extras.items()})
        sources = extras["source"].tolist() if shared else range(self.count)
        self._keys = list(zip(sources, extras["guidance_scale"].tolist(), strict=True))

    def stacked(self, chosen: Sequence[int]) -> list[int]:
        """Return which of the 2 B images run for the images ``chosen``."""
        return [*chosen, *(self.count + i for i in dict.fromkeys(self._first(chosen)))]

    def difference(self, image: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
        """Return what the targets differ by from the own classes (N, C, *spatial).

        Args:
            image: what became of the images that ``stacked`` names.
            chosen: the N images.
        """
        first = self._first(chosen)
        place = {i: number for number, i in enumerate(dict.fromkeys(first))}
        own = torch.tensor([len(first) + place[i] for i in first], device=image.device)
        return image[: len(first)] - image[own]

    def evaluations(self) -> torch.Tensor:
        """Return the forwards of a row for each of the B images; shared ones count for the first."""
        return self.edits.evaluations.reshape(2, -1).sum(0)

    def _first(self, chosen: Sequence[int]) -> list[int]:
        """Return for each of the images the first of them that has the same input and w."""
        first: dict[tuple[int, float], int] = {}
        return [first.setdefault(self._keys[i], i) for i in chosen]


def _twice(image: torch.Tensor) -> torch.Tensor:
    return image.repeat(2, *[1] * (image.ndim - 1))
