# SPDX-License-Identifier: Apache-2.0
"""Writes a case as DICOM objects that say that they are synthetic, refer to their source and name their maker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medcf.data.dicom.header import quiet_pydicom
from medcf.data.image import digest
from medcf.dicom.banner import draw_banner
from medcf.dicom.capture import capture
from medcf.dicom.companions import BY_HIGHDICOM, OBJECTS, Companions
from medcf.dicom.deidentify import deidentified, deidentified_source
from medcf.dicom.derived import Kind, derive, encoded
from medcf.dicom.job import Job
from medcf.dicom.loops import join_loops
from medcf.dicom.marks import save
from medcf.dicom.source import Source, open_source
from medcf.dicom.templates import extra
from medcf.inference.case_result import CaseResult
from medcf.inference.run_folder import RunFolder

__all__ = ["OBJECTS", "DicomWriter"]

_GRAY_LEVELS = 4095


class DicomWriter:
    """Write a case's images, its difference and its scores as DICOM, in the input's own study.

    A DICOM input gets derived instances of its own SOP class: same patient, study, frame of reference, geometry, window
    and stored range; gray values in eight bits where it is in color. What did not change is stored as it was, to the
    last bit. A single frame of a loop becomes a single-frame object that refers to it. Other inputs become secondary
    captures without a patient. UIDs follow from source, weights and settings: the same job twice is one object.

    Beside them there are the difference as a parametric map and in color over the input, a segmentation of what
    changed, a report of the scores, and how to show the counterfactual. An input that is no DICOM has no map, no
    segmentation and no presentation, which need its position or its window.

    Args:
        manifest: ``config`` and ``weights`` of the run; without them the UIDs follow from the pixels.
        bundle: name of the bundle.
        class_names: names of the classes 0, 1, ...
        banner: write SYNTHETIC into the images.
        objects: which of `OBJECTS` to write; None writes all but the trajectory.
        threshold: least magnitude of the difference that is segmented and outlined, in fractions of the full range.
        deidentify: leave the patient out of the objects, see `medcf.dicom.deidentify`.

    Raises:
        ValueError: if there is no such object, or the threshold is not between 0 and 1.
        ImportError: if an object needs a package that is not installed.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any] | None = None,
        bundle: str = "medcf",
        class_names: Sequence[str] = (),
        banner: bool = True,
        objects: Sequence[str] | str | None = None,
        threshold: float = 0.1,
        deidentify: bool = False,
    ) -> None:
        self.manifest, self.bundle, self.class_names = manifest, bundle, tuple(class_names)
        self.banner, self.threshold, self.deidentify = bool(banner), float(threshold), bool(deidentify)
        chosen = [each for each in OBJECTS if each != "trajectory"] if objects is None else objects
        names = chosen.split(",") if isinstance(chosen, str) else chosen
        self.wanted = frozenset(str(name).strip() for name in names)
        if unknown := sorted(self.wanted.difference(OBJECTS)):
            raise ValueError(f"There is no object {unknown[0]!r}: choose among {', '.join(OBJECTS)}.")
        if not 0 < self.threshold < 1:
            raise ValueError(f"The threshold {threshold} is not between 0 and 1, fractions of the full range.")
        if self.wanted.intersection(BY_HIGHDICOM):
            extra("highdicom")
        if self.deidentify:
            extra("dicomanonymizer")

    @cached_property
    def job(self) -> Job:
        """What makes the objects; the weights are hashed once."""
        return Job.of(self.manifest, self.bundle, banner=self.banner, deidentify=self.deidentify)

    @quiet_pydicom()
    def __call__(self, result: CaseResult, folder: Path) -> None:
        """Write the objects of a case to ``folder / "dicom"``."""
        source = open_source(result)
        if source is not None and self.deidentify:
            source = deidentified_source(source)
        for dataset, name, sources in self.objects(result, source):
            save(dataset, folder / "dicom" / f"{name}.dcm", sources)

    @quiet_pydicom()
    def finish(self, run_folder: RunFolder) -> list[str]:
        """Write whole loops at the end of a run, see `medcf.dicom.loops`; return their folders."""
        return join_loops(run_folder, self.job, deidentified if self.deidentify else None)

    def objects(self, result: CaseResult, source: Source | None) -> Iterator[tuple[Dataset, str, Sequence[Dataset]]]:
        """Make the objects of a case, each with the name of its file and what it refers to."""
        made: dict[str, list[Dataset]] = {}
        for kind, values in self._images(result):
            key = self._key(result, values)
            if source is None:
                made[kind.name] = self._captured(result, values, kind, key)
            else:
                stored = encoded(source, values, banner=self.banner)
                made[kind.name] = derive(source, stored, kind, self.job, key, banner=self.banner)
        origin = self._origin(result) if source is None else str(source.first.SOPInstanceUID)
        names, key = (self._target(result), self.class_names), self._key(result, result.difference)
        companions = Companions(result, source, self.job, names, origin, key, self.banner, self.threshold)
        made = companions.of(made, self.wanted)
        for name, some in made.items():
            # a presentation refers to derived images
            sources = made["counterfactual"] if name == "presentation" else [] if source is None else source.headers
            digits = len(str(len(some)))
            for number, dataset in enumerate(some):
                yield dataset, name + (f"-{number + 1:0{digits}d}" if len(some) > 1 else ""), sources

    def _images(self, result: CaseResult) -> list[tuple[Kind, NDArray[np.floating]]]:
        """Return the images that are written: each a series."""
        target = self._target(result)
        how = f"Counterfactual of class {target}, by {self.bundle}"
        if not result.synthetic:
            how = f"The input, returned unchanged by a search for class {target}"
        texts = {"counterfactual": (901, "counterfactual", "")}
        images = {"counterfactual": result.counterfactual}
        if result.expected is not None:
            texts["expected"], images["expected"] = (
                (902, "mean counterfactual", ": the mean over seeds"),
                result.expected,
            )
        for step, values in enumerate(
            () if result.trajectory is None or "trajectory" not in self.wanted else result.trajectory
        ):
            texts[f"trajectory-{step}"] = (910 + step, f"step {step} toward", f": step {step}")
            images[f"trajectory-{step}"] = values
        return [
            (Kind(name, number, f"{series} {target}, not for diagnosis", f"{how}{which}."), images[name])
            for name, (number, series, which) in texts.items()
        ]

    def _target(self, result: CaseResult) -> str:
        target = int(result.row.get("target", -1))
        return self.class_names[target] if 0 <= target < len(self.class_names) else str(target)

    def _key(self, result: CaseResult, values: NDArray[np.floating]) -> tuple[str, ...]:
        """Return what UIDs depend on beside source and job; the pixels themselves if the job is not known."""
        key = (str(result.row.get("target")),)
        return key if self.job.known else (*key, digest(np.asarray(values)), str(self.banner))

    def _captured(
        self, result: CaseResult, values: NDArray[np.floating], kind: Kind, key: Sequence[str]
    ) -> list[Dataset]:
        """Return a secondary capture of what was no DICOM: a picture in 8 bits, a volume's slices in 12."""
        flat = values.ndim == 2
        low, high = (0.0, 1.0) if flat else result.window
        top, depth = (255, np.uint8) if flat else (_GRAY_LEVELS, np.uint16)
        scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * top
        planes = np.rint(scaled if not flat else scaled[..., None]).astype(depth).transpose(2, 1, 0)
        if self.banner:
            planes = np.stack([draw_banner(plane, 0, top) for plane in planes])
        origin = self._origin(result)
        spacing = None if result.spacing is None else (float(result.spacing[1]), float(result.spacing[0]))
        pixels = planes[0] if flat else planes
        return [capture(pixels, kind, self.job, origin, key, spacing=spacing, burned=self.banner)]

    def _origin(self, result: CaseResult) -> str:
        """Return the hash of an input that is no DICOM."""
        image: Any = result.on_grid["image"]
        return str(image.meta.get("sha256", "")) or result.case
