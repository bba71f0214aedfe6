# SPDX-License-Identifier: Apache-2.0
"""DICOM inputs for applications: phantoms that say that they are synthetic, of one patient who does not exist."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

import medcf
from medcf.phantoms import write_phantoms

#: Options that make each bundle fast.
FAST = {
    "diffice": {"inferer#num_inference_steps": 20, "inferer#num_iterations": 1, "inferer#classifier_scales": 60},
    "controlcg": {"inferer#num_inference_steps": 4},
    "valdmd": {"method": "sdedit", "target": 1, "inferer#num_inference_steps": 6},
}
PATIENT = "Doe^Jane"


def write_inputs(bundle: str, folder: Path) -> Path:
    """Write one DICOM case for a bundle: a picture, or a series of slices."""
    folder.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f"{folder.name}-phantoms")
    if bundle == "controlcg":
        write_phantoms("brain_mri", work, 1)
        mr_series(next(work.glob("*.nii.gz")), folder)
    else:
        write_phantoms({"diffice": "fetal_head", "valdmd": "chest_xray"}[bundle], work, 6)
        picture = dcmread(min(work.glob("*.dcm")))
        picture.PatientName = PATIENT
        picture.save_as(folder / "picture.dcm")
    shutil.rmtree(work)
    return folder


def mr_series(nifti: Path, folder: Path) -> None:
    """Write a volume as a series of MR slices in its own position."""
    image = medcf.read(nifti)
    volume = np.asarray(image.as_tensor())[0]
    lps = np.diag([-1.0, -1, 1, 1]) @ image.affine.numpy()
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    uids = [generate_uid(entropy_srcs=[name]) for name in ("study", "series", "frame")]
    for index in range(volume.shape[2]):
        made = dcmread(get_testdata_file("MR_small.dcm", download=False))
        made.SOPInstanceUID = generate_uid(entropy_srcs=["slice", str(index)])
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = uids
        made.PatientName, made.PatientID, made.SyntheticData = PATIENT, "P1", "YES"
        pixels = np.rint(volume[:, :, index].T).astype("<i2")
        made.Rows, made.Columns = pixels.shape
        made.PixelSpacing = [f"{spacing[1]:.4f}", f"{spacing[0]:.4f}"]
        made.SliceThickness = f"{spacing[2]:.4f}"
        made.ImageOrientationPatient = [f"{v:.6f}" for v in (*lps[:3, 0] / spacing[0], *lps[:3, 1] / spacing[1])]
        made.ImagePositionPatient = [f"{v:.4f}" for v in (lps @ [0, 0, index, 1])[:3]]
        made.InstanceNumber, made.SliceLocation = index + 1, f"{spacing[2] * index:.4f}"
        made.PixelData = pixels.tobytes()
        made.save_as(folder / f"{index:03d}.dcm")
