# SPDX-License-Identifier: Apache-2.0
"""Loops of which every frame was explained: one object for the loop, beside those of its frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from medcf.data.dicom.header import count_dicom_frames, open_dicom
from medcf.dicom.derived import Kind, derive
from medcf.dicom.job import Job
from medcf.dicom.marks import save
from medcf.dicom.source import Plane, Source
from medcf.dicom.stored import EIGHT_BITS
from medcf.inference.run_folder import RunFolder
from medcf.runtime.owned import fill_folder

__all__ = ["join_loops"]

_IMAGES = ("counterfactual", "expected", "trajectory")  # the kinds of objects that a frame has


def join_loops(run_folder: RunFolder, job: Job, clean: Callable[[Dataset], Dataset] | None = None) -> list[str]:
    """Write one object for every loop of which all frames were explained, of each kind of image.

    Args:
        run_folder: whose cases have their objects in a folder ``dicom``.
        job: what made them.
        clean: what was done with the headers of the files before the frames' objects were made from them.

    Returns:
        The folders in ``run_folder`` that were written to.
    """
    written = []
    for path, cases in _whole_loops(run_folder):
        folders = [run_folder.case_dir(case) / "dicom" for case in cases]
        names = sorted(file.name for file in folders[0].glob("*.dcm") if file.stem.partition("-")[0] in _IMAGES)
        loops = {name: _loop(path, [folder / name for folder in folders], job, clean) for name in names}

        def write(folder: Path, loops: dict[str, tuple[Dataset, Dataset]] = loops) -> None:
            for name, (dataset, header) in loops.items():
                save(dataset, folder / "dicom" / name, [header])

        written.append(cases[0].rpartition("_f")[0] + "_loop")
        fill_folder(run_folder.case_dir(written[-1]), write, run=run_folder.run)
    return written


def _whole_loops(run_folder: RunFolder) -> Iterator[tuple[Path, list[str]]]:
    """Find the loops of a run of which every frame is done: the file, and the cases of its frames in order."""
    rows = sorted((row for row in run_folder.rows() if row.get("format") == "dicom"), key=lambda row: str(row["file"]))
    for file, group in groupby(rows, key=lambda row: str(row["file"])):
        frames = sorted(group, key=lambda row: int(row.get("frame", 0)))
        if len(frames) > 1 and len(frames) == count_dicom_frames(Path(file), open_dicom(Path(file))):
            yield Path(file), [str(row["case"]) for row in frames]


def _loop(
    path: Path, files: Sequence[Path], job: Job, clean: Callable[[Dataset], Dataset] | None
) -> tuple[Dataset, Dataset]:
    """Make the derived loop of one series from the objects of its frames; also return the source's header."""
    frames = [dcmread(file) for file in files]
    read, first = dcmread(path, force=True, defer_size=1024), frames[0]
    header = read if clean is None else clean(read)
    images = [frame.pixel_array for frame in frames]
    recoded = int(header.get("SamplesPerPixel", 1)) == 3 or header.PhotometricInterpretation == "PALETTE COLOR"
    unread = np.zeros((0, 0), np.float32)  # the frames' objects have the stored values already
    planes = [
        Plane(path, header, index, len(frames), image, unread, EIGHT_BITS, recoded)
        for index, image in enumerate(images)
    ]
    series = str(first.SeriesDescription).removeprefix("SYNTHETIC ")
    what = str(first.DerivationDescription).removesuffix(job.describe()).strip()
    kind = Kind(files[0].stem, int(first.SeriesNumber), series, what)
    key = [str(frame.SOPInstanceUID) for frame in frames]
    (dataset,) = derive(Source(planes), images, kind, job, key, banner=first.BurnedInAnnotation == "YES")
    return dataset, header
