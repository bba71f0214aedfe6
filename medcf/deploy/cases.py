# SPDX-License-Identifier: Apache-2.0
"""What an application explains: the cases of a folder, or of the studies and series that the SDK has loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from medcf.data import Case, find_cases
from medcf.inference import Explainer
from medcf.inference.inputs import CaseList
from medcf.runtime.errors import Failure

__all__ = ["cases_of", "chunks", "is_left_out"]

_OF_DAMAGE = ("damaged", "cannot be", "is empty", "does not exist")


def cases_of(loaded: Any, explainer: Explainer) -> CaseList:
    """List the cases in what an operator receives.

    Args:
        loaded: a `CaseList`, cases, or the SDK's studies (``dicom_study_list``) or selected series
            (``study_selected_series_list``), of which the files are read again: the SDK's own conversion to an image
            loses loops and colors.
        explainer: its options say what counts as a case: pictures or volumes, which frame of a loop.

    Raises:
        ValueError: if the SDK's objects were not loaded from files.
    """
    if isinstance(loaded, CaseList):
        return loaded
    if all(isinstance(each, Case) for each in loaded):
        return CaseList(list(loaded))
    files = sorted({file for each in loaded for series in _series(each) for file in _files(series)})
    if not files:
        raise ValueError("No series was selected: check the rules of the selection.")
    root = os.path.commonpath([file.parent for file in files])
    options = {
        key: value
        for key, value in explainer.listing.items()
        if key not in ("phantom", "split") and not key.startswith("demo_")
    }
    return CaseList(*find_cases(root, files=files, **options))


def chunks(cases: Sequence[Case], size: int) -> Iterator[list[Case]]:
    """Split cases into lists of at least ``size`` that keep all frames of a loop together."""
    chunk: list[Case] = []
    for _, frames in groupby(cases, key=lambda case: case.files):
        if len(chunk) >= size:
            yield chunk
            chunk = []
        chunk += frames
    if chunk:
        yield chunk


def is_left_out(failure: Failure) -> bool:
    """Tell a file that is not meant for the bundle, such as a report or a localizer in the study, from a failed one."""
    return failure.stage == "read" and not any(word in failure.reason for word in _OF_DAMAGE)


def _series(loaded: Any) -> list[Any]:
    """Return the series of a ``DICOMStudy`` or ``StudySelectedSeries``."""
    if hasattr(loaded, "selected_series"):
        return [selected.series for selected in loaded.selected_series]
    return list(loaded.get_all_series())


def _files(series: Any) -> list[Path]:
    names = [instance.get_native_sop_instance().filename for instance in series.get_sop_instances()]
    if not all(isinstance(name, str | os.PathLike) for name in names):
        raise ValueError("A series has no files: load it with DICOMDataLoaderOperator.")
    return [Path(name) for name in names]
