# SPDX-License-Identifier: Apache-2.0
"""What accompanies a case's images: its difference in several forms, its scores, and how to show it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from medcf.dicom.derived import Kind
from medcf.dicom.job import Job
from medcf.dicom.maps import can_be_placed, changed, difference_map, in_file_order, segmentation
from medcf.dicom.overlay import overlay
from medcf.dicom.presentation import largest_change, presentation
from medcf.dicom.report import report
from medcf.dicom.source import Source
from medcf.inference.case_result import CaseResult

__all__ = ["BY_HIGHDICOM", "OBJECTS", "Companions"]

_IMAGES = ("counterfactual", "expected", "trajectory")
_KINDS = {  # SeriesNumber, SeriesDescription, DerivationDescription
    "difference": (903, "difference toward", "The signed difference between the input and"),
    "overlay": (904, "difference in color toward", "In color over the input, the difference between it and"),
    "segmentation": (905, "change toward", "What changes much between the input and"),
    "report": (906, "scores of counterfactual", "The scores of"),
    "presentation": (907, "presentation of counterfactual", "How to show"),
}

OBJECTS = (*_IMAGES, *_KINDS)
"""What can be written of a case, by name."""

BY_HIGHDICOM = ("difference", "segmentation", "report")
"""What is made by highdicom."""


@dataclass(frozen=True, eq=False)
class Companions:
    """Makes the objects that accompany the images of a case.

    Attributes:
        result: the case.
        source: what it came from; None if that is no DICOM.
        job: what makes them.
        names: of the target class, and of all classes.
        origin: what the case is made from, for UIDs.
        key: what UIDs depend on beside job and origin, such as the target.
        banner: whether to write SYNTHETIC into images.
        threshold: least magnitude of the difference that is segmented and outlined, in fractions of the full range.
    """

    result: CaseResult
    source: Source | None
    job: Job
    names: tuple[str, Sequence[str]]
    origin: str
    key: Sequence[str]
    banner: bool
    threshold: float

    def of(self, images: Mapping[str, list[Dataset]], wanted: Collection[str]) -> dict[str, list[Dataset]]:
        """Return those of the images that are wanted, and what accompanies them, by name.

        Args:
            images: all series of the case, among them ``"counterfactual"``.
            wanted: names among `OBJECTS`.
        """
        made = {name: some for name, some in images.items() if name.partition("-")[0] in wanted}
        result, source, key = self.result, self.source, self.key
        if "overlay" in wanted:
            kind = self._kind("overlay")
            made["overlay"] = overlay(result, source, kind, self.job, self.origin, key, banner=self.banner)
        if source is not None and can_be_placed(source):
            if "difference" in wanted:
                made["difference"] = [difference_map(result, source, self._kind("difference"), self.job, key)]
            if "segmentation" in wanted:
                kind = self._kind("segmentation")
                made["segmentation"] = [segmentation(result, source, kind, self.job, key, threshold=self.threshold)]
        if source is not None and "presentation" in wanted and "counterfactual" in made:
            region = in_file_order(largest_change(changed(result, self.threshold)), source)
            shown = (*key, f"threshold {self.threshold:g}")
            kind = self._kind("presentation")
            made["presentation"] = presentation(made["counterfactual"], region, kind, self.job, shown)
        if "report" in wanted:
            made["report"] = [self._report(made, images["counterfactual"])]
        return made

    def _report(self, made: Mapping[str, list[Dataset]], main: Sequence[Dataset]) -> Dataset:
        evidence = [each for name, some in made.items() if name != "presentation" for each in some]
        kind, class_names = self._kind("report"), self.names[1]
        return report(self.result, self.source, evidence or main, kind, self.job, self.key, class_names=class_names)

    def _kind(self, name: str) -> Kind:
        number, series, what = _KINDS[name]
        how = f"{what} a counterfactual of class {self.names[0]}, by {self.job.bundle}."
        return Kind(name, number, f"{series} {self.names[0]}, not for diagnosis", how)
