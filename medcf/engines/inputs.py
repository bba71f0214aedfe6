# SPDX-License-Identifier: Apache-2.0
"""What a run works on: the user's images, or phantoms when none are named."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcf.data import build_datalist
from medcf.engines.ranks import first_on_main

__all__ = ["DEMO_FOLDER", "DEMO_TRUTH", "CaseList", "list_cases", "write_once"]

logger = logging.getLogger(__name__)

DEMO_FOLDER = "demo_inputs"
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
        ValueError: there is nothing to read.
    """
    output_dir = Path(output_dir)
    if dataset_dir is None and datalist is None:
        demo_dir = output_dir
        dataset_dir = first_on_main("write phantoms", lambda: _write_demo(demo_dir, demo_count, demo_overlays))
        return CaseList(*build_datalist(dataset_dir))
    return CaseList(*build_datalist(dataset_dir, datalist, frame=frame, exclude=[output_dir]))


def _write_demo(output_dir: Path, count: int, overlays: bool) -> Path:
    from medcf.data.phantoms import write_demo

    truth = output_dir / DEMO_TRUTH

    def write(folder: Path) -> None:
        write_demo(folder, "demo", count, 0, overlays=(False, overlays), truth_dir=truth)

    return write_once(output_dir / DEMO_FOLDER, count, write)


def write_once(folder: Path, count: int, write: Callable[[Path], object]) -> Path:
    """Fill a folder unless it is complete; an interrupted run leaves none, because it gets its name last.

    Args:
        folder: the folder.
        count: number of files in it.
        write: writes them into the folder that it is given.

    Returns:
        The folder.
    """
    if not folder.is_dir() or len(list(folder.iterdir())) != count:
        logger.info("No --dataset_dir: writing %d phantoms to %s", count, folder)
        partial = folder.with_name(f".{folder.name}.partial")
        for leftover in (partial, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        write(partial)
        os.replace(partial, folder)
    return folder
