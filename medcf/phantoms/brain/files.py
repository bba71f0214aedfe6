# SPDX-License-Identifier: Apache-2.0
"""Brain phantoms as NIfTI files with the geometries of real scanners, and their truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from medcf.phantoms.brain.brain_mri import TISSUES, BrainSample, BrainState
from medcf.phantoms.brain.dataset import draw_brain
from medcf.phantoms.image_files import write_table

__all__ = ["GEOMETRIES", "VolumeGeometry", "write_brain_demo", "write_brains"]

_SCALE = 1000  # stored value of white


@dataclass(frozen=True)
class VolumeGeometry:
    """How a scanner places voxels in a head.

    Attributes:
        orientation: directions of the three voxel axes, such as ``"LPS"``.
        voxel: voxel sizes along right, anterior and superior, in units of the rendered spacing.
        angles: tilt of the slices about the same axes, in degrees.
        offset: mm from the scanner's origin to the center of the head.
    """

    orientation: str = "RAS"
    voxel: tuple[float, float, float] = (1.0, 1.0, 1.0)
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def grid(self, sample: BrainSample) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Return the shape and the affine (voxel indices to RAS+ mm) of a grid that covers the sample."""
        extent = np.array(sample.image.shape) * sample.spacing_mm
        sizes = np.array(self.voxel) * sample.spacing_mm
        shape = np.ceil(extent / sizes).astype(int)
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", self.angles, degrees=True).as_matrix() * sizes
        affine[:3, 3] = np.array(self.offset) - affine[:3, :3] @ ((shape - 1) / 2)
        turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(self.orientation))
        order = np.argsort(turn[:, 0])
        return tuple(int(n) for n in shape[order]), affine @ inv_ornt_aff(turn, tuple(shape))


#: Isotropic; thick, flipped, oblique axial slices; sagittal slices; tilted coronal slices.
GEOMETRIES = (
    VolumeGeometry(),
    VolumeGeometry("LPS", (0.75, 0.75, 1.75), (14.0, 0.0, 8.0), (4.0, -18.0, 25.0)),
    VolumeGeometry("PIR", (0.9, 0.75, 0.75), (0.0, 0.0, 0.0), (-2.5, 10.0, -30.0)),
    VolumeGeometry("LSA", (0.75, 1.25, 0.75), (-9.0, 6.0, 3.0), (0.0, 5.0, 12.0)),
)


