# SPDX-License-Identifier: Apache-2.0
"""What a run works on: the user's images, or phantoms when none are named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcf.data import build_datalist
from medcf.runtime.owned import DEMO_FOLDER, RECORD, check_output_dir, fill_folder, remove_files, written_files
from medcf.runtime.ranks import from_main

__all__ = ["DEMO_TRUTH", "CaseList", "list_cases", "write_once"]

logger = logging.getLogger(__name__)

DEMO_TRUTH = "demo_truth"


@dataclass(frozen=True)
class CaseList:
    """The images of a run.

    Attributes:
        cases: dictionaries with ``image`` (path), ``case`` (id) and what a datalist adds.
        failures: files that cannot be used: dictionaries with ``file``, ``reason`` and ``remedy``.
    """

    cases: list[dict[str, Any]]
    failures: list[dict[str, str]] = field(default_factory=list)


def list_cases(
    dataset_dir: str | Path | None,
    datalist: str | Path | None,
    output_dir: str | Path,
    *,
    frame: int | str = "middle",
    demo_count: int = 16,
    demo_overlays: bool = True,
) -> CaseList:
    """List the images of a folder or table; without either, write demo phantoms and list those.

    Args:
        dataset_dir: folder of DICOM, NIfTI, PNG or JPEG files, searched through.
        datalist: CSV or JSON table, see `medcf.data.build_datalist`.
        output_dir: folder of the run. It is left out of ``dataset_dir``, and the phantoms go into its ``demo_inputs``:
            non-standard planes of heads that no training has seen, as PNG, NIfTI and DICOM files in turn; their truth
            (the standard plane of the same head) goes into ``demo_truth``.
        frame: which frame of a loop: ``"first"``, ``"middle"``, ``"last"``, an index, or ``"all"``.
        demo_count: number of demo phantoms.
        demo_overlays: burn text and calipers into every second demo phantom.

    Returns:
        The cases and the files that cannot be used.

    Raises:
        FileNotFoundError: the folder or the table does not exist.
        ValueError: there is nothing to read, or ``output_dir`` could meet the inputs.
    """
    output_dir = Path(output_dir)
    if dataset_dir is None and datalist is None:
        demo_dir = output_dir
        dataset_dir = from_main("write phantoms", lambda: _write_demo(demo_dir, demo_count, demo_overlays))
        return CaseList(*build_datalist(dataset_dir))
    if datalist is None:
        check_output_dir(output_dir, [dataset_dir or ""])
    return CaseList(*build_datalist(dataset_dir, datalist, frame=frame, exclude=[output_dir]))


def _write_demo(output_dir: Path, count: int, overlays: bool) -> Path:
    from medcf.phantoms import write_demo

    def write(folder: Path, truth: Path) -> None:
        write_demo(folder, "demo", count, 0, overlays=(False, overlays), truth_dir=truth)

    return write_once(output_dir, count, write)


def write_once(output_dir: Path, count: int, write: Callable[[Path, Path], object]) -> Path:
    """Write demo inputs and their truth unless they are complete.

    Args:
        output_dir: folder of the run.
        count: number of inputs.
        write: writes the inputs into the first folder that it is given and the truth into the second.

    Returns:
        The folder of the inputs.

    Raises:
        FileExistsError: somebody else's file is in the way.
    """
    inputs, truth = output_dir / DEMO_FOLDER, output_dir / DEMO_TRUTH
    names = written_files(inputs)
    foreign = {path.name for path in inputs.iterdir()} - {RECORD, *names} if inputs.is_dir() else set()
    if foreign:
        raise FileExistsError(f"{inputs} holds {min(foreign)}, which is not the demo's: choose another --output_dir.")
    if len(names) != count or not all((inputs / name).is_file() for name in names):
        logger.info("No --dataset_dir: writing %d phantoms to %s", count, inputs)
        remove_files(inputs)
        fill_folder(truth, lambda folder: fill_folder(inputs, lambda partial: write(partial, folder)))
    return inputs
