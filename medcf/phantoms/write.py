# SPDX-License-Identifier: Apache-2.0
"""Writes phantoms by name, in formats and geometries that scanners use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medcf.phantoms.brain.files import write_brain_demo
from medcf.phantoms.chest.files import write_chest_demo
from medcf.phantoms.head.files import write_demo
from medcf.phantoms.planes.files import write_planes_demo

__all__ = ["write_phantoms"]


def write_phantoms(
    name: str, out_dir: str | Path, count: int, *, truth_dir: str | Path | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Write demo phantoms: subjects that no training has seen.

    Args:
        name: phantom in ``PHANTOMS``. Brains are NIfTI volumes, alternating CN and AD; chests are radiographs, half of
            them sick, as DICOM, PNG and NIfTI files in rotation; fetal planes are all classes in turn, at both sites;
            others are non-standard planes in the same formats.
        out_dir: folder for the images.
        count: number of subjects.
        truth_dir: folder for their truth, the same subjects in the other class or at the other site; None writes none.
        options: options of `medcf.phantoms.write_brain_demo`, ``write_chest_demo``, ``write_planes_demo`` or
            `medcf.phantoms.write_demo`;
            ``overlays=True`` burns text and calipers into every second plane.

    Returns:
        One record per case: its row in the truth's table, and ``path`` of the image.
    """
    if name == "brain_mri":
        return write_brain_demo(out_dir, "demo", count, truth_dir=truth_dir, **options)
    if name == "chest_xray":
        return write_chest_demo(out_dir, "demo", count, truth_dir=truth_dir, **options)
    if name == "fetal_planes":
        return write_planes_demo(out_dir, "demo", count, truth_dir=truth_dir, **options)
    if isinstance(options.get("overlays"), bool):
        options["overlays"] = (False, options["overlays"])
    return write_demo(out_dir, "demo", count, 0, name=name, truth_dir=truth_dir, **options)