def write_brain_demo(
    out_dir: str | Path,
    split: str = "demo",
    count: int = 4,
    *,
    seed: int = 0,
    spacing: float = 2.0,
    geometries: tuple[VolumeGeometry, ...] = GEOMETRIES,
    truth_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Write subjects, alternating CN and AD, as int16 ``.nii.gz``; case i uses geometry i modulo their number.

    Args:
        out_dir: folder for the volumes; created if missing. Nothing else is written there.
        split: a key of ``SPLITS``.
        count: number of subjects.
        seed: seed of the set.
        spacing: voxel spacing in mm for rendering.
        geometries: voxel geometries.
        truth_dir: folder for ``truth.csv``, the same subjects in the typical state of the other class
            (``<case>_other.nii.gz``) and the tissues of both (``<case>_segmentation.nii.gz``,
            ``<case>_other_segmentation.nii.gz``), on the same voxels; None writes no truth.

    Returns:
        One record per case: its row of ``truth.csv``, and ``path`` of the volume.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    truth = Path(truth_dir) if truth_dir is not None else None
    size = tuple(round(extent / spacing) for extent in (160, 192, 160))
    records = []
    for index in range(count):
        subject, state, _ = draw_brain(split, index, seed=seed, ad_fraction=index % 2)
        geometry = geometries[index % len(geometries)]
        sample = subject.render(state, seed=0, size=size, spacing=spacing)  # type: ignore[arg-type]  # three numbers
        case = f"{split}-{sample.subject:07d}"
        path = out / f"{case}.nii.gz"
        nib.save(_image(sample, geometry), path)
        record = _record(case, sample) | {"path": str(path)}
        if truth is not None:
            truth.mkdir(parents=True, exist_ok=True)
            other = BrainState.typical(1 - state.label)
            paired = subject.render(other, seed=1, size=size, spacing=spacing)  # type: ignore[arg-type]
            nib.save(_image(paired, geometry), truth / f"{case}_other.nii.gz")
            nib.save(_labels(paired, geometry), truth / f"{case}_other_segmentation.nii.gz")
            nib.save(_labels(sample, geometry), truth / f"{case}_segmentation.nii.gz")
            record |= {f"other_{name}": value for name, value in _state(paired).items()}
        records.append(record)
    if truth is not None:
        write_table(truth / "truth.csv", records)
    return records


def write_brains(
    out_dir: str | Path,
    split: str = "demo",
    count: int = 16,
    label: int | None = None,
    *,
    seed: int = 0,
    size: tuple[int, int, int] = (80, 96, 80),
    spacing: float = 2.0,
    truth: bool = False,
    transform: Callable[[BrainSample], BrainSample] | None = None,
) -> list[dict[str, Any]]:
    """Write a labeled set: ``images``, ``segmentations`` and a ``labels.csv`` that trainings read as a datalist.

    Subjects and states are those of `BrainDataset` with the same split and seed.

    Args:
        out_dir: folder; created if missing.
        split: a key of ``SPLITS``; also written into the table.
        count: number of subjects.
        label: class of all cases; None mixes both.
        seed: seed of the set.
        size: voxels along x, y and z.
        spacing: voxel spacing in mm.
        truth: also write ``other`` and ``other_segmentations``: the same subjects in the typical state of the other
            class, with their volumes in the columns ``other_...``.
        transform: applied to every image before writing, such as a `DegradeBrain`.

    Returns:
        One record per case: the row of ``labels.csv``. Paths are relative to ``out_dir``.
    """
    out = Path(out_dir)
    change = transform if transform is not None else lambda sample: sample
    records = []
    for index in range(count):
        fraction = 0.5 if label is None else float(label)
        subject, state, rng = draw_brain(split, index, seed=seed, ad_fraction=fraction)
        sample = subject.render(state, seed=int(rng.integers(2**31)), size=size, spacing=spacing)
        name = f"{split}-{sample.subject:07d}"
        paths = _save_pair(out, "images", "segmentations", name, change(sample))
        files = {"file": paths[0], "segmentation": paths[1]}
        record = files | _record(name, sample) | {"split": split}
        if truth:
            other = BrainState.typical(1 - state.label)
            paired = subject.render(other, seed=int(rng.integers(2**31)), size=size, spacing=spacing)
            paths = _save_pair(out, "other", "other_segmentations", name, change(paired))
            record |= {"other": paths[0], "other_segmentation": paths[1]}
            record |= {f"other_{key}": value for key, value in _state(paired).items()}
        records.append(record)
    write_table(out / "labels.csv", records)
    return records


def _save_pair(out: Path, images: str, segmentations: str, name: str, sample: BrainSample) -> tuple[str, str]:
    """Write an image and its tissues; return their paths relative to ``out``."""
    straight = VolumeGeometry()
    paths = (f"{images}/{name}.nii.gz", f"{segmentations}/{name}.nii.gz")
    for path, image in zip(paths, (_image(sample, straight), _labels(sample, straight)), strict=True):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, out / path)
    return paths


def _image(sample: BrainSample, geometry: VolumeGeometry) -> nib.Nifti1Image:
    values = _resampled(sample.image, sample, geometry, order=1)
    return _nifti(np.rint(values * _SCALE).astype(np.int16), sample, geometry)


def _labels(sample: BrainSample, geometry: VolumeGeometry) -> nib.Nifti1Image:
    return _nifti(_resampled(sample.segmentation, sample, geometry, order=0), sample, geometry)


def _nifti(array: NDArray[Any], sample: BrainSample, geometry: VolumeGeometry) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, geometry.grid(sample)[1])
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"SYNTHETIC phantom (medcf)"
    return image


def _resampled(values: NDArray[Any], sample: BrainSample, geometry: VolumeGeometry, order: int) -> NDArray[Any]:
    shape, affine = geometry.grid(sample)
    head = np.array(sample.affine)
    head[:3, 3] += geometry.offset
    steps = np.linalg.inv(head) @ affine
    return affine_transform(values, steps[:3, :3], steps[:3, 3], output_shape=shape, order=order)


def _record(case: str, sample: BrainSample) -> dict[str, Any]:
    subject = {"case": case, "subject": sample.subject, "age": round(sample.age, 2), "sex": sample.sex}
    return subject | _state(sample)


def _state(sample: BrainSample) -> dict[str, Any]:
    volumes = {f"{name}_mm3": round(sample.volumes_mm3[name], 1) for name in TISSUES}
    return {"label": sample.label, "severity": round(sample.severity, 6)} | volumes
