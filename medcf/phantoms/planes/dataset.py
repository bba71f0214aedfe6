# SPDX-License-Identifier: Apache-2.0
"""Planes as torch datasets: examinations with several planes each, and the same planes as the other site shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medcf.phantoms.cache import RenderedDataset, cached_arrays, make_rows
from medcf.phantoms.head.datasets import SPLITS, subject_seed
from medcf.phantoms.planes.fetal_planes import FetalPlanes, PlaneSample
from medcf.phantoms.planes.prompts import draw_plane_prompt
from medcf.phantoms.planes.sites import SITES
from medcf.phantoms.planes.states import COUNTS, PLANE_NAMES, PlaneState

__all__ = ["PairedPlanesDataset", "PlaneCase", "PlanesDataset", "class_shares", "draw_plane"]

_VERSION = 1  # of the renderer; caches from other versions are not used
_SUBJECTS = 1_000_000


@dataclass(frozen=True)
class PlaneCase:
    """What is drawn for one case before it is rendered.

    Attributes:
        subject: the fetus.
        state: the plane.
        site: where it is examined, "A" or "B".
        prompt: a true description.
        speckle: seeds of two acquisitions with different speckle.
        number: of the plane among those of its subject, from 0.
    """

    subject: FetalPlanes
    state: PlaneState
    site: str
    prompt: str
    speckle: tuple[int, int]
    number: int

    @property
    def other(self) -> str:
        """The site where it is not examined."""
        return next(name for name in SITES if name != self.site)

    def render(self, *, site: str | None = None, again: bool = False, **options: Any) -> PlaneSample:
        """Image the plane at its own site or another, with the case's speckle or, ``again``, with another."""
        chosen = self.site if site is None else site
        return self.subject.render(self.state, site=chosen, seed=self.speckle[int(again)], **options)


def class_shares(balance: str | Sequence[float]) -> NDArray[np.float64]:
    """Return the probability of each class.

    Args:
        balance: "fetal_planes_db" for the imbalance of that set (``COUNTS``), "equal", or six weights.

    Returns:
        (6,) float64 with sum 1.

    Raises:
        ValueError: if the name is unknown, or the weights are not six numbers of at least 0 with a positive sum.
    """
    if isinstance(balance, str):
        named: dict[str, tuple[float, ...]] = {"fetal_planes_db": COUNTS, "equal": (1.0,) * len(PLANE_NAMES)}
        if balance not in named:
            raise ValueError(f"balance={balance!r}: choose {' or '.join(named)}, or give six weights.")
        balance = named[balance]
    weights = np.asarray(balance, np.float64)
    if weights.shape != (len(PLANE_NAMES),) or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"balance={tuple(balance)}: give six weights of at least 0 that are not all 0.")
    return weights / weights.sum()


def draw_plane(
    split: str,
    index: int,
    *,
    seed: int = 0,
    label: int | None = None,
    site: str | None = "A",
    balance: str | Sequence[float] = "fetal_planes_db",
    planes: int = 4,
    name_site: float = 0.5,
    held_out: float = 0.0,
) -> PlaneCase:
    """Draw a case; the result depends only on the arguments.

    Args:
        split: a key of ``SPLITS``.
        index: number of the case; ``planes`` cases in a row are of one subject.
        seed: seed of the whole set.
        label: class; None draws it.
        site: "A" or "B"; None draws it for each subject.
        balance: see `class_shares`.
        planes: planes of each subject.
        name_site: probability that the prompt names the site.
        held_out: probability of a wording in ``HELD_OUT_PROMPTS``.

    Raises:
        ValueError: if the split or the site is unknown, ``planes`` is less than 1, or ``balance`` is none.
    """
    if planes < 1:
        raise ValueError(f"planes={planes}: a subject has at least one.")
    if site is not None and site not in SITES:
        raise ValueError(f"site {site!r} is unknown; choose one of {', '.join(SITES)}")
    shares = class_shares(balance)
    subject = FetalPlanes(subject_seed(split, index // planes, seed))
    if site is None:
        own = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x517E, subject.seed, seed, 2])))
        site = tuple(SITES)[int(own.integers(len(SITES)))]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x97A4, SPLITS[split], index, seed])))
    drawn = int(rng.choice(len(shares), p=shares))
    state = subject.sample_state(rng, drawn if label is None else int(label))
    named = site if rng.random() < name_site else None
    prompt = draw_plane_prompt(state.label, named, rng, held_out=bool(rng.random() < held_out))
    first, second = (int(value) for value in rng.integers(2**31, size=2))
    return PlaneCase(subject, state, site, prompt, (first, second), index % planes)


