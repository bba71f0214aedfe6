# SPDX-License-Identifier: Apache-2.0
"""Phantoms with paired ground truth: every subject can be rendered in any state.

``python -m medcf.phantoms fetal_head --out DIR --count N`` writes them as PNG, NIfTI or DICOM, and
``python -m medcf.phantoms brain_mri --out DIR --count N`` as NIfTI volumes.
"""

from __future__ import annotations

from medcf.phantoms.base import PhantomSample, PhantomSubject
from medcf.phantoms.brain.brain_mri import TISSUES, BrainMRI, BrainSample, BrainState
from medcf.phantoms.brain.dataset import BrainDataset, PairedBrainDataset, draw_brain
from medcf.phantoms.brain.degradation import DegradeBrain
from medcf.phantoms.brain.files import write_brain_demo, write_brains
from medcf.phantoms.head.concepts import CONCEPTS, QUALITY_THRESHOLD
from medcf.phantoms.head.datasets import SPLITS, PhantomDataset, draw_case, subject_seed
from medcf.phantoms.head.fetal_head import FetalHead
from medcf.phantoms.head.files import write_demo
from medcf.phantoms.head.overlays import burn_in
from medcf.phantoms.head.pairs import PairedPhantomDataset
from medcf.phantoms.head.poses import HeadPose
from medcf.phantoms.write import write_phantoms

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
    "write_phantoms",
]
