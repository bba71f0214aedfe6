# SPDX-License-Identifier: Apache-2.0
"""Volumes: NIfTI files and DICOM series, brain masks, the network's grid and the way back."""

from __future__ import annotations

from medcf.data.volumes.brain_mask import brain_mask
from medcf.data.volumes.dataset import VolumeDataset
from medcf.data.volumes.discovery import find_volumes
from medcf.data.volumes.grid import (
    VolumeRecord,
    apply_volume_difference,
    from_volume_grid,
    repeat_volume_grid,
    to_volume_grid,
)
from medcf.data.volumes.planted import measure_planted_change
from medcf.data.volumes.reading import read_mask, read_volume, resolve_mask

__all__ = [
    "VolumeDataset",
    "VolumeRecord",
    "apply_volume_difference",
    "brain_mask",
    "find_volumes",
    "from_volume_grid",
    "measure_planted_change",
    "read_mask",
    "read_volume",
    "repeat_volume_grid",
    "resolve_mask",
    "to_volume_grid",
]
