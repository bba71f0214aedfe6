# SPDX-License-Identifier: Apache-2.0
"""What a run on volumes works on: the user's NIfTI volumes and DICOM series, or brain phantoms when none are named."""

from __future__ import annotations

from pathlib import Path

from medcf.data.volumes import find_volumes
from medcf.inference.inputs import CaseList, write_once
from medcf.runtime.owned import check_output_dir
from medcf.runtime.ranks import from_main

__all__ = ["list_volumes"]


def list_volumes(
    dataset_dir: str | Path | None,
    datalist: str | Path | None,
    output_dir: str | Path,
    *,
    demo_count: int = 4,
    demo_spacing: float = 2.0,
) -> CaseList:
    """List the volumes of a folder or table; without either, write demo phantoms and list those.

    Args:
        dataset_dir: folder of NIfTI volumes and DICOM series, searched through.
        datalist: CSV or JSON table, see `medcf.data.volumes.find_volumes`; its column ``mask`` names brain masks.
        output_dir: folder of the run. It is left out of ``dataset_dir``, and the phantoms go into its ``demo_inputs``:
            brains that no training has seen, CN and AD in turn, in the geometries of scanners, as NIfTI files; their
            truth (the same brains in the other class) goes into ``demo_truth``.
        demo_count: number of demo phantoms.
        demo_spacing: mm at which they are rendered.

    Returns:
        The cases and the files that cannot be used.

    Raises:
        FileNotFoundError: the folder or the table does not exist.
        ValueError: there is nothing to read.
    """
    output_dir = Path(output_dir)
    if dataset_dir is None and datalist is None:
        demo_dir = output_dir
        dataset_dir = from_main("write phantoms", lambda: _write_demo(demo_dir, demo_count, demo_spacing))
        return CaseList(*find_volumes(dataset_dir))
    if datalist is None:
        check_output_dir(output_dir, [dataset_dir or ""])
    return CaseList(*find_volumes(dataset_dir, datalist, exclude=[output_dir]))


def _write_demo(output_dir: Path, count: int, spacing: float) -> Path:
    from medcf.phantoms import write_brain_demo

    def write(folder: Path, truth: Path) -> None:
        write_brain_demo(folder, "demo", count, spacing=spacing, truth_dir=truth)

    return write_once(output_dir, count, write)
