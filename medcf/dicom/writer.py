# SPDX-License-Identifier: Apache-2.0
"""Writes a case as DICOM objects that say that they are synthetic, refer to their source and name their maker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from medcf.dicom.derived import Kind, derive, encoded
from medcf.dicom.job import Job
from medcf.dicom.loops import join_loops
from medcf.dicom.marks import save
from medcf.dicom.source import Source, open_source
from medcf.inference.case_result import CaseResult
from medcf.inference.run_folder import RunFolder

__all__ = ["DicomWriter"]

_GRAY_LEVELS = 4095


class DicomWriter:
    """Write the counterfactual, its mean over seeds and its trajectory as DICOM, in the input's own study.

    A DICOM input gets derived instances of its own SOP class: same patient, study, frame of reference, geometry, window
    and stored range; gray values in eight bits where it is in color. What did not change is stored as it was, to the
    last bit. A single frame of a loop becomes a single-frame object that refers to it. Other inputs become secondary
    captures without a patient. UIDs follow from source, weights and settings: the same job twice is one object.

    Args:
        manifest: ``config`` and ``weights`` of the run; without them the UIDs follow from the pixels.
        bundle: name of the bundle.
        class_names: names of the classes 0, 1, ...
        banner: write SYNTHETIC into the images.
        trajectory: write the trajectory, too.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any] | None = None,
        bundle: str = "medcf",
        class_names: Sequence[str] = (),
        banner: bool = True,
        trajectory: bool = False,
    ) -> None:
        self.manifest, self.bundle, self.class_names = manifest, bundle, tuple(class_names)
        self.banner, self.trajectory = bool(banner), bool(trajectory)

    @cached_property
    def job(self) -> Job:
        """What makes the objects; the weights are hashed once."""
        return Job.of(self.manifest, self.bundle, banner=self.banner)

    @quiet_pydicom()
    def __call__(self, result: CaseResult, folder: Path) -> None:
        """Write the objects of a case to ``folder / "dicom"``."""
        source = open_source(result)
        sources = [] if source is None else source.headers
        for dataset, name in self.objects(result, source):
            save(dataset, folder / "dicom" / f"{name}.dcm", sources)

    @quiet_pydicom()
    def finish(self, run_folder: RunFolder) -> list[str]:
        """Write whole loops at the end of a run, see `medcf.dicom.loops`; return their folders."""
        return join_loops(run_folder, self.job)

    def objects(self, result: CaseResult, source: Source | None) -> list[tuple[Dataset, str]]:
        """Make the objects of a case, each with the name of its file."""
        made = []
        for kind, values in self._images(result):
            key = self._key(result, values)
            if source is None:
                images = self._captured(result, values, kind, key)
            else:
                stored = encoded(source, values, banner=self.banner)
                images = derive(source, stored, kind, self.job, key, banner=self.banner)
            digits = len(str(len(images)))
            numbers = [""] if len(images) == 1 else [f"-{n + 1:0{digits}d}" for n in range(len(images))]
            made += [(image, kind.name + number) for image, number in zip(images, numbers, strict=True)]
        return made

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
        for step, values in enumerate(() if result.trajectory is None or not self.trajectory else result.trajectory):
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
        image: Any = result.on_grid["image"]
        origin = str(image.meta.get("sha256", "")) or result.case
        spacing = None if result.spacing is None else (float(result.spacing[1]), float(result.spacing[0]))
        pixels = planes[0] if flat else planes
        return [capture(pixels, kind, self.job, origin, key, spacing=spacing, burned=self.banner)]