class PlanesDataset(RenderedDataset):
    """Fetal ultrasound planes on the network's grid, several of each subject.

    An item holds ``image`` float32 (1, H, W) in [-1, 1], ``label`` int64 (index in ``PLANE_NAMES``), ``caption``
    (string), ``segmentation`` int64 (1, H, W) as in `PlaneSample`, ``sector`` int64 (1, H, W), ``site`` int64 (0 A,
    1 B), ``weeks`` and ``spacing_mm`` float32, ``subject`` int64 and ``case`` (string).

    Args:
        split: "train", "val", "oracle", "test" or "demo"; their subjects are disjoint.
        count: number of cases.
        seed: seed of the set.
        size: rows and columns.
        spacing: pixel spacing in mm; None fits each picture's section into the grid, as pictures without spacing are.
        site: "A" or "B"; None draws it for each subject.
        balance: "fetal_planes_db", "equal" or six weights, see `class_shares`.
        planes: planes of each subject.
        name_site: probability that a caption names the site.
        held_out: probability of a held-out wording as caption; 0 for every training.
        captions: whether sites burn in their text.
        cache_file: .npz file, read if it holds exactly this set and written otherwise; None keeps the set in memory.
        transform: applied to every item.
        num_workers: number of rendering processes; 0 renders in this one. The result does not depend on it.
        progress: whether to show a progress bar.
    """

    #: Rendered versions of each case: its own, and in a paired set those of the truth.
    versions: tuple[str, ...] = ("",)

    def __init__(
        self,
        split: str = "train",
        count: int = 1000,
        *,
        seed: int = 0,
        size: Sequence[int] = (64, 64),
        spacing: float | None = None,
        site: str | None = "A",
        balance: str | Sequence[float] = "fetal_planes_db",
        planes: int = 4,
        name_site: float = 0.5,
        held_out: float = 0.0,
        captions: bool = True,
        cache_file: str | Path | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        if not 1 <= count <= _SUBJECTS * max(planes, 1):
            raise ValueError(f"count must be in 1..{_SUBJECTS * max(planes, 1)}, not {count}")
        if len(size) != 2:
            raise ValueError(f"size={tuple(size)}: a picture's grid has two sizes.")
        grid = {
            "size": (int(size[0]), int(size[1])),
            "spacing": None if spacing is None else float(spacing),
            "captions": bool(captions),
        }
        options = {
            "seed": int(seed),
            "site": site,
            "balance": tuple(float(share) for share in class_shares(balance)),
            "planes": int(planes),
            "name_site": float(name_site),
            "held_out": float(held_out),
        }
        draw_plane(split, 0, **options)  # type: ignore[arg-type]  # fail for wrong options before rendering
        self.split, self.transform = split, transform
        jobs = [(self.versions, split, index, options, grid) for index in range(count)]
        bar: dict[str, Any] = {"title": f"rendering {split}", "unit": "image", "progress": progress}
        self._arrays = cached_arrays(
            cache_file,
            repr((_VERSION, "fetal_planes", self.versions, split, count, options, grid)),
            lambda: make_rows(_render_row, jobs, num_workers=num_workers, **bar),
        )

    def _item(self, index: int) -> dict[str, Any]:
        row = self._row(index)
        item: dict[str, Any] = {name: torch.tensor(int(row[name])) for name in ("label", "subject", "site")}
        for name in ("weeks", "spacing_mm"):
            item[name] = torch.tensor(float(row[name]))
        item["caption"] = str(row["caption"])
        item["case"] = f"{self.split}-{int(row['subject']):07d}-{int(row['number'])}"
        for name in ("segmentation", "sector"):
            item[name] = torch.from_numpy(row[name].astype(np.int64))[None]
        for suffix in self.versions:
            item[f"image{suffix}"] = torch.from_numpy(row[f"image{suffix}"].astype(np.float32))[None] / 127.5 - 1.0
        return item

    @property
    def captions(self) -> list[str]:
        """The captions of all cases."""
        return [str(caption) for caption in self._arrays["caption"]]

    @property
    def subjects(self) -> NDArray[np.int64]:
        """The subjects of all cases, for splits that keep them together."""
        return self._arrays["subject"].astype(np.int64)


class PairedPlanesDataset(PlanesDataset):
    """Planes with their paired truth: as in `PlanesDataset`, at the other site, and with other speckle.

    An item holds the entries of `PlanesDataset`; ``image_true`` float32 (1, H, W) in [-1, 1], the same subject and
    plane on the other site's scanner with other speckle, the anatomy at the same pixels (the probe, the depth and the
    section of the sector stay); and ``image_again``, on the same scanner with other speckle. Takes the same arguments.
    """

    versions = ("", "_true", "_again")


def _render_row(job: tuple[tuple[str, ...], str, int, dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """Render one case (a module-level function, so that processes can call it)."""
    versions, split, index, options, grid = job
    case = draw_plane(split, index, **options)
    sample = case.render(**grid)
    row: dict[str, Any] = {
        "image": gray(sample),
        "segmentation": sample.segmentation,
        "sector": sample.sector.astype(np.uint8),
        "label": np.int64(sample.label),
        "site": np.int64(tuple(SITES).index(sample.site)),
        "weeks": np.float32(sample.weeks),
        "spacing_mm": np.float32(sample.spacing_mm[0]),
        "subject": np.int64(sample.subject),
        "number": np.int64(case.number),
        "caption": np.array(case.prompt),
    }
    if "_true" in versions:
        row["image_true"] = gray(case.render(site=case.other, frame=case.site, again=True, **grid))
        row["image_again"] = gray(case.render(again=True, **grid))
    return row


def gray(sample: PlaneSample) -> NDArray[np.uint8]:
    """Return the gray values of a sample, 0 to 255."""
    return np.rint(sample.image * 255.0).astype(np.uint8)
