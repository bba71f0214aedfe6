# SPDX-License-Identifier: Apache-2.0
"""Phantoms with paired ground truth: every subject can be rendered in any state.

``python -m medcf.data.phantoms fetal_head --out DIR --count N`` writes them as PNG, NIfTI or DICOM, and
``python -m medcf.data.phantoms brain_mri --out DIR --count N`` as NIfTI volumes.
"""

from __future__ import annotations

from medcf.data.phantoms.base import PhantomSample, PhantomSubject
from medcf.data.phantoms.brain_dataset import BrainDataset, PairedBrainDataset, draw_brain
from medcf.data.phantoms.brain_degradation import DegradeBrain
from medcf.data.phantoms.brain_files import write_brain_demo, write_brains
from medcf.data.phantoms.brain_mri import TISSUES, BrainMRI, BrainSample, BrainState
from medcf.data.phantoms.concepts import CONCEPTS, QUALITY_THRESHOLD
from medcf.data.phantoms.datasets import SPLITS, PhantomDataset, draw_case, subject_seed
from medcf.data.phantoms.fetal_head import FetalHead
from medcf.data.phantoms.overlays import burn_in
from medcf.data.phantoms.pairs import PairedPhantomDataset
from medcf.data.phantoms.poses import HeadPose
from medcf.data.phantoms.write import write_demo

__all__ = [
    "CONCEPTS",
    "QUALITY_THRESHOLD",
    "SPLITS",
    "TISSUES",
    "BrainDataset",
    "BrainMRI",
    "BrainSample",
    "BrainState",
    "DegradeBrain",
    "FetalHead",
    "HeadPose",
    "PairedBrainDataset",
    "PairedPhantomDataset",
    "PhantomDataset",
    "PhantomSample",
    "PhantomSubject",
    "burn_in",
    "draw_brain",
    "draw_case",
    "subject_seed",
    "write_brain_demo",
    "write_brains",
    "write_demo",
]
