# SPDX-License-Identifier: Apache-2.0
"""Phantoms with paired ground truth: every subject can be rendered in any state.

``python -m medcf.phantoms fetal_head --out DIR --count N`` writes them as PNG, NIfTI or DICOM, and
``python -m medcf.phantoms brain_mri --out DIR --count N`` as NIfTI volumes. ``chest_xray`` writes chest radiographs,
``fetal_planes`` the planes of fetal examinations.
"""

from __future__ import annotations

from medcf.phantoms.base import PhantomSample, PhantomSubject
from medcf.phantoms.brain.brain_mri import TISSUES, BrainMRI, BrainSample, BrainState
from medcf.phantoms.brain.dataset import BrainDataset, PairedBrainDataset, draw_brain
from medcf.phantoms.brain.degradation import DegradeBrain
from medcf.phantoms.brain.files import write_brain_demo, write_brains
from medcf.phantoms.chest.captions import HELD_OUT, captions, draw_caption, training_captions
from medcf.phantoms.chest.chest_xray import ChestSample, ChestXray
from medcf.phantoms.chest.dataset import ChestDataset, PairedChestDataset, draw_chest
from medcf.phantoms.chest.files import write_chest_demo, write_chests
from medcf.phantoms.chest.states import CLASS_NAMES, ChestState
from medcf.phantoms.head.concepts import CONCEPTS, QUALITY_THRESHOLD
from medcf.phantoms.head.datasets import SPLITS, PhantomDataset, draw_case, subject_seed
from medcf.phantoms.head.fetal_head import FetalHead
from medcf.phantoms.head.files import write_demo
from medcf.phantoms.head.overlays import burn_in
from medcf.phantoms.head.pairs import PairedPhantomDataset
from medcf.phantoms.head.poses import HeadPose
from medcf.phantoms.planes.dataset import PairedPlanesDataset, PlanesDataset, draw_plane
from medcf.phantoms.planes.fetal_planes import FetalPlanes, PlaneSample
from medcf.phantoms.planes.files import write_planes, write_planes_demo
from medcf.phantoms.planes.prompts import (
    HELD_OUT_PROMPTS,
    draw_plane_prompt,
    plane_prompts,
    training_plane_prompts,
)
from medcf.phantoms.planes.scene import STRUCTURES
from medcf.phantoms.planes.states import COUNTS, PLANE_NAMES, PlaneState
from medcf.phantoms.write import write_phantoms

__all__ = [
    "CLASS_NAMES",
    "CONCEPTS",
    "COUNTS",
    "HELD_OUT",
    "HELD_OUT_PROMPTS",
    "PLANE_NAMES",
    "QUALITY_THRESHOLD",
    "SPLITS",
    "STRUCTURES",
    "TISSUES",
    "BrainDataset",
    "BrainMRI",
    "BrainSample",
    "BrainState",
    "ChestDataset",
    "ChestSample",
    "ChestState",
    "ChestXray",
    "DegradeBrain",
    "FetalHead",
    "FetalPlanes",
    "HeadPose",
    "PairedBrainDataset",
    "PairedChestDataset",
    "PairedPhantomDataset",
    "PairedPlanesDataset",
    "PhantomDataset",
    "PhantomSample",
    "PhantomSubject",
    "PlaneSample",
    "PlaneState",
    "PlanesDataset",
    "burn_in",
    "captions",
    "draw_brain",
    "draw_caption",
    "draw_case",
    "draw_chest",
    "draw_plane",
    "draw_plane_prompt",
    "plane_prompts",
    "subject_seed",
    "training_captions",
    "training_plane_prompts",
    "write_brain_demo",
    "write_brains",
    "write_chest_demo",
    "write_chests",
    "write_demo",
    "write_phantoms",
    "write_planes",
    "write_planes_demo",
]
